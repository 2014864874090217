"""The line profile: the state of the line that the model was trained on, to compare the station's captures with.

Brightness and DST background come from training captures and references, never from test captures. P(defective) comes
from validation captures, because a model is more certain about captures that it was trained on than about any others.
P(defective) is kept by judgement: defects are frequent in a training set and rare in production, and among captures
judged passed, P(defective) does not depend on how many others are defective.

The profile does not change any answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pandas as pd

from pinspect.core.answers import DEFECTIVE, PASSED
from pinspect.core.errors import StageInputError
from pinspect.core.files import write_file
from pinspect.core.images import read_image
from pinspect.core.lines import COLUMNS, lines_of
from pinspect.core.manifests import MANIFEST, read_manifest
from pinspect.core.params import Params
from pinspect.core.question import Question, camera_else_virtual, preferred_source
from pinspect.inspection.line_facts import LINE_FACTS, line_facts
from pinspect.nsoartc.aligned import place_capture
from pinspect.nsoartc.alignment import Alignment
from pinspect.nsoartc.dst import MATRIX
from pinspect.nsoartc.unit_space import UnitSpace

MEASURED = 500  # captures to measure at most: enough for a distribution, done in seconds
KEPT = 1000  # values to keep per sample at most
PLACES = 4
NOTHING = "nothing"
_REMEDY = "run dvc repro answer"


@dataclass(frozen=True)
class Sample:
    """The distribution of one quantity.

    Attributes:
        values: Sorted values; quantiles if there are more than `KEPT` values.
        captures: Number of captures that were measured.
        source: Source of the captures: `camera`, `virtual`, or `nothing` if there are none.
    """

    values: tuple[float, ...]
    captures: int
    source: str


@dataclass(frozen=True)
class LineProfile:
    """The state of the line that the model was trained on.

    Attributes:
        brightness: Brightness (see `line_facts`) of training captures and references.
        dst_background: DST background (see `line_facts`) of the same captures.
        p_passed: P(defective), 0..1, of validation captures that the model judged passed.
        p_defective: P(defective), 0..1, of validation captures that the model judged defective.
        defective_share: Share of defective captures among those validation captures, by their labels; None if there are
            none.
        set_aside_share: Share of training captures and references that do not fit their unit space; None if there are
            none.
    """

    brightness: Sample
    dst_background: Sample
    p_passed: Sample
    p_defective: Sample
    defective_share: float | None
    set_aside_share: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the profile as it is written to JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> LineProfile:
        """Return the profile that `to_dict` returned.

        Args:
            values: The content of a JSON file.

        Raises:
            ValueError: It is not a profile.
        """
        names = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping) or sorted(cast(Mapping[str, Any], values)) != sorted(names):
            raise ValueError(f"expected the keys {', '.join(names)}")
        content = cast(Mapping[str, Any], values)
        shares = ("defective_share", "set_aside_share")
        return cls(
            **{name: _parse_sample(name, content[name]) for name in names if name not in shares},
            defective_share=_parse_share("defective_share", content["defective_share"]),
            set_aside_share=_parse_share("set_aside_share", content["set_aside_share"]),
        )

    def summary(self) -> str:
        """Return the profile in one line."""
        samples: dict[str, Sample] = {name: getattr(self, name) for name in LINE_FACTS}
        facts = ", ".join(
            f"{name} {np.median(sample.values):.3f}" if sample.values else f"{name} unknown"
            for name, sample in samples.items()
        )
        judged = self.p_passed.captures + self.p_defective.captures
        return (
            f"line profile: median {facts} ({self.brightness.captures} training captures, {self.brightness.source}); "
            f"P(defective) of {judged} validation captures ({self.p_passed.source})"
        )


def make_profile(raw: Path, dst: Path, predictions: pd.DataFrame, params: Params) -> LineProfile:
    """Measure the profile of the camera's line; of the virtual line for each quantity that the camera has no data for.

    At most `MEASURED` captures are read, chosen by the hash of their content.

    Args:
        raw: The raw folder.
        dst: The DST folder.
        predictions: The predictions of validation rows, judged by the operating point.
        params: The project's parameters.

    Returns:
        The profile.

    Raises:
        StageInputError: A manifest or a unit space is missing.
    """
    facts, source, set_aside_share = _measure(raw, dst, params.raw.max_pixels)
    answers = _answers(predictions, params)
    by_judgement: dict[str, Any] = {
        judgement: answers.loc[answers["found_judgement"] == judgement, "p_defective"]
        for judgement in (PASSED, DEFECTIVE)
    }
    answered_source = str(answers["source"].iloc[0]) if len(answers) else NOTHING
    return LineProfile(
        **{name: _sample(facts[name], source) for name in LINE_FACTS},
        p_passed=_sample(by_judgement[PASSED], answered_source),
        p_defective=_sample(by_judgement[DEFECTIVE], answered_source),
        defective_share=_share(answers["expected_judgement"] == DEFECTIVE),
        set_aside_share=set_aside_share,
    )


def write_line_profile(profile: LineProfile, path: Path) -> None:
    """Write a profile as JSON."""
    write_file(path, json.dumps(profile.to_dict()) + "\n")


def read_line_profile(path: Path) -> LineProfile:
    """Read a profile that `write_line_profile` wrote.

    Raises:
        StageInputError: The file is missing or broken.
    """
    try:
        return LineProfile.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise StageInputError(f"{path}: not found; {_REMEDY}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StageInputError(f"{path}: not JSON ({error}); {_REMEDY}") from None
    except ValueError as error:
        raise StageInputError(f"{path}: {error}; {_REMEDY}") from None


def _measure(raw: Path, dst: Path, max_pixels: int) -> tuple[Any, str, float | None]:
    """Return the line facts of training captures and references, their source, and the share that was set aside."""
    captures = read_manifest(raw / MANIFEST, (*COLUMNS, "sha256", "split"))
    lines = lines_of(captures)
    alignments = read_manifest(dst / MANIFEST, ("file", *MATRIX, "alignment_score", "error"))
    known: Any = captures[captures["split"] == "train"].merge(alignments, on="file")
    source = preferred_source(set(known["source"])) or NOTHING
    known = known[known["source"] == source].sort_values("sha256").head(MEASURED)
    unit_spaces = {line: UnitSpace.load(dst / line.unit_space) for line in {lines[file] for file in known["file"]}}
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # more threads do not help with images this small
    try:
        facts = [
            _facts(row, raw, unit_spaces[lines[row["file"]]], max_pixels)
            for row in known[known["error"] == ""].to_dict("records")
        ]
    finally:
        cv2.setNumThreads(threads)
    return pd.DataFrame(facts, columns=pd.Index(LINE_FACTS)), source, _share(known["error"] != "")


def _facts(row: Mapping[str, str], raw: Path, unit_space: UnitSpace, max_pixels: int) -> dict[str, float]:
    """Return the line facts of one capture, aligned as the stage dst aligned it."""
    matrix = np.array([float(row[name]) for name in MATRIX], np.float32).reshape(2, 3)
    alignment = Alignment(matrix, score=float(row["alignment_score"]), shift=(0.0, 0.0))
    image = np.asarray(read_image(raw / row["file"], max_pixels))
    return line_facts(place_capture(image, alignment, unit_space))


def _answers(predictions: pd.DataFrame, params: Params) -> Any:
    """Return the answers to production's question that have a P(defective), of one source."""
    answers = Question.of(params.evaluate).answers(predictions)
    return camera_else_virtual(answers.loc[answers["p_defective"].notna()])


def _sample(column: Any, source: str) -> Sample:
    values = np.sort(np.asarray(column, np.float64))
    if len(values) > KEPT:
        values = np.quantile(values, np.linspace(0, 1, KEPT))
    return Sample(tuple(np.round(values, PLACES).tolist()), len(column), source)


def _share(column: Any) -> float | None:
    return round(float(column.mean()), PLACES) if len(column) else None


def _parse_sample(name: str, content: Any) -> Sample:
    if not isinstance(content, Mapping) or set(cast(Mapping[str, Any], content)) != {f.name for f in fields(Sample)}:
        raise ValueError(f"{name}: expected values, captures and source, found {content!r:.80}")
    sample = cast(Mapping[str, Any], content)
    try:
        values = tuple(float(value) for value in sample["values"])
    except (TypeError, ValueError):
        raise ValueError(f"{name}: values: expected numbers") from None
    return Sample(values, int(sample["captures"]), str(sample["source"]))


def _parse_share(name: str, content: Any) -> float | None:
    if content is None or (isinstance(content, float | int) and 0 <= content <= 1):
        return content
    raise ValueError(f"{name}: expected a share, found {content!r}")
