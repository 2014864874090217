"""From photographs of wire-harness connectors to a versioned, tested, promotable vision-language inspector.

The answer contract, the layout, the parameters and the errors are this package's public names; everything else is
imported from the module that holds it.
"""

from pinspect.core.answers import Answer, AnswerContract, AnswerKind
from pinspect.core.errors import PinspectError
from pinspect.core.layout import Address, Layout
from pinspect.core.params import Params, load_params

__all__ = ["Address", "Answer", "AnswerContract", "AnswerKind", "Layout", "Params", "PinspectError", "load_params"]
