"""The changed prompts of the controls, drawn from zero-shot rows of the chat dataset.

* blank: the inspected pin field becomes uniform grey;
* swapped: reference and inspected capture change places;
* other_shape: the reference is one of another shape;
* shuffled_letters: the digits and letters of the address grid are permuted, on all images alike;
* lighting: the inspected photograph is taken under other light.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pinspect.core.answers import DEFECTIVE, PASSED, Answer, AnswerContract, AnswerKind
from pinspect.core.layout import Layout
from pinspect.core.prompts import ZERO_SHOT, PromptKind
from pinspect.model.augmentation import Augmentation

CONTROL_CAPTURES = 60  # at most, half of them defective: the controls ask eight times about each

_GAMMA = 2.2  # of the captures' tone curve: light is proportional to (value / 255) ** 2.2
# LED lamps are rated by L70, the hours until 70 % of the light is left. A line is set up anywhere between the two ends
# of a lamp's life: afterwards the light may fall to 0.7 of what it was, or rise to 1 / 0.7 with a new lamp.
_WORN = 0.7
_TONE = 2.2 / 1.8  # sRGB's curve where an older display's was
_MARK = 64  # brightness that a margin without marks stays below, whatever JPEG has left there

Row = Mapping[str, object]


@dataclass(frozen=True)
class Control:
    """One control as it is put to a model.

    rows: of the chat dataset's form, with absolute image paths. Shuffled ones have `columns` and `letters` besides: the
    column and the row whose mark now stands at each place; relit ones have `light`, the name of the light. originals:
    the rows that they were made from, in the same order. reason: why a control without rows could not be made.
    """

    name: str
    rows: tuple[Row, ...] = ()
    originals: tuple[Row, ...] = ()
    reason: str = ""


def control_rows(rows: Sequence[Row], contract: AnswerContract, view: str, kind: str) -> list[Row]:
    """The rows that controls are made from.

    Zero-shot ones of `view` and `kind`, of the camera or, where it has none, of the virtual line; at most
    `CONTROL_CAPTURES`, passed and defective ones in equal parts as far as there are any, chosen by content hash.
    """
    asked = [row for row in rows if (row["view"], row["kind"], row["shot"]) == (view, kind, ZERO_SHOT)]
    source = "camera" if any(row["source"] == "camera" for row in asked) else "virtual"
    ordered = sorted((row for row in asked if row["source"] == source), key=lambda row: _lot(row, "control"))
    passed, defective = (
        [row for row in ordered if labelled(row, contract).judgement == judgement] for judgement in (PASSED, DEFECTIVE)
    )
    half = CONTROL_CAPTURES // 2
    return passed[: max(half, 2 * half - len(defective))] + defective[: max(half, 2 * half - len(passed))]


def make_controls(rows: Sequence[Row], images: Path, folder: Path, layout: Layout) -> list[Control]:
    """Every control of `rows`, in the order of `MAKERS`; pictures are written to `folder` without loss.

    Raises StageInputError for an image that is missing in `images`.
    """
    if not rows:
        return [Control(name, reason="no capture is asked about with production's prompt") for name in MAKERS]
    return [make(_Workshop(name, rows, images, folder, layout)) for name, make in MAKERS.items()]


def labelled(row: Row, contract: AnswerContract) -> Answer:
    """The expected answer of a row."""
    return contract.parse(str(row["answer"]), AnswerKind(row["answer_kind"]))


def pictures_of(row: Row, images: Path = Path()) -> list[np.ndarray]:
    """The images of a row, uint8 (H, W, 3) each. Raises StageInputError for one that is missing."""
    from pinspect.model.rows import read_composite  # loads torch, which scoring and the report do without

    return [read_composite(images / name) for name in row["images"]]


class _Workshop:
    """Takes prompts apart into single composites (reference, inspected) and puts them together again."""

    def __init__(self, name: str, rows: Sequence[Row], images: Path, folder: Path, layout: Layout) -> None:
        self.name, self.rows, self.images, self.folder, self.layout = name, rows, images, folder, layout

    @property
    def compares(self) -> bool:
        """Whether these prompts show a reference."""
        return self.rows[0]["kind"] != PromptKind.ONE_IMAGE

    def singles(self, row: Row) -> list[np.ndarray]:
        """The composites of `row`, uint8 (H, W, 3) each: the reference's, if there is one, then the inspected one."""
        pictures = pictures_of(row, self.images)
        if row["kind"] == PromptKind.STACKED:
            pictures = np.split(pictures[0], 2)
        return [picture.copy() for picture in pictures]

    def cell(self, single: np.ndarray) -> int:
        """Px a pin."""
        return single.shape[1] // (self.layout.columns + 1)

    def field(self, single: np.ndarray) -> np.ndarray:
        """The pin field of a single composite, without the margins of its grid: a view into it."""
        return single[self.cell(single) :, self.cell(single) :]

    def row(self, original: Row, singles: Sequence[np.ndarray], variant: str = "", **facts: object) -> Row:
        """A row like `original` that shows `singles` instead and holds `facts`."""
        shown = [np.vstack(singles)] if original["kind"] == PromptKind.STACKED else singles
        identity = "-".join(filter(None, (str(original["id"]), self.name, variant)))
        paths = [self.folder / f"{identity}-{number}.png" for number in range(len(shown))]
        for picture, path in zip(shown, paths, strict=True):
            Image.fromarray(picture).save(path, compress_level=1)
        return {**original, "id": identity, "images": [str(path) for path in paths], **facts}

    def each(self, change: Callable[[Row, list[np.ndarray]], Row]) -> Control:
        """The control that `change` makes of every row."""
        return Control(self.name, tuple(change(row, self.singles(row)) for row in self.rows), tuple(self.rows))

    def none(self, reason: str) -> Control:
        """The control that cannot be made."""
        return Control(self.name, reason=reason)


def _blank(shop: _Workshop) -> Control:
    def change(row: Row, singles: list[np.ndarray]) -> Row:
        # The capture's own mean: its brightness stays, all structure goes.
        shop.field(singles[-1])[:] = round(float(shop.field(singles[-1]).mean()))
        return shop.row(row, singles)

    return shop.each(change)


def _swapped(shop: _Workshop) -> Control:
    if not shop.compares:
        return shop.none("a one-image prompt shows no reference")
    return shop.each(lambda row, singles: shop.row(row, singles[::-1]))


def _other_shape(shop: _Workshop) -> Control:
    if not shop.compares:
        return shop.none("a one-image prompt shows no reference")
    first = {row["shape"]: row for row in reversed(shop.rows)}
    shapes = sorted(first)
    if len(shapes) < 2:
        return shop.none(f"all captures are of one shape, {shapes[0]}")
    other = dict(zip(shapes, (*shapes[1:], shapes[0]), strict=True))
    references = {shape: shop.singles(first[other[shape]])[0] for shape in shapes}
    return shop.each(lambda row, singles: shop.row(row, [references[row["shape"]], singles[-1]]))


def _shuffled_letters(shop: _Workshop) -> Control:
    shown = shop.singles(shop.rows[0])[-1]
    if shown[: shop.cell(shown)].max() < _MARK:
        return shop.none("the composites have no address grid (composite.grid)")
    if shop.layout.pins == 1:
        return shop.none("the layout has one pin only")

    def change(row: Row, singles: list[np.ndarray]) -> Row:
        random = np.random.default_rng(int(_lot(row, "letters")[:16], 16))
        marks = tuple(_derangement(random, n) for n in (shop.layout.columns, len(shop.layout.rows)))
        moved = Augmentation(shop.layout, gains=(1.0,), marks=marks)
        columns, letters = marks
        return shop.row(row, [moved.image(single, 0) for single in singles], columns=columns, letters=letters)

    return shop.each(change)


def _lighting(shop: _Workshop) -> Control:
    if shop.rows[0]["view"] != "RAW":
        return shop.none("light changes photographs; the brightness of a distance image means something else")

    def change(row: Row, light: str) -> Row:
        singles = shop.singles(row)
        field = shop.field(singles[-1])
        field[:] = (LIGHTS[light](field.astype(np.float32) / 255) * 255 + 0.5).clip(0, 255)
        return shop.row(row, singles, light.replace(" ", "-"), light=light)

    pairs = [(row, light) for light in LIGHTS for row in shop.rows]
    return Control(shop.name, tuple(change(*pair) for pair in pairs), tuple(row for row, _ in pairs))


MAKERS: dict[str, Callable[[_Workshop], Control]] = {
    "blank": _blank,
    "swapped": _swapped,
    "other_shape": _other_shape,
    "shuffled_letters": _shuffled_letters,
    "lighting": _lighting,
}


def _side_lamp(values: np.ndarray) -> np.ndarray:
    across = np.linspace(_WORN, 1, values.shape[1], dtype=np.float32)[None, :, None]
    return values * across ** (1 / _GAMMA)


# What a light does to the values of a pin field, float32 (H, W, 3) in 0..1; what comes out is clipped.
LIGHTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "dim": lambda values: values * _WORN ** (1 / _GAMMA),
    "bright": lambda values: values * (1 / _WORN) ** (1 / _GAMMA),
    "worn lamp at the left": _side_lamp,
    "darker tone curve": lambda values: values**_TONE,
}


def _derangement(random: np.random.Generator, n: int) -> tuple[int, ...]:
    """A permutation of 0..n-1 that leaves nothing in its place; of one thing, itself."""
    while True:
        found = tuple(random.permutation(n).tolist())
        if n == 1 or all(place != moved for place, moved in enumerate(found)):
            return found


def _lot(row: Row, salt: str) -> str:
    """A hash that orders captures at random, and always alike."""
    return hashlib.sha256(f"{row['sha256']}/{salt}".encode()).hexdigest()
