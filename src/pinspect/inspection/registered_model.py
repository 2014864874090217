"""The registered model: MLflow runs this file to load a packed model behind its `pyfunc` interface.

Input: a table with the column `inspected` and, optionally, `reference` and `shape`. Images are paths, or the bytes of
an image file as base64 text. Output: one row per input row with `file`, the fields of the answer, `answer`, its scores
(`records.SCORES`), the facts about the line (`line_facts.LINE_FACTS`) and `error`.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pandas as pd
from mlflow.models import ModelSignature
from mlflow.models import set_model as register_with_mlflow  # pyright: ignore[reportUnknownVariableType]
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import Array

from pinspect.core.answers import FIELDS
from pinspect.core.errors import ImageError
from pinspect.inspection.inspector import CaptureInspector
from pinspect.inspection.line_facts import LINE_FACTS
from pinspect.inspection.package import load_package
from pinspect.inspection.records import Photograph, Record, Task, empty_record

_LONGEST_PATH = 4096


class PinInspector(PythonModel):
    """The model behind `mlflow.pyfunc`.

    Attributes:
        inspector: The loaded inspector.
        profile: The content of line_profile.json; None if the version has none.
    """

    inspector: CaptureInspector
    profile: Record | None

    def load_context(self, context: PythonModelContext) -> None:
        """Load the artifacts of the version; MLflow calls this method once."""
        paths = cast(dict[str, str], context.artifacts)  # pyright: ignore[reportUnknownMemberType]
        artifacts = {name: Path(path) for name, path in paths.items()}
        self.inspector = load_package(artifacts)
        profile = artifacts.get("line_profile")
        self.profile = json.loads(profile.read_text(encoding="utf-8")) if profile else None

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride]  MLflow's own returns nothing
        self, context: PythonModelContext, model_input: pd.DataFrame, params: Mapping[str, Any] | None = None
    ) -> pd.DataFrame:
        """Inspect each row of a table; see the docstring of this module for its columns.

        Args:
            context: The context of the version, not used.
            model_input: The table.
            params: Not used.

        Returns:
            The table of results, in the order of the input.
        """
        del context, params
        records: list[Record] = [{} for _ in range(len(model_input))]
        tasks: dict[int, Task] = {}
        for number, row in enumerate(model_input.to_dict("records")):
            try:
                tasks[number] = _task(row, number)
            except ImageError as error:
                records[number] = empty_record(f"image {number}") | {"error": str(error)}
        for number, record in zip(tasks, self.inspector.inspect(list(tasks.values())), strict=True):
            records[number] = record
        return pd.DataFrame(records, columns=pd.Index(_OUTPUTS), dtype=object)


def signature() -> ModelSignature:
    """Return the columns of input and output, for the registry and for clients of a model server."""
    inputs: list[ColSpec | TensorSpec] = [ColSpec(DataType.string, "inspected")]
    inputs += [ColSpec(DataType.string, name, required=False) for name in ("reference", "shape")]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(kind, name, required=name == "file") for name, kind in _OUTPUTS.items()
    ]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


_OUTPUTS: dict[str, Any] = {
    **dict.fromkeys(("file", *FIELDS, "answer"), DataType.string),
    **dict.fromkeys(("p_defective", "threshold", "address_entropy"), DataType.double),
    "address_probabilities": Array(DataType.double),
    "localizer_position": DataType.string,
    "localizer_disagrees": DataType.boolean,
    "pin_map": Array(DataType.double),
    **dict.fromkeys(LINE_FACTS, DataType.double),
    "error": DataType.string,
}


def _task(row: Mapping[Any, Any], number: int) -> Task:
    reference, shape = (row[name] if isinstance(row.get(name), str) else "" for name in ("reference", "shape"))
    return Task(
        inspected=_photograph(str(row["inspected"]), f"image {number}"),
        reference=_photograph(reference, f"reference {number}") if reference else None,
        shape=shape or None,
    )


def _photograph(text: str, name: str) -> Photograph:
    """Return the image whose path or base64 content is `text`."""
    path = Path(text) if len(text) <= _LONGEST_PATH else None
    if path and path.is_file():
        return Photograph(text, path.read_bytes())
    try:
        return Photograph(name, base64.b64decode(text.rsplit("base64,", maxsplit=1)[-1], validate=True))
    except (binascii.Error, ValueError):
        shown = repr(text) if len(text) < 80 else f"{text[:40]!r}…"
        raise ImageError(f"{name}: expected the path of an image file, or its bytes as base64, found {shown}") from None


register_with_mlflow(PinInspector())
