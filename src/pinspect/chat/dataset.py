"""The chat dataset: composites and labels become rows of instruction, images and expected answer.

Every choice (reference, star, which rows are one-shot) depends on hashes of the capture and of the candidates, never on
their order or number, so new captures leave the rows of old captures unchanged.
"""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pandas as pd

from pinspect.captures.labels import INSPECTED, REFERENCE
from pinspect.captures.references import DST_COLUMNS, RAW_COLUMNS, RawCapture, rank_references, raw_captures
from pinspect.chat.writing import chat_files
from pinspect.core import prompts
from pinspect.core.answers import DEFECTIVE, AnswerContract, AnswerKind
from pinspect.core.errors import StageInputError
from pinspect.core.lines import COLUMNS as LINE_COLUMNS
from pinspect.core.lines import Line, line_rule
from pinspect.core.manifests import MANIFEST, Window, iterate_manifest, manifest_windows, read_manifest
from pinspect.core.params import ChatParams
from pinspect.core.prompts import ONE_SHOT, SHOTS, ZERO_SHOT, PromptKind
from pinspect.core.rows import SPLITS, Row
from pinspect.core.temporary_database import temporary_database

COMPOSITED_COLUMNS = ("file", "raw_file", "kind", "view", "star_position", "reference_file")


T = TypeVar("T")


@dataclass(frozen=True)
class Worked:
    """The worked example of a one-shot prompt: a composite, relative to its folder, and the answer to it."""

    image: str
    answer: str


@dataclass(frozen=True)
class ChatDataset:
    """The chat dataset.

    Attributes:
        rows: Split -> rows.
        set_aside: Inspected capture without rows -> the reason that the dst stage gave.
    """

    rows: dict[str, list[Row]]
    set_aside: dict[str, str]


class Examples:
    """Worked examples on rings, ordered by their hashes.

    A choice takes the next example after its own place on a ring. So it takes the same time with few and with many
    captures, and a new example changes the choices of few captures.
    """

    def __init__(self) -> None:
        self._database = temporary_database("""
            CREATE TABLE examples (ring, place, capture, image, answer);
            CREATE INDEX rings ON examples (ring, place);
        """)

    def add(self, ring: str, worked: Worked, capture: str) -> None:
        """Add an example that shows a capture to a ring."""
        row = (ring, _sha256(worked.image, worked.answer), capture, worked.image, worked.answer)
        self._database.execute("INSERT INTO examples VALUES (?, ?, ?, ?, ?)", row)

    def choose(self, ring: str, place: str, capture: RawCapture) -> Worked | None:
        """Return the first example from a place on the ring that shows another capture; None if there is none.

        Args:
            ring: The ring.
            place: A hash in hex.
            capture: The capture that the prompt asks about.
        """
        query = (
            "SELECT image, answer FROM examples WHERE ring = ? AND place >= ? AND capture != ? ORDER BY place LIMIT 1"
        )
        for start in (place, ""):
            if row := self._database.execute(query, (ring, start, capture.file)).fetchone():
                return Worked(*row)
        return None


class Composites:
    """The pictures of the composite stage, by capture, view and line; paths are relative to its folder."""

    def __init__(self, contract: AnswerContract):
        self._contract = contract
        self._references: dict[tuple[str, str], str] = {}
        self._singles: dict[tuple[str, str], str] = {}
        self._stacks: dict[tuple[str, str], dict[str, str]] = {}
        self._examples = Examples()

    def learn(self, composited: pd.DataFrame, captures: Mapping[str, RawCapture]) -> None:
        """Take what the rows of other captures show: the singles of references, and worked examples.

        Args:
            composited: Rows of the manifest, with `COMPOSITED_COLUMNS`.
            captures: The captures that they show, without those set aside.
        """
        for composite, capture in _of_captures(composited, captures):
            view, file = composite["view"], composite["file"]
            if composite["kind"] == "single" and capture.role == REFERENCE:
                self._references[capture.file, view] = file
            elif composite["kind"] == "star" and capture.split == "train":
                address = self._contract.layout.address(composite["star_position"])
                answer = self._contract.render(self._contract.star(capture.shape, view, address), AnswerKind.STAR)
                self._examples.add(f"star {view} {capture.line}", Worked(file, answer), capture.file)
            elif composite["kind"] == "stacked" and capture.split == "train" and capture.judgement == DEFECTIVE:
                worked = Worked(file, self._contract.render(capture.answer(view, self._contract)))
                self._examples.add(f"stacked {view} {capture.line}", worked, capture.file)

    def show(self, composited: pd.DataFrame, captures: Mapping[str, RawCapture]) -> None:
        """Take the singles and stacks of the captures of one window, in place of those of the window before."""
        self._singles, self._stacks = {}, defaultdict(dict)
        for composite, capture in _of_captures(composited, captures):
            if composite["kind"] == "single":
                self._singles[capture.file, composite["view"]] = composite["file"]
            elif composite["kind"] == "stacked":
                self._stacks[capture.file, composite["view"]][composite["reference_file"]] = composite["file"]

    def single(self, capture: RawCapture, view: str) -> str:
        """Return the composite of one capture. Raises StageInputError if there is none."""
        known = self._references if capture.role == REFERENCE else self._singles
        return _require(known.get((capture.file, view)), f"no {view} composite of {capture.file}")

    def stacks(self, capture: RawCapture, view: str) -> dict[str, str]:
        """Return the stacked composites of one capture by the raw file of their reference. Raises StageInputError."""
        return _require(self._stacks.get((capture.file, view)), f"no stacked {view} composite of {capture.file}")

    def star(self, capture: RawCapture, view: str, place: str) -> Worked:
        """Return a star image of the line of the capture, see `Examples`. Raises StageInputError if there is none."""
        worked = self._examples.choose(f"star {view} {capture.line}", place, capture)
        return _require(worked, f"no {view} star composite of {capture.line}")

    def worked_stack(self, capture: RawCapture, view: str, place: str) -> Worked | None:
        """Return a stacked composite of another, defective training capture of the line, see `Examples`."""
        return self._examples.choose(f"stacked {view} {capture.line}", place, capture)


def _of_captures(
    composited: pd.DataFrame, captures: Mapping[str, RawCapture]
) -> Iterator[tuple[dict[str, str], RawCapture]]:
    """Yield each composite with its capture, unless the capture is set aside."""
    columns = {name: composited[name].to_list() for name in COMPOSITED_COLUMNS}
    for values in zip(*columns.values(), strict=True):
        composite = dict(zip(columns, values, strict=True))
        if capture := captures.get(composite["raw_file"]):
            yield composite, capture


class ChatBuilder:
    """Make the rows of inspected captures.

    Attributes:
        composites: The pictures.
        references: The references of each line, best aligned first; evaluation rows show the first.
        contract: The answer contract.
        params: The section `chat`.
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
        self._render = functools.cache(contract.render)  # few different answers, many rows

    def rows(self, capture: RawCapture) -> Iterator[Row]:
        """Yield all rows of one capture.

        A training capture has several rows, each with another reference. A validation or test capture has exactly one
        row per view, kind and shot, always with the same reference.
        """
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
        """Return whether there is a worked example for a one-shot prompt.

        A stacked prompt needs another defective training capture of the line, which a new line may lack.
        """
        if kind is PromptKind.STACKED:
            return self.composites.worked_stack(capture, view, "") is not None
        return kind is PromptKind.TWO_IMAGE

    def _comparisons(self, capture: RawCapture, view: str, kind: PromptKind) -> list[tuple[str, ...]]:
        """Return the images of a zero-shot prompt with each reference in turn, the best aligned one first."""
        inspected = self.composites.single(capture, view)
        if kind is PromptKind.ONE_IMAGE:
            return [(inspected,)]
        references = self.references.get(capture.line, [])
        if kind is PromptKind.TWO_IMAGE:
            return _require(
                [(self.composites.single(reference, view), inspected) for reference in references],
                f"no usable reference of {capture.line}",
            )
        stacks = self.composites.stacks(capture, view)
        return _require(
            [(stacks[reference.file],) for reference in references if reference.file in stacks],
            f"no stacked {view} composite of {capture.file} with a usable reference",
        )

    def _spread_shots(self, rows: int, capture: RawCapture, view: str, kind: PromptKind) -> list[str]:
        """Spread the one-shot share evenly over the rows of a capture.

        A hash decides where the remainder falls, so the share holds over all captures without counting them.
        """
        share = self.params.one_shot_share
        start = self._fraction(capture.sha256, view, kind)
        return [
            ONE_SHOT if int(start + (row + 1) * share) > int(start + row * share) else ZERO_SHOT for row in range(rows)
        ]

    def _worked(self, capture: RawCapture, view: str, kind: PromptKind, number: int) -> Worked | None:
        choose = self.composites.star if kind is PromptKind.TWO_IMAGE else self.composites.worked_stack
        return choose(capture, view, self._digest(capture.sha256, view, str(number)))

    def _row(
        self, capture: RawCapture, view: str, kind: PromptKind, shot: str, images: tuple[str, ...], number: int
    ) -> Row:
        worked = self._worked(capture, view, kind, number) if shot == ONE_SHOT else None
        shown = [*([worked.image] if worked else []), *images]
        answer_kind = prompts.answer_kind_of(kind)
        answer = self._render(capture.answer(view, self.contract), answer_kind)
        messages = _messages(kind, view, answer, worked.answer if worked else None)
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

    def _ranked(self, images: Sequence[tuple[str, ...]], capture: RawCapture, view: str) -> list[tuple[str, ...]]:
        """Sort images by a hash with the capture; new images leave the order of the others unchanged."""
        return sorted(images, key=lambda each: self._digest(capture.sha256, view, repr(each)))

    def _fraction(self, *parts: str) -> float:
        return int(self._digest(*parts)[:8], 16) / 16**8

    def _digest(self, *parts: str) -> str:
        return _sha256(str(self.params.seed), *parts)


def _sha256(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class _Captures:
    """The captures of one window.

    Attributes:
        captures: All of them.
        usable: Those that the dst stage has not set aside, by file.
        aligned: Their rows of the dst manifest.
        composited: Their rows of the manifest of composites.
        errors: The reason for each capture that the dst stage has set aside, by file.
    """

    captures: list[RawCapture]
    usable: dict[str, RawCapture]
    aligned: pd.DataFrame
    composited: pd.DataFrame
    errors: dict[str, str]


class ChatSource:
    """The rows of the chat dataset, made window by window from the folders of the three stages before it.

    Attributes:
        set_aside: Inspected capture without rows -> the reason that the dst stage gave.
    """

    def __init__(self, raw: Path, dst: Path, composited: Path, contract: AnswerContract, params: ChatParams):
        """Read what the rows of all captures share.

        Args:
            raw: The raw folder.
            dst: The dst folder.
            composited: The folder of the composites.
            contract: The answer contract.
            params: The section `chat`.

        Raises:
            StageInputError: A manifest is missing, or a reference lies outside the training split.
        """
        self._manifests = [folder / MANIFEST for folder in (raw, dst, composited)]
        self._windows = manifest_windows(self._manifests[0])
        self._rule = line_rule(iterate_manifest(self._manifests[0], LINE_COLUMNS))
        self._read = functools.lru_cache(maxsize=1)(self._read_window)
        self._sources: set[str] = set()
        self.set_aside: dict[str, str] = {}
        composites = Composites(contract)
        references: list[RawCapture] = []
        aligned: list[pd.DataFrame] = []
        for window in self._windows:
            part = self._read(window)
            composites.learn(part.composited, part.usable)
            of_window = [capture for capture in part.captures if capture.role == REFERENCE]
            references += of_window
            aligned.append(part.aligned[part.aligned["file"].isin([capture.file for capture in of_window])])
            inspected = [capture for capture in part.captures if capture.role == INSPECTED]
            self._sources |= {capture.source for capture in inspected}
            self.set_aside |= {
                capture.file: part.errors[capture.file] for capture in inspected if capture.file in part.errors
            }
        ranked = rank_references(references, pd.concat(aligned))
        self._builder = ChatBuilder(composites, ranked, contract, params)

    def rows(self) -> Iterator[Row]:
        """Yield all rows, ordered by source, file, view, kind and number.

        Raises:
            StageInputError: A composite or a reference that a row needs is missing.
        """
        for source in sorted(self._sources):
            for window in self._windows:
                part = self._read(window)
                self._builder.composites.show(part.composited, part.usable)
                for capture in sorted(part.usable.values(), key=lambda capture: capture.file):
                    if capture.role == INSPECTED and capture.source == source:
                        yield from self._builder.rows(capture)

    def _read_window(self, window: Window) -> _Captures:
        raw, dst, composited = self._manifests
        captures = raw_captures(read_manifest(raw, RAW_COLUMNS, window), self._rule)
        aligned = read_manifest(dst, DST_COLUMNS, window)
        errors = dict(aligned.loc[aligned["error"] != "", ["file", "error"]].itertuples(index=False))
        usable = {capture.file: capture for capture in captures if capture.file not in errors}
        return _Captures(captures, usable, aligned, read_manifest(composited, COMPOSITED_COLUMNS, window), errors)


def build_chat(raw: Path, dst: Path, composited: Path, contract: AnswerContract, params: ChatParams) -> ChatDataset:
    """Make the whole chat dataset in memory; see `ChatSource` for the arguments and `ChatSource.rows` for the order."""
    source = ChatSource(raw, dst, composited, contract, params)
    rows: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for row in source.rows():
        rows[row["split"]].append(row)
    return ChatDataset(rows, source.set_aside)


def write_chat(dataset: ChatDataset, folder: Path) -> None:
    """Write a dataset in memory as `chat_files` does."""
    with chat_files(folder) as write:
        for split in SPLITS:
            for row in dataset.rows[split]:
                write(row)


@functools.cache  # rows of equal wording share their messages: nobody changes them
def _messages(kind: PromptKind, view: str, answer: str, example: str | None) -> list[prompts.Message]:
    if kind is PromptKind.TWO_IMAGE:
        return prompts.two_image(view, answer, star=example)
    if kind is PromptKind.STACKED:
        return prompts.stacked(view, answer, worked=example)
    return prompts.one_image(view, answer)


def _require(part: T | None, missing: str) -> T:
    if not part:
        raise StageInputError(f"data/composited/manifest.csv: {missing}; run `dvc repro -f composite`")
    return part
