"""The line profile: how the line was when the model learnt from it, to hold the station's latest captures against.

Light and background are those of the captures that were trained on, never of test captures. P(defective) is that of the
validation captures, asked as production asks: of what it was trained on the model is surer than of anything it will see
again. It is kept apart by what the model judged, since defects are many in a training set and rare in production: among
captures judged passed, P(defective) does not hang on how many others were defective.

Nothing of the profile changes an answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from pinspect.core.answers import DEFECTIVE, PASSED
from pinspect.core.errors import StageInputError
from pinspect.core.images import read_image, to_gray
from pinspect.core.lines import COLUMNS, lines_of
from pinspect.core.manifests import MANIFEST, read_manifest
from pinspect.core.params import Params
from pinspect.core.question import Question, camera_else_virtual, preferred_source
from pinspect.inspection.line_facts import LINE_FACTS, line_facts
from pinspect.nsoartc.alignment import Alignment
from pinspect.nsoartc.dst import MATRIX
from pinspect.nsoartc.unit_space import UnitSpace

MEASURED = 500  # captures at most: enough for a distribution, and a matter of seconds
KEPT = 1000  # values at most of one sample
PLACES = 4
NOTHING = "nothing"


@dataclass(frozen=True)
class Sample:
    """Values of one quantity, sorted. captures: how many they were measured on; of more than `KEPT` the values are
    quantiles. source: the line that they are of: `camera`, `virtual`, or `nothing` where neither has any."""

    values: tuple[float, ...]
    captures: int
    source: str


@dataclass(frozen=True)
class LineProfile:
    """What the model knows of its line.

    brightness, dst_background: see `imaging.line_facts`, of training captures and references. p_passed, p_defective:
    P(defective), 0..1, of validation captures that the model judged passed, and of those that it judged defective.
    defective_share: of the latter two together, by their labels; None where there are none. set_aside_share: of the
    training captures and references those that could not be laid over their unit space; None where there are none.
    """

    brightness: Sample
    dst_background: Sample
    p_passed: Sample
    p_defective: Sample
    defective_share: float | None
    set_aside_share: float | None

    def to_dict(self) -> dict:
        """As JSON has it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping) -> LineProfile:
        """The profile that `to_dict` told. Raises ValueError when `found` is none."""
        names = [field.name for field in fields(cls)]
        if not isinstance(found, Mapping) or sorted(found) != sorted(names):
            raise ValueError(f"expected the keys {', '.join(names)}")
        shares = {name: _as_share(name, found[name]) for name in ("defective_share", "set_aside_share")}
        return cls(**{name: _as_sample(name, found[name]) for name in names if name not in shares}, **shares)

    def told(self) -> str:
        """The profile in one line."""
        facts = ", ".join(
            f"{name} {np.median(sample.values):.3f}" if sample.values else f"{name} unknown"
            for name, sample in ((name, getattr(self, name)) for name in LINE_FACTS)
        )
        judged = self.p_passed.captures + self.p_defective.captures
        return (
            f"line profile: median {facts} ({self.brightness.captures} training captures, {self.brightness.source}); "
            f"P(defective) of {judged} validation captures ({self.p_passed.source})"
        )


def make_profile(raw: Path, dst: Path, answered: pd.DataFrame, params: Params) -> LineProfile:
    """The profile of the camera's line, or of the virtual one in what the camera has nothing of.

    raw, dst: the folders of those stages. answered: the predictions table of the validation rows, judged by the
    operating point. At most `MEASURED` captures are read, chosen by their content's hash. Raises StageInputError when a
    manifest or a unit space is missing.
    """
    facts, source, set_aside_share = _measure(raw, dst, params.raw.max_pixels)
    chances = _chances(answered, params)
    judged = {
        judgement: chances.loc[chances["found_judgement"] == judgement, "p_defective"]
        for judgement in (PASSED, DEFECTIVE)
    }
    asked_of = chances["source"].iloc[0] if len(chances) else NOTHING
    return LineProfile(
        **{name: _sample(facts[name], source) for name in LINE_FACTS},
        p_passed=_sample(judged[PASSED], asked_of),
        p_defective=_sample(judged[DEFECTIVE], asked_of),
        defective_share=_share(chances["expected_judgement"] == DEFECTIVE),
        set_aside_share=set_aside_share,
    )


def write_line_profile(profile: LineProfile, path: Path) -> None:
    """Write it as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(profile.to_dict()) + "\n", encoding="utf-8")


def read_line_profile(path: Path) -> LineProfile:
    """Read what `write_line_profile` wrote. Raises StageInputError when the file is missing or broken."""
    again = "run dvc repro calibrate"
    try:
        return LineProfile.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise StageInputError(f"{path}: not found; {again}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StageInputError(f"{path}: no JSON ({error}); {again}") from None
    except ValueError as error:
        raise StageInputError(f"{path}: {error}; {again}") from None


def _measure(raw: Path, dst: Path, max_pixels: int) -> tuple[pd.DataFrame, str, float | None]:
    """The line facts of captures that were trained on, their source, and the share of those set aside."""
    captures = read_manifest(raw / MANIFEST, (*COLUMNS, "sha256", "split"))
    lines = lines_of(captures)
    places = read_manifest(dst / MANIFEST, ("file", *MATRIX, "alignment_score", "error"))
    known = captures[captures["split"] == "train"].merge(places, on="file")
    source = preferred_source(set(known["source"])) or NOTHING
    known = known[known["source"] == source].sort_values("sha256").head(MEASURED)
    unit_spaces = {line: UnitSpace.load(dst / line.unit_space) for line in {lines[file] for file in known["file"]}}
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # pictures so small gain nothing from more
    try:
        facts = [
            _facts(row, raw, unit_spaces[lines[row["file"]]], max_pixels)
            for row in known[known["error"] == ""].to_dict("records")
        ]
    finally:
        cv2.setNumThreads(threads)
    return pd.DataFrame(facts, columns=list(LINE_FACTS)), source, _share(known["error"] != "")


def _facts(row: Mapping[str, str], raw: Path, unit_space: UnitSpace, max_pixels: int) -> dict[str, float]:
    """The line facts of one capture, at the place where the dst stage found it, as production finds it too."""
    matrix = np.array([float(row[name]) for name in MATRIX], np.float32).reshape(2, 3)
    place = Alignment(matrix, score=float(row["alignment_score"]), shift=(0.0, 0.0))
    return line_facts(to_gray(read_image(raw / row["file"], max_pixels)), place, unit_space)


def _chances(answered: pd.DataFrame, params: Params) -> pd.DataFrame:
    """The rows that ask what production asks, of one source, and that have a P(defective)."""
    answers = Question.of(params.evaluate).answers(answered)
    return camera_else_virtual(answers[answers["p_defective"].notna()])


def _sample(values: pd.Series, source: str) -> Sample:
    found = np.sort(values.to_numpy(float))
    if len(found) > KEPT:
        found = np.quantile(found, np.linspace(0, 1, KEPT))
    return Sample(tuple(np.round(found, PLACES).tolist()), len(values), source)


def _share(chosen: pd.Series) -> float | None:
    return round(float(chosen.mean()), PLACES) if len(chosen) else None


def _as_sample(name: str, found: object) -> Sample:
    if not isinstance(found, Mapping) or set(found) != {field.name for field in fields(Sample)}:
        raise ValueError(f"{name}: expected values, captures and source, found {found!r:.80}")
    try:
        values = tuple(float(value) for value in found["values"])
    except (TypeError, ValueError):
        raise ValueError(f"{name}: values: expected numbers") from None
    return Sample(values, int(found["captures"]), str(found["source"]))


def _as_share(name: str, found: object) -> float | None:
    if found is not None and not (isinstance(found, float | int) and 0 <= found <= 1):
        raise ValueError(f"{name}: expected a share, found {found!r}")
    return found
