"""The learning curve of a line, with real trainings of two steps."""

import json

import pandas as pd
import pytest

from pinspect.cli.curve import FOLDER, learning_curve
from pinspect.core.errors import StageInputError
from pinspect.core.params import load_params
from pinspect.core.rows import read_chat
from pinspect.registry.settings import load_registry_settings


def curve_of(project, sizes) -> pd.DataFrame:
    settings = load_registry_settings(project)
    return learning_curve(project, load_params(project / "params.yaml"), settings.report, sizes, steps=2)


def write_rows(project, rows) -> None:
    path = project / "data/chat/train.jsonl"
    path.unlink()  # may be a link into a cache
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def captures(path) -> set[str]:
    return {row["sha256"] for row in read_chat(path)}


def test_a_larger_size_adds_captures_and_what_is_finished_is_not_trained_again(project):
    rows = read_chat(project / "data/chat/train.jsonl")
    write_rows(project, [*rows, *(row | {"sha256": f"another {row['sha256']}"} for row in rows)])
    curve = curve_of(project, [1, 99])
    everything = captures(project / "data/chat/train.jsonl")
    small, large = (project / f"build/curve/{size}-2" for size in curve["defective"])
    assert captures(small / "chat/train.jsonl") < captures(large / "chat/train.jsonl") == everything
    assert all(curve["exact_match_low"] <= curve["exact_match"]) and all(
        curve["escape_rate"] <= curve["escape_rate_high"]
    )
    pd.testing.assert_frame_equal(pd.read_csv(project / FOLDER / "curve.csv"), curve, check_dtype=False)
    assert (project / FOLDER / "curve.svg").read_text().startswith("<svg")
    weights = [(folder / "adapter/adapter_model.safetensors").stat().st_mtime_ns for folder in (small, large)]
    again = curve_of(project, [1, 99])
    pd.testing.assert_frame_equal(again, curve)
    assert weights == [(each / "adapter/adapter_model.safetensors").stat().st_mtime_ns for each in (small, large)]


def test_a_line_without_camera_captures_has_no_curve(project):
    rows = read_chat(project / "data/chat/train.jsonl")
    write_rows(project, [row | {"source": "virtual"} for row in rows])
    with pytest.raises(StageInputError, match="0 defective camera captures to train on"):
        curve_of(project, [5])
