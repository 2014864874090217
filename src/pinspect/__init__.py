"""From photographs of wire-harness connectors to a versioned, tested, promotable vision-language inspector.

The answer contract, the layout, the parameters and the errors are this package's public names; everything else is
imported from the module that holds it.
"""

from pinspect.answers import Answer, AnswerContract, AnswerKind
from pinspect.errors import PinspectError
from pinspect.layout import Address, Layout
from pinspect.params import Params, load_params

__all__ = ["Address", "Answer", "AnswerContract", "AnswerKind", "Layout", "Params", "PinspectError", "load_params"]
