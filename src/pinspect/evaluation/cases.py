"""Captures told one by one: what the model saw and read, what it answered, where it looked.

A case is one capture put to the model by one kind of prompt in one view, in every shot: the one-shot prompt shows and
says all that the zero-shot one does, after a worked example, so that one case tells both.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from PIL import Image

from pinspect.core.answers import FIELDS, PASSED
from pinspect.core.errors import StageInputError
from pinspect.core.layout import Layout
from pinspect.core.prompts import ONE_SHOT, SHOTS, ZERO_SHOT, Message, PromptKind, without_answer

if TYPE_CHECKING:
    from pinspect.examination.evidence import EvidenceMap

HITS_PER_MODE = 2  # right answers shown of each defect mode, and of passed captures
VIRTUAL_MISSES = 40  # cards at most; predictions.csv has them all
PICTURE_BYTES = 4_000_000  # of JPEG, before base64 makes a third more of it: the report stays below 6 MB
SHOT_NAMES = {ZERO_SHOT: "zero-shot", ONE_SHOT: "one-shot"}
SEVERITY = ("escape", "not answered", "overkill", "wrong address", "wrong mode", "wrong image type", "right")

_ENCODINGS = ((1.0, 88), (1.0, 75), (0.75, 75), (0.5, 70), (0.35, 65))  # scale, JPEG quality, tried in this order
_CAPTIONS = {
    PromptKind.TWO_IMAGE: ("star", "reference", "inspected"),
    PromptKind.ONE_IMAGE: ("inspected",),
    PromptKind.STACKED: ("worked example", "reference above, inspected below"),
}


@dataclass(frozen=True)
class Picture:
    """A picture of the report: stored once, shown wherever its key is used. Sizes in px."""

    key: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Turn:
    """One turn: pictures as (caption, path in the images folder), the words with them, and, but for the turn that the
    model has to answer, the worked answer to them. Words are empty where the caller gave no messages."""

    pictures: tuple[tuple[str, str], ...]
    words: str
    answer: tuple[str, ...]


@dataclass(frozen=True)
class Reply:
    """The model's own words in one shot, line by line with whether the line differs from the expected one.

    problem: why it is not readable, else empty. addresses: P(address) of every pin in the order of the layout, or
    empty where it was not measured; entropy: theirs, in bits.
    """

    shot: str
    lines: tuple[tuple[str, bool], ...]
    problem: str
    p_defective: float | None
    addresses: tuple[float, ...]
    entropy: float | None
    evidence: EvidenceMap | None


@dataclass(frozen=True)
class Case:
    """A capture with what was expected of the model and what it said. `outcome` is the worst of its replies."""

    name: str
    source: str
    view: str
    image_type: str
    kind: str
    expected: tuple[str, ...]
    position: str
    turns: tuple[Turn, ...]
    replies: tuple[Reply, ...]
    right: tuple[str, ...]
    outcome: str

    @property
    def inspected(self) -> str:
        """The picture that the question is about, by its path in the images folder."""
        return self.turns[-1].pictures[-1][1]


@dataclass(frozen=True)
class Casebook:
    """What was asked, by row id of the chat dataset. names: file of the raw folder -> the name that its user gave."""

    images: Mapping[str, Sequence[str]]
    messages: Mapping[str, Sequence[Message]] = field(default_factory=dict)
    evidence: Mapping[str, EvidenceMap] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    def misses(self, answered: pd.DataFrame, first: tuple[str, str]) -> list[Case]:
        """Every case that was answered wrong in some shot, with its wrong replies: those of the (view, kind) `first`
        before the others, the costliest outcome first."""
        cases = [
            self._case(asked, asked[asked["answer"] != asked["expected"]])
            for _, asked in answered.groupby(["source", "file", "view", "kind"], sort=True)
            if (asked["answer"] != asked["expected"]).any()
        ]
        return sorted(
            cases,
            key=lambda case: (
                *(case.source, (case.view, case.kind) != first, case.kind, SEVERITY.index(case.outcome)),
                *(case.name, case.image_type),
            ),
        )

    def hits(self, answered: pd.DataFrame) -> list[Case]:
        """The first HITS_PER_MODE cases of each defect mode, and of passed captures, that were right in every shot."""
        return [self._case(asked, asked) for asked in _first_hits(answered)]

    def _case(self, asked: pd.DataFrame, told: pd.DataFrame) -> Case:
        first = told.iloc[0]
        widest = max(told["id"], key=lambda row_id: len(self.images.get(row_id, ())))
        return Case(
            name=self.names.get(first["file"], first["file"].rsplit("/", 1)[-1]),
            source=first["source"],
            view=first["view"],
            image_type=first["expected_image_type"],
            kind=first["kind"],
            expected=tuple(first["expected"].split("\n")),
            position=first["expected_defect_position"],
            turns=self._turns(widest, PromptKind(first["kind"])),
            replies=tuple(self._reply(row) for _, row in told.sort_values("shot", key=_shot_order).iterrows()),
            right=tuple(SHOT_NAMES[shot] for shot in SHOTS if shot in set(asked["shot"]) - set(told["shot"])),
            outcome=_worst(told),
        )

    def _turns(self, row_id: str, kind: PromptKind) -> tuple[Turn, ...]:
        images, captions = list(self.images.get(row_id, ())), _CAPTIONS[kind]
        pictures = list(zip(captions[len(captions) - len(images) :], images, strict=True))
        if row_id not in self.messages:
            return (Turn(tuple(pictures), "", ()),)
        turns = []
        for message in without_answer(self.messages[row_id]):
            words = " ".join(part["text"] for part in message["content"] if part["type"] == "text")
            if message["role"] == "assistant":
                turns[-1] = Turn(turns[-1].pictures, turns[-1].words, tuple(words.split("\n")))
                continue
            shown = sum(part["type"] == "image" for part in message["content"])
            turns.append(Turn(tuple(pictures[:shown]), words, ()))
            pictures = pictures[shown:]
        return tuple(turns)

    def _reply(self, row: pd.Series) -> Reply:
        expected, answer = row["expected"].split("\n"), row["answer"].split("\n")
        return Reply(
            shot=SHOT_NAMES.get(row["shot"], row["shot"]),
            lines=tuple((line, n >= len(expected) or line != expected[n]) for n, line in enumerate(answer)),
            problem=row["problem"],
            p_defective=_measured(row["p_defective"]),
            entropy=_measured(row["address_entropy"]),
            addresses=tuple(float(share) for share in str(row["address_probabilities"]).split()),
            evidence=self.evidence.get(row["id"]),
        )


def shown_row_ids(answered: pd.DataFrame, view: str, kind: str) -> list[str]:
    """The rows whose cases the report shows, and whose evidence is wanted: every wrong answer of the camera's captures,
    the first VIRTUAL_MISSES of the virtual line, and a few right ones to production's prompt (view, kind).

    answered: the predictions of one model and decoding.
    """
    wrong = answered[answered["answer"] != answered["expected"]]
    camera = wrong["source"] == "camera"
    virtual = wrong[~camera & (wrong["view"] == view) & (wrong["kind"] == kind)]
    hits = _first_hits(production_rows(answered, view, kind))
    return [*wrong.loc[camera, "id"], *virtual["id"].head(VIRTUAL_MISSES), *(i for asked in hits for i in asked["id"])]


def production_rows(answered: pd.DataFrame, view: str, kind: str, source: str = "camera") -> pd.DataFrame:
    """The answers to production's prompt, in every shot."""
    return answered[(answered["source"] == source) & (answered["view"] == view) & (answered["kind"] == kind)]


def embed_pictures(
    always: Sequence[Case], while_room: Sequence[Case], folder: Path, budget: int = PICTURE_BYTES
) -> tuple[dict[str, Picture], list[Case]]:
    """The pictures of all cases in `always`, and of the first ones in `while_room` as long as `budget` bytes allow.

    Many cases make the pictures smaller and coarser, never fewer. Returns the pictures by path and the cases of
    `while_room` that found room. Raises StageInputError when a picture is missing.
    """
    needed = sorted({path for case in always for path in _paths(case)})
    for scale, quality in _ENCODINGS:
        jpegs = {path: _jpeg(folder / path, scale, quality) for path in needed}
        used = sum(len(jpeg) for jpeg, _ in jpegs.values())
        if used <= budget:
            break
    kept = []
    for case in while_room[:VIRTUAL_MISSES]:
        new = {path: _jpeg(folder / path, scale, quality) for path in _paths(case) if path not in jpegs}
        used += sum(len(jpeg) for jpeg, _ in new.values())
        if used > budget:
            break
        jpegs |= new
        kept.append(case)
    pictures = {
        path: Picture(f"p{number}", f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}", *size)
        for number, (path, (jpeg, size)) in enumerate(jpegs.items())
    }
    return pictures, kept


def inspected_cell(position: str, layout: Layout, kind: str) -> tuple[float, float, float, float] | None:
    """Where the inspected picture of a prompt of `kind` shows the pin at `position`: left, top, width and height as
    shares of the picture. None for `NA`.

    A composite has a margin of one cell above and at the left of the pin field; a stacked one holds two, the inspected
    capture below.
    """
    if position not in [str(address) for address in layout.addresses]:
        return None
    address = layout.address(position)
    columns, rows = layout.columns + 1, len(layout.rows) + 1
    above = rows if PromptKind(kind) is PromptKind.STACKED else 0
    top = above + 1 + layout.rows.index(address.row)
    return address.column / columns, top / (above + rows), 1 / columns, 1 / (above + rows)


def _paths(case: Case) -> list[str]:
    return [path for turn in case.turns for _, path in turn.pictures]


def _first_hits(answered: pd.DataFrame) -> list[pd.DataFrame]:
    by_mode: dict[str, list[pd.DataFrame]] = {}
    for _, asked in answered.groupby(["source", "file", "view", "kind"], sort=True):
        if (asked["answer"] == asked["expected"]).all():
            by_mode.setdefault(asked["expected_defect_mode"].iloc[0], []).append(asked)
    modes = sorted(by_mode, key=lambda mode: (mode == PASSED, mode))
    return [asked for mode in modes for asked in by_mode[mode][:HITS_PER_MODE]]


def _shot_order(shots: pd.Series) -> pd.Series:
    return shots.map(SHOTS.index)


def _measured(value: float) -> float | None:
    return None if pd.isna(value) else float(value)


def _worst(told: pd.DataFrame) -> str:
    """The costliest thing that went wrong in any of these answers, in the words of the report."""
    parses = told["parses"].astype(bool)
    judged = told["found_judgement"]
    differs = {name: told[f"found_{name}"] != told[f"expected_{name}"] for name in FIELDS}
    cases = {
        "escape": parses & differs["judgement"] & (judged == PASSED),
        "not answered": ~parses,
        "overkill": parses & differs["judgement"] & (judged != PASSED),
        "wrong address": parses & differs["defect_position"],
        "wrong mode": parses & differs["defect_mode"],
        "wrong image type": told["answer"] != told["expected"],
    }
    return next((name for name, found in cases.items() if found.any()), "right")


def _jpeg(path: Path, scale: float, quality: int) -> tuple[bytes, tuple[int, int]]:
    try:
        with Image.open(path) as image:
            picture = image.convert("RGB")
    except OSError as error:
        raise StageInputError(f"{path}: the report shows it, and it cannot be read ({error}); run dvc repro") from None
    if scale != 1.0:
        size = round(picture.width * scale), round(picture.height * scale)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue(), picture.size
