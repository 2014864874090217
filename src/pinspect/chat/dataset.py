"""The chat dataset: composites and labels become rows of instruction, images and expected answer.

Every choice (which reference, which star, which rows are one-shot) hangs on hashes of the capture and of the
candidates, never on their order or number: when captures are added, the rows of the old ones stay.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pinspect.captures.references import DST_COLUMNS, RAW_COLUMNS, RawCapture, rank_references, raw_captures
from pinspect.core import prompts
from pinspect.core.answers import DEFECTIVE, AnswerContract, AnswerKind
from pinspect.core.errors import StageInputError
from pinspect.core.files import write_file
from pinspect.core.lines import Line
from pinspect.core.manifests import MANIFEST, read_manifest
from pinspect.core.params import ChatParams
from pinspect.core.prompts import ONE_SHOT, SHOTS, ZERO_SHOT, PromptKind
from pinspect.core.rows import SPLITS, Row

COMPOSITED_COLUMNS = ("file", "raw_file", "kind", "view", "star_position", "reference_file")


@dataclass(frozen=True)
class Worked:
    """The worked example of a one-shot prompt: a composite and the answer to it."""

    image: str
    answer: str


@dataclass(frozen=True)
class ChatDataset:
    """The rows of every split, and the inspected captures without rows (file -> the reason given by the dst stage)."""

    rows: dict[str, list[Row]]
    set_aside: dict[str, str]


class Composites:
    """What the composite stage has made, found by capture, view and line. Image paths are relative to its folder."""

    def __init__(self, composited: pd.DataFrame, captures: dict[str, RawCapture], contract: AnswerContract):
        self._singles: dict[tuple[str, str], str] = {}
        self._stars: dict[tuple[Line, str], list[Worked]] = defaultdict(list)
        self._stacks: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
        self._worked_stacks: dict[tuple[Line, str], list[tuple[str, Worked]]] = defaultdict(list)
        for composite in composited.itertuples():
            capture, view = captures.get(composite.raw_file), composite.view
            if capture is None:  # set aside
                continue
            if composite.kind == "single":
                self._singles[capture.file, view] = composite.file
            elif composite.kind == "star" and capture.split == "train":
                address = contract.layout.address(composite.star_position)
                answer = contract.render(contract.star(capture.shape, view, address), AnswerKind.STAR)
                self._stars[capture.line, view].append(Worked(composite.file, answer))
            elif composite.kind == "stacked":
                self._stacks[capture.file, view][composite.reference_file] = composite.file
                if capture.split == "train" and capture.judgement == DEFECTIVE:
                    worked = Worked(composite.file, contract.render(capture.answer(view, contract)))
                    self._worked_stacks[capture.line, view].append((capture.file, worked))

    def single(self, capture: RawCapture, view: str) -> str:
        """The composite of one capture."""
        return _found(self._singles.get((capture.file, view)), f"no {view} composite of {capture.file}")

    def stacks(self, capture: RawCapture, view: str) -> dict[str, str]:
        """The stacked composites of one inspected capture, keyed by the raw file of their reference."""
        return _found(self._stacks.get((capture.file, view)), f"no stacked {view} composite of {capture.file}")

    def stars(self, capture: RawCapture, view: str) -> list[Worked]:
        """The star images of the capture's line."""
        name = f"no {view} star composite of {capture.line}"
        return _found(self._stars.get((capture.line, view)), name)

    def worked_stacks(self, capture: RawCapture, view: str) -> list[Worked]:
        """Stacked composites of other, defective training captures of the same line; empty where it has none yet."""
        examples = self._worked_stacks.get((capture.line, view), [])
        return [worked for file, worked in examples if file != capture.file]


class ChatBuilder:
    """Makes the rows of inspected captures.

    references: those of each line, best aligned first; the first one is the reference of every evaluation row.
    """

    def __init__(
        self,
        composites: Composites,
        references: dict[Line, list[RawCapture]],
        contract: AnswerContract,
        params: ChatParams,
    ):
        self.composites = composites
        self.references = references
        self.contract = contract
        self.params = params

    def rows(self, capture: RawCapture) -> Iterator[Row]:
        """All rows of one capture: several for training, each with another reference; for validation and test exactly
        one per view, kind and shot, always with the same reference."""
        for view in self.params.views:
            for kind, count in self.params.kinds.items():
                if capture.split == "train":
                    yield from self._training_rows(capture, view, PromptKind(kind), count)
                else:
                    yield from self._evaluation_rows(capture, view, PromptKind(kind))

    def _training_rows(self, capture: RawCapture, view: str, kind: PromptKind, count: int) -> Iterator[Row]:
        shown = self._ranked(self._comparisons(capture, view, kind), capture, view)[:count]
        shots = self._spread_shots(len(shown), capture, view, kind)
        if not self._has_example(capture, view, kind):
            shots = [ZERO_SHOT] * len(shown)
        for number, (images, shot) in enumerate(zip(shown, shots, strict=True)):
            yield self._row(capture, view, kind, shot, images, number)

    def _evaluation_rows(self, capture: RawCapture, view: str, kind: PromptKind) -> Iterator[Row]:
        images = self._comparisons(capture, view, kind)[0]
        for shot in SHOTS if self._has_example(capture, view, kind) else (ZERO_SHOT,):
            yield self._row(capture, view, kind, shot, images, 0)

    def _has_example(self, capture: RawCapture, view: str, kind: PromptKind) -> bool:
        """Whether a one-shot prompt can be made: a stacked one wants another defective training capture of the line,
        which a young line may lack."""
        if kind is PromptKind.STACKED:
            return bool(self.composites.worked_stacks(capture, view))
        return kind is PromptKind.TWO_IMAGE

    def _comparisons(self, capture: RawCapture, view: str, kind: PromptKind) -> list[tuple[str, ...]]:
        """What a zero-shot prompt can show of `capture`, with each reference in turn, the best aligned one first."""
        inspected = self.composites.single(capture, view)
        if kind is PromptKind.ONE_IMAGE:
            return [(inspected,)]
        references = self.references.get(capture.line, [])
        if kind is PromptKind.TWO_IMAGE:
            return _found(
                [(self.composites.single(reference, view), inspected) for reference in references],
                f"no usable reference of {capture.line}",
            )
        stacks = self.composites.stacks(capture, view)
        return _found(
            [(stacks[reference.file],) for reference in references if reference.file in stacks],
            f"no stacked {view} composite of {capture.file} with a usable reference",
        )

    def _spread_shots(self, rows: int, capture: RawCapture, view: str, kind: PromptKind) -> list[str]:
        """Deal the one-shot share out evenly over the rows of a capture; a hash says where the remainder falls, so
        that the share holds over all captures without counting them."""
        share = self.params.one_shot_share
        start = self._fraction(capture.sha256, view, kind)
        return [
            ONE_SHOT if int(start + (row + 1) * share) > int(start + row * share) else ZERO_SHOT for row in range(rows)
        ]

    def _worked(self, capture: RawCapture, view: str, kind: PromptKind, number: int) -> Worked:
        candidates = self.composites.stars if kind is PromptKind.TWO_IMAGE else self.composites.worked_stacks
        return self._ranked(candidates(capture, view), capture, view, str(number))[0]

    def _row(
        self, capture: RawCapture, view: str, kind: PromptKind, shot: str, images: tuple[str, ...], number: int
    ) -> Row:
        worked = self._worked(capture, view, kind, number) if shot == ONE_SHOT else None
        shown = [*([worked.image] if worked else []), *images]
        answer_kind = prompts.answer_kind_of(kind)
        answer = self.contract.render(capture.answer(view, self.contract), answer_kind)
        messages = _messages(kind, view, answer, worked)
        placeholders = prompts.image_count(messages)
        assert placeholders == len(shown), f"{capture.file}: {placeholders} image placeholders, {len(shown)} images"
        return {
            "id": f"{capture.sha256[:20]}-{view}-{kind}-{shot}-{number}",
            "source": capture.source,
            "split": capture.split,
            "shape": capture.shape,
            "view": view,
            "kind": str(kind),
            "shot": shot,
            "file": capture.file,
            "capture": capture.capture,
            "sha256": capture.sha256,
            "answer_kind": str(answer_kind),
            "answer": answer,
            "images": shown,
            "messages": messages,
        }

    def _ranked(self, candidates: Sequence, capture: RawCapture, *salt: str) -> list:
        """`candidates` in an order that is this capture's own; a new candidate only slips in among the old ones."""
        return sorted(candidates, key=lambda candidate: self._digest(capture.sha256, *salt, repr(candidate)))

    def _fraction(self, *parts: str) -> float:
        return int(self._digest(*parts)[:8], 16) / 16**8

    def _digest(self, *parts: str) -> str:
        return hashlib.sha256("\0".join([str(self.params.seed), *parts]).encode()).hexdigest()


def build_chat(raw: Path, dst: Path, composited: Path, contract: AnswerContract, params: ChatParams) -> ChatDataset:
    """Make the chat dataset out of the folders of the three stages before it.

    Rows are ordered by source, file, view, kind and number. Raises StageInputError when a manifest, a composite or a
    reference that a row needs is missing, or when a reference lies outside the training split.
    """
    labels, aligned = read_manifest(raw / MANIFEST, RAW_COLUMNS), read_manifest(dst / MANIFEST, DST_COLUMNS)
    captures = raw_captures(labels)
    errors = dict(aligned.loc[aligned["error"] != "", ["file", "error"]].itertuples(index=False))
    usable = {capture.file: capture for capture in captures if capture.file not in errors}
    composites = Composites(read_manifest(composited / MANIFEST, COMPOSITED_COLUMNS), usable, contract)
    builder = ChatBuilder(composites, rank_references(labels, aligned), contract, params)
    inspected = [capture for capture in captures if capture.role == "inspected"]
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for capture in sorted(inspected, key=lambda capture: (capture.source, capture.file)):
        if capture.file in usable:
            rows[capture.split].extend(builder.rows(capture))
    require_images((row for split in SPLITS for row in rows[split]), composited)
    return ChatDataset(rows, {capture.file: errors[capture.file] for capture in inspected if capture.file in errors})


def require_images(rows: Iterable[Row], composited: Path) -> None:
    """Raise StageInputError unless every image that a row shows is a file below `composited`."""
    named = {str(image): row["id"] for row in rows for image in row["images"]}
    missing = [image for image in sorted(named) if not (composited / image).is_file()]
    if missing:
        raise StageInputError(
            f"{composited / missing[0]}: not found, though row {named[missing[0]]} shows it "
            f"({len(missing)} images are missing in all); run `dvc repro -f composite`"
        )


def write_chat(dataset: ChatDataset, folder: Path) -> None:
    """Write `<split>.jsonl` for every split, one row a line, each file whole or not at all, training rows last."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in reversed(SPLITS):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in dataset.rows[split])
        write_file(folder / f"{split}.jsonl", "".join(lines))


def count_rows(dataset: ChatDataset, contract: AnswerContract) -> pd.DataFrame:
    """How many rows there are, one line per split, view and shot, one column per defect mode and their sum."""
    modes = ["passed", *contract.defect_modes]
    columns = ["split", "view", "shot", "answer", "answer_kind"]
    rows = pd.DataFrame([row for split in SPLITS for row in dataset.rows[split]], columns=columns)
    rows["mode"] = [
        contract.parse(answer, AnswerKind(kind)).defect_mode
        for answer, kind in zip(rows["answer"], rows["answer_kind"], strict=True)
    ]
    counts = rows.groupby(["split", "view", "shot", "mode"], sort=False).size().unstack(fill_value=0)
    counts = counts.reindex(columns=modes, fill_value=0)
    return counts.assign(rows=counts.sum(axis=1))


def _messages(kind: PromptKind, view: str, answer: str, worked: Worked | None) -> list[prompts.Message]:
    example = worked.answer if worked else None
    if kind is PromptKind.TWO_IMAGE:
        return prompts.two_image(view, answer, star=example)
    if kind is PromptKind.STACKED:
        return prompts.stacked(view, answer, worked=example)
    return prompts.one_image(view, answer)


def _found(candidates, what: str):  # the same type comes back
    if not candidates:
        raise StageInputError(f"data/composited/manifest.csv: {what}; run `dvc repro -f composite`")
    return candidates
