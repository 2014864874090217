"""The evaluation report: one HTML file that stands alone, on a screen, in an e-mail and on paper."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from pinspect.answers import FIELDS, AnswerContract
from pinspect.errors import StageInputError
from pinspect.evaluation import metrics, plots
from pinspect.evaluation.metrics import ALL, Estimate
from pinspect.evaluation.predictions import CONSTRAINED, FREE
from pinspect.prompts import ONE_SHOT, ZERO_SHOT, PromptKind

PICTURE_BYTES = 5_500_000  # of JPEG, before base64 makes a third more of it: the report stays below 8 MB
VIRTUAL_MISSES = 60  # cards at most; predictions.csv has them all
_ENCODINGS = ((1.0, 88), (1.0, 75), (0.75, 75), (0.5, 70))  # scale and JPEG quality, tried in this order
_CAPTIONS = {
    PromptKind.TWO_IMAGE: ("star", "reference", "inspected"),
    PromptKind.ONE_IMAGE: ("inspected",),
    PromptKind.STACKED: ("worked example", "reference above, inspected below"),
}
SHOT_NAMES = {ZERO_SHOT: "zero-shot", ONE_SHOT: "one-shot"}


@dataclass(frozen=True)
class ReportInput:
    """All that a report tells.

    predictions, scores: the tables of `evaluation.predictions` and of `metrics.score_table`. model, baseline: the
    names in the column `model`; decoding: the one that the headline is about. view, kind: what production inspects
    with. images: for each row id of the chat dataset the pictures shown, relative to `images_folder`.
    comparisons: McNemar's test of the model against the baseline by outcome. facts and provenance: label -> text.
    set_aside: name of a capture -> why it was not asked about. names: file -> the name that its user gave it.
    """

    title: str
    date: str
    predictions: pd.DataFrame
    scores: pd.DataFrame
    contract: AnswerContract
    model: str
    baseline: str
    decoding: str
    view: str
    kind: str
    confidence: float
    images: Mapping[str, Sequence[str]]
    images_folder: Path
    learning_curve: pd.DataFrame
    comparisons: Mapping[str, metrics.McNemar] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, str] = field(default_factory=dict)
    params: str = ""
    set_aside: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """A picture of the report: drawn once, shown wherever its key is used."""

    key: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Words:
    """One wrong answer, line by line; a line is wrong where it differs from the expected one."""

    shot: str
    lines: tuple[tuple[str, bool], ...]
    p_defective: float | None
    problem: str


@dataclass(frozen=True)
class Miss:
    """A capture that was answered wrong at least once in one view and kind of prompt."""

    name: str
    source: str
    image_type: str
    kind: str
    expected: tuple[str, ...]
    answers: tuple[Words, ...]
    right: tuple[str, ...]
    images: tuple[tuple[str, str], ...]  # caption, path relative to the images folder
    worst: str


def render_report(given: ReportInput) -> str:
    """The report as HTML text. Raises StageInputError when a picture of a miss is missing."""
    shown = _Shown(given)
    misses = find_misses(given)
    camera = [miss for miss in misses if miss.source == "camera"]
    virtual = [miss for miss in misses if miss.source != "camera"]
    pictures, kept = embed_pictures(camera, virtual, given.images_folder)
    return _template().render(
        given=given,
        shown=shown,
        shots=SHOT_NAMES,
        camera_misses=camera,
        virtual_misses=kept,
        left_out=len(virtual) - len(kept),
        pictures=pictures,
        roc=plots.roc_figure(shown.series()),
        learning_curve=plots.learning_curve_figure(given.learning_curve),
        metrics=metrics,
    )


def find_misses(given: ReportInput) -> list[Miss]:
    """Every capture that the model answered wrong, one entry per view and kind; escapes first, then by file."""
    rows = given.predictions
    rows = rows[(rows["model"] == given.model) & (rows["decoding"] == given.decoding)]
    misses = []
    for (_, _, _, kind), asked in rows.groupby(["source", "file", "view", "kind"], sort=True):
        wrong = asked[asked["answer"] != asked["expected"]]
        if len(wrong):
            misses.append(_miss(asked, wrong, kind, given))
    severity = ["escape", "not answered", "overkill", "wrong address", "wrong mode", "wrong"]
    return sorted(misses, key=lambda miss: (miss.source, severity.index(miss.worst), miss.name, miss.image_type))


def embed_pictures(
    always: Sequence[Miss], while_room: Sequence[Miss], folder: Path, budget: int = PICTURE_BYTES
) -> tuple[dict[str, Picture], list[Miss]]:
    """The pictures of all misses in `always`, and of the first ones in `while_room` as long as `budget` bytes allow.

    Many misses make the pictures smaller and coarser, never fewer. Returns the pictures by path and the misses of
    `while_room` that found room.
    """
    needed = sorted({path for miss in always for _, path in miss.images})
    for scale, quality in _ENCODINGS:
        jpegs = {path: _jpeg(folder / path, scale, quality) for path in needed}
        used = sum(len(jpeg) for jpeg, _ in jpegs.values())
        if used <= budget:
            break
    kept = []
    for miss in while_room[:VIRTUAL_MISSES]:
        new = {path: _jpeg(folder / path, scale, quality) for _, path in miss.images if path not in jpegs}
        used += sum(len(jpeg) for jpeg, _ in new.values())
        if used > budget:
            break
        jpegs |= new
        kept.append(miss)
    pictures = {
        path: Picture(f"p{number}", f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}", *size)
        for number, (path, (jpeg, size)) in enumerate(jpegs.items())
    }
    return pictures, kept


class _Shown:
    """What the template asks for: figures of a group, chosen by shot, source, view and image type."""

    def __init__(self, given: ReportInput):
        self._given = given
        self._by_group = {key: rows.set_index("metric") for key, rows in given.scores.groupby(list(metrics.GROUP))}

    def estimate(
        self, metric: str, shot: str, *, source: str = "camera", view: str | None = None, image_type: str = ALL
    ) -> Estimate | None:
        """A score of the model; None where no such group was answered."""
        given = self._given
        key = (given.model, given.decoding, source, given.kind, shot, view or given.view, image_type)
        return self._of(key, metric)

    def baseline(self, metric: str, *, source: str = "camera", image_type: str = ALL) -> Estimate | None:
        """A score of the baseline, which knows neither shots nor prompts; None where it was not run."""
        given = self._given
        return self._of((given.baseline, CONSTRAINED, source, given.kind, ZERO_SHOT, given.view, image_type), metric)

    def rows(self, shot: str, source: str = "camera") -> pd.DataFrame:
        """The model's headline predictions of one shot and source."""
        given, rows = self._given, self._given.predictions
        wanted = {"model": given.model, "decoding": given.decoding, "source": source, "kind": given.kind}
        wanted |= {"shot": shot, "view": given.view}
        for column, value in wanted.items():
            rows = rows[rows[column] == value]
        return rows

    def baseline_rows(self, source: str = "camera") -> pd.DataFrame:
        rows = self._given.predictions
        return rows[(rows["model"] == self._given.baseline) & (rows["source"] == source)]

    def series(self) -> dict[str, pd.DataFrame]:
        """What the ROC shows, by the name in its legend."""
        named = {name: self.rows(shot, self.main_source()) for shot, name in SHOT_NAMES.items()}
        return named | {self._given.baseline: self.baseline_rows(self.main_source())}

    def image_types(self) -> list[tuple[str, str]]:
        """Views and image types that were answered, the production view first."""
        given = self._given
        found = {(key[5], key[6]) for key in self._by_group if key[0] == given.model and ALL not in (key[5], key[6])}
        return sorted(found, key=lambda pair: (pair[0] != given.view, pair))

    def sources(self) -> list[str]:
        return sorted({key[2] for key in self._by_group if key[0] == self._given.model})

    def shots(self) -> list[str]:
        asked = {key[4] for key in self._by_group if key[0] == self._given.model}
        return [shot for shot in SHOT_NAMES if shot in asked]

    def main_source(self) -> str:
        """What the figures are about: the camera, or the virtual line where no camera capture was tested."""
        return "camera" if "camera" in self.sources() else "virtual"

    def confusion(self, shot: str) -> pd.DataFrame:
        return metrics.confusion(self.rows(shot, self.main_source()), self._given.contract.defect_modes)

    def addresses(self, shot: str, source: str) -> dict[tuple[str, int], pd.Series]:
        """Counts of `metrics.address_errors` by row letter and column number."""
        counts = metrics.address_errors(self.rows(shot, source), self._given.contract.layout)
        return {(a.row, a.column): counts.loc[str(a)] for a in self._given.contract.layout.addresses}

    def free_parse_rates(self) -> list[tuple[str, Estimate]]:
        """Parse rates by shot where answers were also generated without the grammar."""
        given = self._given
        keys = [(given.model, FREE, "camera", given.kind, shot, given.view, ALL) for shot in SHOT_NAMES]
        return [(SHOT_NAMES[key[4]], self._of(key, "parse_rate")) for key in keys if key in self._by_group]

    def _of(self, key: tuple[str, ...], metric: str) -> Estimate | None:
        if key not in self._by_group:
            return None
        found = self._by_group[key].loc[metric]
        if pd.isna(found["value"]):
            return Estimate(None, int(found["n"]), int(found["captures"]), None, None)
        return Estimate(found["value"], int(found["n"]), int(found["captures"]), found["low"], found["high"])


def _miss(asked: pd.DataFrame, wrong: pd.DataFrame, kind: str, given: ReportInput) -> Miss:
    first = wrong.iloc[0]
    # The one-shot prompt shows what the zero-shot one shows, after its worked example.
    widest = max((tuple(given.images.get(row_id, ())) for row_id in wrong["id"]), key=len)
    captions = _CAPTIONS[PromptKind(kind)]
    return Miss(
        name=given.names.get(first["file"], first["file"].rsplit("/", 1)[-1]),
        source=first["source"],
        image_type=first["expected_image_type"],
        kind=kind,
        expected=tuple(first["expected"].split("\n")),
        answers=tuple(_words(row) for _, row in wrong.sort_values("shot", ascending=False).iterrows()),
        right=tuple(SHOT_NAMES.get(shot, shot) for shot in asked.loc[asked["answer"] == asked["expected"], "shot"]),
        images=tuple(zip(captions[len(captions) - len(widest) :], widest, strict=True)),
        worst=_worst(wrong),
    )


def _words(row: pd.Series) -> Words:
    expected, answer = row["expected"].split("\n"), row["answer"].split("\n")
    lines = tuple((line, number >= len(expected) or line != expected[number]) for number, line in enumerate(answer))
    chance = None if pd.isna(row["p_defective"]) else float(row["p_defective"])
    return Words(SHOT_NAMES.get(row["shot"], row["shot"]), lines, chance, row["problem"])


def _worst(wrong: pd.DataFrame) -> str:
    """The costliest thing that went wrong in any of these answers, in the words of the report."""
    parses = wrong["parses"].astype(bool)
    judged = wrong["found_judgement"]
    differs = {name: wrong[f"found_{name}"] != wrong[f"expected_{name}"] for name in FIELDS}
    cases = {
        "escape": parses & differs["judgement"] & (judged == "passed"),
        "not answered": ~parses,
        "overkill": parses & differs["judgement"] & (judged == "defective"),
        "wrong address": parses & differs["defect_position"],
        "wrong mode": parses & differs["defect_mode"],
    }
    return next((name for name, found in cases.items() if found.any()), "wrong")


def _jpeg(path: Path, scale: float, quality: int) -> tuple[bytes, tuple[int, int]]:
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except OSError as error:
        raise StageInputError(f"{path}: a miss shows it, and it cannot be read ({error}); run dvc repro") from None
    if scale != 1.0:
        picture = picture.resize(
            (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS
        )
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue(), picture.size


@cache
def _template():
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": _figure,
        "interval": _interval,
        "count": _count,
        "hits": _hits,
        "p_value": _p_value,
    }
    return environment.get_template("report.html.j2")


def _figure(value: float | None) -> str:
    """Three places; a dash where nothing was scored."""
    return "–" if value is None else f"{value:.3f}"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.low:.2f}–{estimate.high:.2f}"


def _hits(estimate: Estimate) -> int:
    return round(estimate.value * estimate.n)


def _count(estimate: Estimate) -> str:
    return f"{_hits(estimate)}/{estimate.n}"


def _p_value(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"
