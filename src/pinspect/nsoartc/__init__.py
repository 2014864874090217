"""NSOARTC: compare a capture with the mean of passed captures.

The package can be called: `pinspect.nsoartc(capture, reference)` is `pinspect.nsoartc.distance.nsoartc`.
"""

import sys
from types import ModuleType
from typing import Any

from pinspect.core.nsoartc_settings import NsoartcSettings
from pinspect.nsoartc.distance import nsoartc
from pinspect.nsoartc.parts import FloatImage

__all__ = ["NsoartcSettings", "nsoartc"]


class _CallablePackage(ModuleType):
    """The package and its main function have the same name; an import of the package must not hide the function."""

    def __call__(self, *args: Any, **keywords: Any) -> FloatImage:
        return nsoartc(*args, **keywords)


sys.modules[__name__].__class__ = _CallablePackage
