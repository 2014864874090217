"""pinspect inspects photographs of wire-harness connectors, and makes the models that do so.

    import pinspect

    inspector = pinspect.load_inspector("champion", project=".")
    inspection = inspector("photo.jpg")

`pinspect.nsoartc(capture, reference)` computes an NSOARTC distance image. Everything else is imported from its module.
Importing pinspect loads no heavy library and changes no environment variable.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pinspect.core.errors import (
    AlignmentError,
    AnswerFormatError,
    CaptureError,
    ImageError,
    ModelError,
    ParamsError,
    PinspectError,
    RegistryError,
    RegistryUnreachableError,
    StageInputError,
    UnitSpaceError,
)

if TYPE_CHECKING:
    from pinspect.core.answers import Answer, AnswerContract, AnswerKind
    from pinspect.core.layout import Address, Layout
    from pinspect.core.params import Params, load_params
    from pinspect.inspection.photograph_inspector import PhotographInspector
    from pinspect.inspection.records import Inspection
    from pinspect.nsoartc.distance import nsoartc
    from pinspect.registry.loading import load_inspector

__all__ = [
    "Address",
    "AlignmentError",
    "Answer",
    "AnswerContract",
    "AnswerFormatError",
    "AnswerKind",
    "CaptureError",
    "ImageError",
    "Inspection",
    "Layout",
    "ModelError",
    "Params",
    "ParamsError",
    "PhotographInspector",
    "PinspectError",
    "RegistryError",
    "RegistryUnreachableError",
    "StageInputError",
    "UnitSpaceError",
    "load_inspector",
    "load_params",
    "nsoartc",
]

# Loaded on first use, so that `import pinspect` stays cheap. `nsoartc` is a package that can be called.
_LAZY = {
    "Address": "pinspect.core.layout",
    "Answer": "pinspect.core.answers",
    "AnswerContract": "pinspect.core.answers",
    "AnswerKind": "pinspect.core.answers",
    "Inspection": "pinspect.inspection.records",
    "Layout": "pinspect.core.layout",
    "Params": "pinspect.core.params",
    "PhotographInspector": "pinspect.inspection.photograph_inspector",
    "load_inspector": "pinspect.registry.loading",
    "load_params": "pinspect.core.params",
}


def __getattr__(name: str) -> Any:
    if name == "nsoartc":
        return import_module("pinspect.nsoartc")
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'pinspect' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
