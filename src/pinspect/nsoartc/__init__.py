"""NSOARTC: comparing a capture with what passed captures have in common.

The package can be called: `pinspect.nsoartc(capture, reference)` is `pinspect.nsoartc.distance.nsoartc`.
"""

import sys
from types import ModuleType
from typing import Any

from pinspect.nsoartc.distance import nsoartc
from pinspect.nsoartc.parts import FloatImage, NsoartcSettings

__all__ = ["NsoartcSettings", "nsoartc"]


class _CallablePackage(ModuleType):
    """The package and its main function have one name; importing the package must not hide the function."""

    def __call__(self, *args: Any, **keywords: Any) -> FloatImage:
        return nsoartc(*args, **keywords)


sys.modules[__name__].__class__ = _CallablePackage
