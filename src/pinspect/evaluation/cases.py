"""The captures that the report shows one by one: what the model saw and read, what it answered, where it looked.

A case is one capture put to the model by one kind of prompt in one view, in every shot. The one-shot prompt repeats the
zero-shot prompt after a worked example, so one case shows both.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

from pinspect.core.answers import FIELDS, PASSED
from pinspect.core.errors import StageInputError
from pinspect.core.layout import Layout
from pinspect.core.product_files import read_product
from pinspect.core.prompts import ONE_SHOT, SHOTS, ZERO_SHOT, PromptKind, without_answer
from pinspect.core.rows import Row
from pinspect.evaluation.evaluation import Evaluation
from pinspect.examination.results import EvidenceMap
from pinspect.examination.selection import CASE, VIRTUAL_MISSES, first_hits

PICTURE_BYTES = 4_000_000  # of JPEG; base64 adds a third, and the report stays below 6 MB
SHOT_NAMES = {ZERO_SHOT: "zero-shot", ONE_SHOT: "one-shot"}
SEVERITY = ("escape", "not answered", "overkill", "wrong address", "wrong mode", "wrong image type", "right")

Lines = tuple[tuple[str, bool], ...]  # of an answer, each with whether it differs from the expected line

_ENCODINGS = ((1.0, 88), (1.0, 75), (0.75, 75), (0.5, 70), (0.35, 65))  # scale, JPEG quality, tried in this order
_CAPTIONS = {
    PromptKind.TWO_IMAGE: ("star", "reference", "inspected"),
    PromptKind.ONE_IMAGE: ("inspected",),
    PromptKind.STACKED: ("worked example", "reference above, inspected below"),
}


@dataclass(frozen=True)
class Picture:
    """A picture of the report, stored once and shown wherever its key is used.

    Attributes:
        key: Name of the picture in the page.
        uri: Data URI of a JPEG file.
        width: px.
        height: px.
    """

    key: str
    uri: str
    width: int
    height: int


@dataclass(frozen=True)
class Turn:
    """One turn of a chat.

    Attributes:
        pictures: Caption and path in the images folder, of each picture.
        words: The text; empty for a row without messages.
        answer: Lines of the worked answer; empty for the turn that the model has to answer.
    """

    pictures: tuple[tuple[str, str], ...]
    words: str
    answer: tuple[str, ...]


@dataclass(frozen=True)
class Reply:
    """The model's answer in one shot.

    Attributes:
        shot: `zero-shot` or `one-shot`.
        lines: Each line of the answer, and whether it differs from the expected line.
        problem: Why the answer cannot be parsed, else empty.
        p_defective: P(defective), 0..1; None where not measured.
        addresses: P(address) of every pin in the order of the layout; empty where not measured.
        entropy: Entropy of `addresses`, in bits; None where not measured.
        evidence: Where the model looked; None where not measured.
    """

    shot: str
    lines: Lines
    problem: str
    p_defective: float | None
    addresses: tuple[float, ...]
    entropy: float | None
    evidence: EvidenceMap | None


@dataclass(frozen=True)
class Case:
    """A capture with the expected answer and the model's replies.

    Attributes:
        name: Name that the user gave the capture.
        source: `camera` or `virtual`.
        view: `RAW` or `DST`.
        image_type: Such as `CYLN_RAW`.
        kind: Kind of prompt.
        expected: Lines of the expected answer.
        position: Expected defect position, `passed` for a passed capture.
        turns: What the model saw and read.
        replies: The replies that are shown.
        right: Names of the shots that are not shown because their answers were right.
        outcome: The worst outcome of the replies, one of `SEVERITY`.
    """

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
        """Return the path of the inspected picture in the images folder."""
        return self.turns[-1].pictures[-1][1]


def find_misses(evaluation: Evaluation) -> list[Case]:
    """Return every case with a wrong answer in some shot, with its wrong replies.

    Cases of production's prompt come before the others, and the costliest outcome first.
    """
    answers, question = evaluation.model_answers, evaluation.question
    build = _CaseBuilder(evaluation)
    cases = [
        build.case(rows, rows[rows["answer"] != rows["expected"]])
        for _, rows in answers.groupby(CASE, sort=True)
        if (rows["answer"] != rows["expected"]).any()
    ]
    return sorted(
        cases,
        key=lambda case: (
            *(case.source, (case.view, case.kind) != (question.view, question.kind), case.kind),
            *(SEVERITY.index(case.outcome), case.name, case.image_type),
        ),
    )


def find_hits(evaluation: Evaluation) -> list[Case]:
    """Return the cases that `first_hits` selects."""
    build = _CaseBuilder(evaluation)
    return [build.case(rows, rows) for rows in first_hits(evaluation.model_answers, evaluation.question)]


class _CaseBuilder:
    def __init__(self, evaluation: Evaluation):
        self._rows: Mapping[str, Row] = {str(row["id"]): row for row in evaluation.rows}
        self._maps = evaluation.examination.evidence.maps
        self._names = evaluation.names

    def case(self, rows: pd.DataFrame, shown: pd.DataFrame) -> Case:
        """Return the case of all shots in `rows`, with the replies in `shown`."""
        first = shown.iloc[0]
        longest = max(shown["id"], key=lambda row_id: len(self._rows[row_id]["images"]))
        return Case(
            name=self._names.get(first["file"], first["file"].rsplit("/", 1)[-1]),
            source=first["source"],
            view=first["view"],
            image_type=first["expected_image_type"],
            kind=first["kind"],
            expected=tuple(first["expected"].split("\n")),
            position=first["expected_defect_position"],
            turns=self._turns(self._rows[longest], PromptKind(first["kind"])),
            replies=tuple(self._reply(row) for _, row in shown.sort_values("shot", key=_shot_order).iterrows()),
            right=tuple(SHOT_NAMES[shot] for shot in SHOTS if shot in set(rows["shot"]) - set(shown["shot"])),
            outcome=worst_outcome(shown),
        )

    def _turns(self, row: Row, kind: PromptKind) -> tuple[Turn, ...]:
        images, captions = list(row["images"]), _CAPTIONS[kind]
        pictures = list(zip(captions[len(captions) - len(images) :], images, strict=True))
        turns: list[Turn] = []
        for message in without_answer(row["messages"]):
            words = " ".join(part["text"] for part in message["content"] if part["type"] == "text")
            if message["role"] == "assistant":
                turns[-1] = Turn(turns[-1].pictures, turns[-1].words, tuple(words.split("\n")))
                continue
            shown = sum(part["type"] == "image" for part in message["content"])
            turns.append(Turn(tuple(pictures[:shown]), words, ()))
            pictures = pictures[shown:]
        return tuple(turns)

    def _reply(self, row: pd.Series) -> Reply:
        return Reply(
            shot=SHOT_NAMES[row["shot"]],
            lines=compared_lines(row["expected"], row["answer"]),
            problem=row["problem"],
            p_defective=measured(row["p_defective"]),
            entropy=measured(row["address_entropy"]),
            addresses=tuple(float(share) for share in str(row["address_probabilities"]).split()),
            evidence=self._maps.get(row["id"]),
        )


def embed_pictures(
    always: Sequence[Case], while_room: Sequence[Case], folder: Path, budget: int = PICTURE_BYTES
) -> tuple[dict[str, Picture], list[Case]]:
    """Encode the pictures of all cases in `always`, and of the first cases in `while_room` that fit into `budget`.

    Many cases make the pictures smaller and coarser, never fewer.

    Args:
        always: Cases whose pictures are all encoded.
        while_room: Further cases.
        folder: Folder of the pictures.
        budget: Bytes of JPEG.

    Returns:
        The pictures by path, and the cases of `while_room` that fit.

    Raises:
        StageInputError: A picture is missing.
    """
    needed = sorted({path for case in always for path in _paths(case)})
    jpegs: dict[str, tuple[bytes, tuple[int, int]]] = {}
    used, (scale, quality) = 0, _ENCODINGS[0]
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


def compared_lines(expected: str, answer: str) -> Lines:
    """Return each line of an answer, and whether it differs from the expected line."""
    lines = expected.split("\n")
    return tuple((line, n >= len(lines) or line != lines[n]) for n, line in enumerate(answer.split("\n")))


def inspected_cell(position: str, layout: Layout, kind: str) -> tuple[float, float, float, float] | None:
    """Locate a pin in the inspected picture of a prompt.

    A composite has a margin of one cell above and at the left of the pin field. A stacked composite holds two of them,
    the inspected capture below.

    Args:
        position: Address of the pin, or `passed`.
        layout: Layout of the pins.
        kind: Kind of prompt.

    Returns:
        Left, top, width and height of the cell as shares of the picture; None for `passed`.
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


def _shot_order(shots: pd.Series) -> pd.Series:
    return shots.map(SHOTS.index)


def measured(value: float) -> float | None:
    """Return a number of a predictions table; None if it was not measured."""
    return None if pd.isna(value) else float(value)


def worst_outcome(answers: pd.DataFrame) -> str:
    """Return the costliest outcome of these answers, one of `SEVERITY`."""
    parses = answers["parses"].astype(bool)
    judged = answers["found_judgement"]
    differs = {name: answers[f"found_{name}"] != answers[f"expected_{name}"] for name in FIELDS}
    outcomes = {
        "escape": parses & differs["judgement"] & (judged == PASSED),
        "not answered": ~parses,
        "overkill": parses & differs["judgement"] & (judged != PASSED),
        "wrong address": parses & differs["defect_position"],
        "wrong mode": parses & differs["defect_mode"],
        "wrong image type": answers["answer"] != answers["expected"],
    }
    return next((name for name, rows in outcomes.items() if rows.any()), "right")


def _jpeg(path: Path, scale: float, quality: int) -> tuple[bytes, tuple[int, int]]:
    try:
        with Image.open(io.BytesIO(read_product(path))) as image:
            picture = image.convert("RGB")
    except OSError as error:
        raise StageInputError(f"{path}: not readable ({error}), but the report shows it; run dvc repro") from None
    if scale != 1.0:
        size = round(picture.width * scale), round(picture.height * scale)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue(), picture.size
