"""The registered model: MLflow runs this file to load an adapter with all that it needs to inspect photographs.

Input: a table with the column `inspected`, and if wanted `reference` and `shape`. Images are paths, or the bytes of an
image file as base64 text. Output: one line per input line with `file`, the fields of the answer, `answer`, its scores
(`serving.inspection.SCORES`), what the capture tells of its line (`imaging.line_facts.LINE_FACTS`) and `error`.
"""

from __future__ import annotations

import base64
import binascii
import json
from pathlib import Path

import mlflow
import pandas as pd

from pinspect.core.errors import ImageError
from pinspect.inspection.inspector import CaptureInspector, Photograph, Task, empty_record
from pinspect.inspection.line_facts import LINE_FACTS

_LONGEST_PATH = 4096


class PinInspector(mlflow.pyfunc.PythonModel):
    """Artifacts: `adapter` (its folder), `operating_point` (operating_point.json), `line` (see `pack_line`), `params`
    (params.yaml), where the base is no checkpoint of the hub `base` (its folder), and `line_profile`
    (line_profile.json), which versions of before the station lack.

    inspector: the loaded `CaptureInspector`. profile: what the line profile says, None without one."""

    inspector: CaptureInspector
    profile: dict | None

    def load_context(self, context) -> None:
        from pinspect.core.params import load_params
        from pinspect.examination.operating_point import read_operating_point
        from pinspect.model.families import checkpoint_of
        from pinspect.model.loading import load_inspector

        found = {name: Path(path) for name, path in context.artifacts.items()}
        params = load_params(found["params"])
        base = checkpoint_of(params.model)
        if "base" in found:
            base = base.at(found["base"])
        point = read_operating_point(found["operating_point"], found["adapter"])
        inspector = load_inspector(base, found["adapter"])
        self.inspector = CaptureInspector(inspector, found["line"], params, point.threshold)
        profile = found.get("line_profile")
        self.profile = json.loads(profile.read_text(encoding="utf-8")) if profile else None

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:
        columns = list(signature().outputs.input_names())
        records: list[dict] = [{} for _ in range(len(model_input))]
        tasks = {}
        for number, line in enumerate(model_input.to_dict("records")):
            try:
                tasks[number] = _task(line, number)
            except ImageError as error:
                records[number] = empty_record(f"image {number}") | {"error": str(error)}
        for number, record in zip(tasks, self.inspector.inspect(list(tasks.values())), strict=True):
            records[number] = record
        return pd.DataFrame(records, columns=columns, dtype=object)


def signature() -> mlflow.models.ModelSignature:
    """Columns that go in and come out, for the registry and for clients of a model server."""
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    from pinspect.core.answers import FIELDS

    given = [ColSpec("string", "inspected")]
    given += [ColSpec("string", name, required=False) for name in ("reference", "shape")]
    told = [ColSpec("string", "file")]
    told += [ColSpec("string", name, required=False) for name in (*FIELDS, "answer")]
    told += [ColSpec("double", name, required=False) for name in ("p_defective", "threshold", "address_entropy")]
    told.append(ColSpec(Array(DataType.double), "address_probabilities", required=False))
    told += [ColSpec("double", name, required=False) for name in LINE_FACTS]
    told.append(ColSpec("string", "error", required=False))
    return mlflow.models.ModelSignature(inputs=Schema(given), outputs=Schema(told))


def _task(line: dict, number: int) -> Task:
    reference, shape = (line[name] if isinstance(line.get(name), str) else "" for name in ("reference", "shape"))
    return Task(
        inspected=_photograph(str(line["inspected"]), f"image {number}"),
        reference=_photograph(reference, f"reference {number}") if reference else None,
        shape=shape or None,
    )


def _photograph(text: str, name: str) -> Photograph:
    """The image that `text` names or holds. Raises ImageError when it is neither a file nor base64."""
    path = Path(text) if len(text) <= _LONGEST_PATH else None
    if path and path.is_file():
        return Photograph(text, path.read_bytes())
    try:
        return Photograph(name, base64.b64decode(text.split("base64,")[-1], validate=True))
    except (binascii.Error, ValueError):
        found = repr(text) if len(text) < 80 else f"{text[:40]!r}…"
        raise ImageError(f"{name}: expected the path of an image file, or its bytes as base64, found {found}") from None


mlflow.models.set_model(PinInspector())
