"""Batches of pre-text for the lessons of the base, drawn from the rendered pool.

1. see: pictures, and the class of every cell;
2. compare: chats of every prompt kind, with the class of every cell of their pictures;
3. join: the same, with counterexamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pinspect.composites import drawing as composite
from pinspect.core import prompts
from pinspect.core.answers import VIEWS, AnswerContract, AnswerKind
from pinspect.core.layout import Address, Layout
from pinspect.model.augmentation import move_marks
from pinspect.model.batching import IGNORED, EncodedChat, collate, encode_chat
from pinspect.model.processor import ImageTextProcessor, patchify
from pinspect.pretraining import pretext
from pinspect.pretraining.base import MERGE, PATCH
from pinspect.pretraining.mirrors import MirroredSetup
from pinspect.pretraining.pretext import CELL_CLASSES, SetupPool

MARGIN_CLASS = len(CELL_CLASSES)
Marks = tuple[list[int], list[int]]  # for each column, and for each row, the index of the mark that is shown there
STAR_CLASS = CELL_CLASSES.index("star")
IMAGE_TYPES = tuple(f"{shape}_{view}" for shape in pretext.SHAPES for view in VIEWS)
CHAT_KINDS = ("star", "grid", "two_image", "one_shot", "one_image", "stacked")
CHAT_SHARES = (0.07, 0.06, 0.43, 0.15, 0.11, 0.18)
SHUFFLED_MARKS = 0.25  # share of the see lesson's inspected pictures whose grid marks change places
CHANGED_REFERENCES = 0.25  # share of the compare lesson's references with changed pins: the answer ignores these pins
# Shares of the join lesson's counterexamples: references of another set-up and shape, and chats with other marks.
OTHER_SHAPE, OTHER_MARKS = 0.15, 0.15


class Lessons:
    """Draws batches of pre-text from the rendered pool.

    Args:
        pool: The rendered set-ups.
        processor: The processor of the base.
        layout: The pins.
        cell: Side of one pin's cell in px.
        views: The views that are shown.
    """

    def __init__(
        self,
        pool: list[SetupPool],
        processor: ImageTextProcessor,
        layout: Layout,
        cell: int,
        views: tuple[str, ...] = VIEWS,
    ) -> None:
        self.pool, self.layout, self.cell, self.views = pool, layout, cell, views
        self.processor: Any = processor
        self.image_tokens = (len(layout.rows) + 1) * (layout.columns + 1)
        self._chats: dict[tuple[object, ...], EncodedChat] = {}
        self._unchanged = np.zeros(layout.pins, np.int8)

    def see(self, rng: np.random.Generator, images: int) -> dict[str, torch.Tensor]:
        """Draw pictures and the class of each cell; about 10 % are star images, some are stacked.

        The marks of some grids change places, so that reading a mark takes more than knowing its place.

        Args:
            rng: Source of the random choices.
            images: Minimum number of pictures.

        Returns:
            See `_Pictures.batch`.
        """
        pictures = _Pictures()
        while len(pictures.cells) < images:
            setup, view = self._setup(rng), str(rng.choice(self.views))
            draw = rng.random()
            if draw < 0.1:
                self._star(rng, setup, view, pictures)
            elif draw < 0.2:
                self._stack(rng, setup, view, int(rng.integers(len(setup.cells))), pictures)
            else:
                self._inspected(setup, view, int(rng.integers(len(setup.cells))), pictures)
                if rng.random() < SHUFFLED_MARKS:
                    self._shuffle_marks(rng, pictures)
        return pictures.batch(self.layout)

    def compare(
        self, rng: np.random.Generator, chats: int, *, counterexamples: bool = False
    ) -> dict[str, torch.Tensor]:
        """Draw chats of every prompt kind.

        Args:
            rng: Source of the random choices.
            chats: Number of chats.
            counterexamples: Whether some references of two-image chats have another shape, and the grids of some chats
                have other marks; neither changes an answer.

        Returns:
            The padded chats with `labels`; the pictures, see `_Pictures.batch`; `last`: int64 (chats,), the index of
            each chat's inspected picture; `looks`: see `_looks`.
        """
        return self.compare_in_parts(rng, chats, 1, counterexamples=counterexamples)[0]

    def compare_in_parts(
        self, rng: np.random.Generator, chats: int, parts: int, *, counterexamples: bool = False
    ) -> list[dict[str, torch.Tensor]]:
        """Draw chats as `compare` does, in parts of similar length, which saves padding.

        Args:
            rng: Source of the random choices.
            chats: Number of chats.
            parts: Number of parts.
            counterexamples: See `compare`.

        Returns:
            The parts, the one with the longest chats first; each as `compare` returns it.
        """
        drawn = [self._chat(rng, counterexamples) for _ in range(chats)]
        drawn.sort(key=lambda chat: -len(chat.encoded.input_ids))
        size = -(-chats // parts)
        return [self._batch(drawn[start : start + size]) for start in range(0, chats, size)]

    def _chat(self, rng: np.random.Generator, counterexamples: bool) -> _Chat:
        setup, view = self._setup(rng), str(rng.choice(self.views))
        kind, pictures = str(rng.choice(CHAT_KINDS, p=CHAT_SHARES)), _Pictures()
        draw = {
            "star": self._star_chat,
            "grid": self._grid_chat,
            "one_image": self._one_image_chat,
            "stacked": self._stacked_chat,
        }
        encoded = draw.get(kind, self._two_image_chat)(rng, setup, view, kind, pictures)
        if counterexamples:
            self._counterexample(rng, setup, view, kind, pictures)
        pin = _only_changed_pin(pictures.cells[-1])
        looked_at = self._marked_cells if kind == "grid" else [] if pin is None else [self._cell(pin)]
        return _Chat(encoded, pictures, looked_at)

    def _batch(self, chats: Sequence[_Chat]) -> dict[str, torch.Tensor]:
        tokenizer = self.processor.tokenizer
        batch = collate(
            [chat.encoded for chat in chats], tokenizer.pad_token_id, self.processor.image_token_id, answers=True
        )
        last = np.cumsum([len(chat.pictures.cells) for chat in chats]) - 1
        looks = self._looks(batch, [chat.looked_at for chat in chats])
        pictures = _Pictures.joined([chat.pictures for chat in chats]).batch(self.layout)
        return batch | pictures | {"last": torch.from_numpy(last), "looks": looks}

    def _counterexample(
        self, rng: np.random.Generator, setup: MirroredSetup, view: str, kind: str, pictures: _Pictures
    ) -> None:
        """Make some of the chats counterexamples."""
        draw = rng.random()
        if draw < OTHER_SHAPE and kind in ("two_image", "one_shot"):
            other = self._setup(rng, other_than=setup.shape)
            pictures.replace(-2, other.reference(rng, view), self._unchanged, f"{other.shape}_{view}")
        elif 1 - draw < OTHER_MARKS and kind != "grid":
            marks = self._draw_marks(rng)
            for number in range(len(pictures.cells)):
                pictures.move_marks(number, marks, self.cell)

    def _looks(self, batch: dict[str, torch.Tensor], looked_at: list[list[int]]) -> torch.Tensor:
        """Return which image token each part of an answer should attend to: int64 (looks, 3) of chat, position, token.

        In an answer that names a pin, the positions before the mode, the column and the row attend to that pin. In an
        answer about the grid, the position before each mark attends to the cell of that mark.

        Args:
            batch: The padded chats.
            looked_at: For each chat, cells of the last picture in reading order: the pin, all marks, or nothing.
        """
        tokenizer = self.processor.tokenizer
        colon, comma, arrow, mode = tokenizer.convert_tokens_to_ids([":", ",", "->", "\u0120mode"])
        looks = []
        for chat, (ids, labels, cells) in enumerate(zip(batch["input_ids"], batch["labels"], looked_at, strict=True)):
            if not cells:
                continue
            in_answer = labels != IGNORED
            if len(cells) == 1:
                guided = in_answer & ((ids == colon) | ((ids == arrow) & (ids.roll(1) == mode)))
            else:
                guided = in_answer & ((ids == comma) | (ids == arrow))
            start = int(batch["mm_token_type_ids"][chat].nonzero()[-self.image_tokens])
            positions = guided.nonzero()[:, 0].tolist()
            targets = cells * len(positions) if len(cells) == 1 else cells
            looks += [(chat, position, start + cell) for position, cell in zip(positions, targets, strict=True)]
        return torch.tensor(looks, dtype=torch.long).view(-1, 3)

    def _cell(self, pin: int) -> int:
        """Return the cell of a pin among all cells of a single composite, in reading order, margins included."""
        row, column = divmod(pin, self.layout.columns)
        return (row + 1) * (self.layout.columns + 1) + column + 1

    @property
    def _marked_cells(self) -> list[int]:
        """The cells of the grid's marks: columns from the left, then rows from above."""
        width = self.layout.columns + 1
        return [*range(1, width), *(width * (row + 1) for row in range(len(self.layout.rows)))]

    def _setup(self, rng: np.random.Generator, other_than: str = "") -> MirroredSetup:
        """Draw a set-up, whose shape is not `other_than`, in one of four mirror images."""
        pool = [each for each in self.pool if each.shape != other_than] if other_than else self.pool
        return MirroredSetup(pool[rng.integers(len(pool))], self.layout, self.cell, *(rng.random(2) < 0.5))

    def _star(self, rng: np.random.Generator, setup: MirroredSetup, view: str, pictures: _Pictures) -> Address:
        """Add a star image; return the star's address."""
        picture = setup.reference(rng, view)
        pin = int(rng.integers(self.layout.pins))
        address = self.layout.addresses[pin]
        cells = self._unchanged.copy()
        cells[pin] = STAR_CLASS
        pictures.add(composite.draw_star(picture, address, self.layout, self.cell), cells, f"{setup.shape}_{view}")
        return address

    def _reference(
        self, rng: np.random.Generator, setup: MirroredSetup, view: str, pictures: _Pictures, changed_share: float = 0.0
    ) -> None:
        """Add a reference; `changed_share` of the references have changed pins, which no answer mentions."""
        if changed_share and rng.random() < changed_share:
            self._inspected(setup, view, int(rng.integers(len(setup.cells))), pictures)
            return
        picture = setup.reference(rng, view)
        pictures.add(picture, self._unchanged, f"{setup.shape}_{view}")

    def _inspected(self, setup: MirroredSetup, view: str, index: int, pictures: _Pictures) -> None:
        pictures.add(setup.inspected(view, index), setup.cells[index], f"{setup.shape}_{view}")

    def _stack(
        self,
        rng: np.random.Generator,
        setup: MirroredSetup,
        view: str,
        index: int,
        pictures: _Pictures,
        changed_share: float = 0.0,
    ) -> None:
        self._reference(rng, setup, view, pictures, changed_share)
        self._inspected(setup, view, index, pictures)
        pictures.stack()

    def _draw_marks(self, rng: np.random.Generator) -> Marks:
        columns, rows = rng.permutation(self.layout.columns), rng.permutation(len(self.layout.rows))
        return columns.tolist(), rows.tolist()

    def _shuffle_marks(self, rng: np.random.Generator, pictures: _Pictures) -> Marks:
        """Let the grid marks of the last picture change places; return the mark of each column and each row."""
        marks = self._draw_marks(rng)
        pictures.move_marks(-1, marks, self.cell)
        return marks

    def _star_chat(
        self, rng: np.random.Generator, setup: MirroredSetup, view: str, kind: str, pictures: _Pictures
    ) -> EncodedChat:
        address = self._star(rng, setup, view, pictures)
        answer = pretext.neutral_star(self.layout, setup.shape, view, address)
        return self._encode((kind, answer), lambda: prompts.simple(kind, answer), [1])

    def _grid_chat(
        self, rng: np.random.Generator, setup: MirroredSetup, view: str, kind: str, pictures: _Pictures
    ) -> EncodedChat:
        self._inspected(setup, view, int(rng.integers(len(setup.cells))), pictures)
        contract = AnswerContract(self.layout, pretext.SHAPES, pretext.CHANGES)
        answer = contract.render_grid(contract.grid(*self._shuffle_marks(rng, pictures)))
        return self._encode((kind, answer), lambda: prompts.simple(kind, answer), [1])

    def _two_image_chat(
        self, rng: np.random.Generator, setup: MirroredSetup, view: str, kind: str, pictures: _Pictures
    ) -> EncodedChat:
        star = None
        if kind == "one_shot":
            address = self._star(rng, setup, view, pictures)
            star = pretext.neutral_star(self.layout, setup.shape, view, address)
        index = int(rng.integers(len(setup.cells)))
        self._reference(rng, setup, view, pictures, CHANGED_REFERENCES)
        self._inspected(setup, view, index, pictures)
        answer = self._answer(setup, view, index, AnswerKind.COMPARISON)
        heights = [1] * (2 if star is None else 3)
        return self._encode((kind, view, star, answer), lambda: prompts.two_image(view, answer, star), heights)

    def _one_image_chat(
        self, rng: np.random.Generator, setup: MirroredSetup, view: str, kind: str, pictures: _Pictures
    ) -> EncodedChat:
        index = int(rng.integers(len(setup.cells)))
        self._inspected(setup, view, index, pictures)
        answer = self._answer(setup, view, index, AnswerKind.DISCRIMINATION)
        return self._encode((kind, view, answer), lambda: prompts.one_image(view, answer), [1])

    def _stacked_chat(
        self, rng: np.random.Generator, setup: MirroredSetup, view: str, kind: str, pictures: _Pictures
    ) -> EncodedChat:
        worked = None
        single = np.flatnonzero((setup.cells > 0).sum(1) == 1)
        if len(single) and rng.random() < 1 / 3:
            index = int(rng.choice(single))
            self._stack(rng, setup, view, index, pictures)
            worked = self._answer(setup, view, index, AnswerKind.COMPARISON)
        index = int(rng.integers(len(setup.cells)))
        self._stack(rng, setup, view, index, pictures, CHANGED_REFERENCES)
        answer = self._answer(setup, view, index, AnswerKind.COMPARISON)
        heights = [2] if worked is None else [2, 2]
        return self._encode((kind, view, worked, answer), lambda: prompts.stacked(view, answer, worked), heights)

    def _answer(self, setup: MirroredSetup, view: str, index: int, kind: AnswerKind) -> str | None:
        # If several pins changed, no single answer is right, and only the throw-away heads learn from the picture.
        return pretext.neutral_answer(self.layout, setup.shape, view, setup.cells[index], kind)

    def _encode(
        self, key: tuple[object, ...], messages: Callable[[], list[prompts.Message]], heights: list[int]
    ) -> EncodedChat:
        """Return the encoded chat; heights: for each image the number of pictures that are stacked in it."""
        if key not in self._chats:
            neutral = pretext.neutral_messages(messages())
            self._chats[key] = encode_chat(self.processor, neutral, [self.image_tokens * height for height in heights])
        return self._chats[key]


def cell_targets(cells: np.ndarray, layout: Layout) -> torch.Tensor:
    """Return the class of every visual token of single composites, margins included.

    Args:
        cells: Integers (n, pins).
        layout: The pins.

    Returns:
        int64 (n, tokens) in reading order; margins are MARGIN_CLASS.
    """
    tokens = np.full((len(cells), len(layout.rows) + 1, layout.columns + 1), MARGIN_CLASS)
    tokens[:, 1:, 1:] = cells.reshape(len(cells), len(layout.rows), layout.columns)
    return torch.from_numpy(tokens.reshape(len(cells), -1)).long()


def mark_targets(marks: Sequence[Marks | None], layout: Layout) -> torch.Tensor:
    """Return the index of the mark in every marked cell.

    Args:
        marks: For each picture its marks; None for marks at their places.
        layout: The pins.

    Returns:
        int64 (n, columns + rows): the column marks from the left, then the row marks from above; row marks have the
        indices after those of the column marks.
    """
    at_their_places = list(range(layout.columns)), list(range(len(layout.rows)))
    shown = [at_their_places if picture is None else picture for picture in marks]
    return torch.tensor([[*columns, *(layout.columns + row for row in rows)] for columns, rows in shown])


def _only_changed_pin(cells: np.ndarray) -> int | None:
    """Return the index of the only changed pin; None if no pin or several pins changed."""
    changed = np.flatnonzero(cells)
    return int(changed[0]) if len(changed) == 1 else None


class _Pictures:
    """The pictures of a batch.

    The patches of a stacked image are those of its upper picture followed by those of its lower picture, so a stack
    differs from two pictures in `image_grid_thw` only.
    """

    def __init__(self) -> None:
        self.cells: list[np.ndarray] = []
        self.marks: list[Marks | None] = []  # None: every mark at its place
        self._pictures: list[np.ndarray] = []
        self._types: list[int] = []
        self._heights: list[int] = []  # of each image, in pictures

    @classmethod
    def joined(cls, parts: Sequence[_Pictures]) -> _Pictures:
        """Return the pictures of several batches as one."""
        whole = cls()
        for part in parts:
            for name, values in vars(part).items():
                getattr(whole, name).extend(values)
        return whole

    def add(self, picture: np.ndarray, cells: np.ndarray, image_type: str) -> None:
        """Add a picture, uint8 (H, W, 3), with the class of each pin and its image type."""
        self._pictures.append(picture)
        self._types.append(IMAGE_TYPES.index(image_type))
        self.cells.append(cells)
        self.marks.append(None)
        self._heights.append(1)

    def replace(self, number: int, picture: np.ndarray, cells: np.ndarray, image_type: str) -> None:
        """Show another picture in place of the one with this number; see `add`."""
        self._pictures[number], self.cells[number] = picture, cells
        self._types[number] = IMAGE_TYPES.index(image_type)

    def move_marks(self, number: int, marks: Marks, cell: int) -> None:
        """Let the grid marks of a picture, whose cells are `cell` px wide, change places."""
        move_marks(self._pictures[number], cell, *marks)
        self.marks[number] = marks

    def stack(self) -> None:
        """Stack the last two pictures to one image, the earlier picture above."""
        self._heights[-2:] = [2]

    def batch(self, layout: Layout) -> dict[str, torch.Tensor]:
        """Return the batch.

        `pixel_values` and `image_grid_thw` are Qwen3-VL's inputs. `seen`: int64 (pictures, tokens), the class of every
        visual token. `marks`: int64 (pictures, columns + rows), see `mark_targets`. `types`: int64 (pictures,), the
        image types.
        """
        rows, columns = (side // PATCH for side in self._pictures[0].shape[:2])
        return {
            "pixel_values": patchify(self._pictures, PATCH, MERGE),
            "image_grid_thw": torch.tensor([[1, rows * height, columns] for height in self._heights]),
            "seen": cell_targets(np.stack(self.cells), layout),
            "marks": mark_targets(self.marks, layout),
            "types": torch.tensor(self._types),
        }


@dataclass(frozen=True)
class _Chat:
    """A chat of the compare lesson, its pictures, and the cells of the last one that its answer looks at."""

    encoded: EncodedChat
    pictures: _Pictures
    looked_at: list[int]
