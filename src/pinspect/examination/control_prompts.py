"""Draws the changed prompts of the controls from zero-shot rows of the chat dataset.

* blank: the inspected pin field becomes uniform gray;
* swapped: reference and inspected capture change places;
* other_shape: the reference has another pin shape, and is of the same eye;
* shuffled_letters: the digits and letters of the address grid are permuted, in all images alike;
* lighting: the inspected photograph is relit; a distance image is computed from the relit photograph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pinspect.core.answers import DEFECTIVE, PASSED, Answer, AnswerContract, AnswerKind
from pinspect.core.layout import Layout
from pinspect.core.names import eye_of
from pinspect.core.prompts import PromptKind
from pinspect.core.question import Question, camera_else_virtual
from pinspect.core.rows import Row
from pinspect.model.augmentation import Augmentation
from pinspect.model.rows import read_composite

CONTROL_CAPTURES = 60  # at most, half of them defective: the controls ask about each capture eight times

_GAMMA = 2.2  # tone curve of the captures: light is proportional to (value / 255) ** 2.2
# LED lamps are rated by L70, the hours until 70 % of the light is left. A line can be set up at either end of a lamp's
# life: afterwards the light may fall to 0.7 of its first value, or rise to 1 / 0.7 of it with a new lamp.
_WORN = 0.7
_TONE = 2.2 / 1.8  # the curve of sRGB in place of an older display's curve
Relit = Callable[[Row, Callable[[np.ndarray], np.ndarray]], np.ndarray | None]
_MARK = 64  # a margin without marks is darker than this, JPEG artifacts included


@dataclass(frozen=True)
class Control:
    """One control as it is put to a model.

    Attributes:
        name: Name of the control, such as `blank`.
        rows: Changed rows in the form of the chat dataset, with absolute image paths. Rows with shuffled letters also
            have `columns` and `letters`: the column and the row whose mark now stands at each place. Relit rows have
            `light`, the name of the light.
        originals: The unchanged rows, in the same order.
        reason: Why a control without rows could not be made.
    """

    name: str
    rows: tuple[Row, ...] = ()
    originals: tuple[Row, ...] = ()
    reason: str = ""


def control_rows(rows: Sequence[Row], contract: AnswerContract, question: Question) -> list[Row]:
    """Select the rows that controls are made from.

    Args:
        rows: Rows of one split of the chat dataset.
        contract: The answer contract.
        question: What production asks.

    Returns:
        At most `CONTROL_CAPTURES` rows that ask the question, of the camera or, where it has none, of the virtual line.
        Passed and defective captures in equal parts as far as possible, chosen by content hash.
    """
    ordered = sorted(camera_else_virtual(question.rows(rows)), key=lambda row: draw_key(row, "control"))
    passed, defective = (
        [row for row in ordered if label_of(row, contract).judgement == judgement] for judgement in (PASSED, DEFECTIVE)
    )
    half = CONTROL_CAPTURES // 2
    return passed[: max(half, 2 * half - len(defective))] + defective[: max(half, 2 * half - len(passed))]


def make_controls(
    rows: Sequence[Row], images: Path, folder: Path, layout: Layout, relit: Relit | None = None
) -> list[Control]:
    """Make every control of `rows`, in the order of `MAKERS`.

    Args:
        rows: Rows that `control_rows` selected.
        images: Folder of their images.
        folder: Folder for the images, which are written without compression.
        layout: Layout of the pins.
        relit: Draws the inspected capture of a row under another light. None if the photographs are not at hand: the
            light control then changes composites of photographs, and is not made for distance images.

    Raises:
        StageInputError: An image is missing in `images`.
    """
    if not rows:
        return [Control(name, reason="no test row asks production's question") for name in MAKERS]
    return [make(Prompts(name, rows, images, folder, layout, relit)) for name, make in MAKERS.items()]


def label_of(row: Row, contract: AnswerContract) -> Answer:
    """Return the expected answer of a row."""
    return contract.parse(str(row["answer"]), AnswerKind(row["answer_kind"]))


def pictures_of(row: Row, images: Path = Path()) -> list[np.ndarray]:
    """Read the images of a row.

    Args:
        row: Row of the chat dataset.
        images: Folder that the paths of the images are relative to.

    Returns:
        uint8 (H, W, 3) each, in the order of the prompt.

    Raises:
        StageInputError: An image is missing.
    """
    return [read_composite(images / name) for name in row["images"]]


class Prompts:
    """Splits prompts into single composites (reference, inspected) and joins changed composites to new prompts."""

    def __init__(
        self,
        name: str,
        rows: Sequence[Row],
        images: Path,
        folder: Path,
        layout: Layout,
        relit: Relit | None = None,
    ) -> None:
        self.name, self.rows, self.images, self.folder, self.layout = name, rows, images, folder, layout
        self.relit = relit

    @property
    def compares(self) -> bool:
        """Return whether these prompts show a reference."""
        return self.rows[0]["kind"] != PromptKind.ONE_IMAGE

    def singles(self, row: Row) -> list[np.ndarray]:
        """Return the composites of `row`, uint8 (H, W, 3) each: the reference if any, then the inspected capture."""
        pictures = pictures_of(row, self.images)
        if row["kind"] == PromptKind.STACKED:
            pictures = np.split(pictures[0], 2)
        return [picture.copy() for picture in pictures]

    def cell(self, single: np.ndarray) -> int:
        """Return the pixels per pin."""
        return single.shape[1] // (self.layout.columns + 1)

    def field(self, single: np.ndarray) -> np.ndarray:
        """Return a view of the pin field of a single composite, without the margins of its grid."""
        return single[self.cell(single) :, self.cell(single) :]

    def row(self, original: Row, singles: Sequence[np.ndarray], variant: str = "", **facts: object) -> Row:
        """Return a row like `original` that shows `singles` instead and has `facts` added."""
        shown = [np.vstack(singles)] if original["kind"] == PromptKind.STACKED else singles
        identity = "-".join(filter(None, (str(original["id"]), self.name, variant)))
        return {**original, "id": identity, "images": [str(self._written(picture)) for picture in shown], **facts}

    def _written(self, picture: np.ndarray) -> Path:
        """Return the file of a picture. Many rows share one: most controls change one picture of two."""
        path = self.folder / f"{hashlib.sha256(picture.tobytes()).hexdigest()}.bmp"  # PNG takes ten times as long
        if not path.exists():
            Image.fromarray(picture).save(path)
        return path

    def each(self, change: Callable[[Row, list[np.ndarray]], Row]) -> Control:
        """Return the control that `change` makes of every row."""
        return Control(self.name, tuple(change(row, self.singles(row)) for row in self.rows), tuple(self.rows))

    def none(self, reason: str) -> Control:
        """Return a control that cannot be made."""
        return Control(self.name, reason=reason)


def no_grid_reason(prompts: Prompts) -> str:
    """Return why the marks of the address grid cannot change places; empty if they can."""
    picture = prompts.singles(prompts.rows[0])[-1]
    if picture[: prompts.cell(picture)].max() < _MARK:
        return "the composites have no address grid (composite.grid)"
    return ""


def _blank(prompts: Prompts) -> Control:
    def change(row: Row, singles: list[np.ndarray]) -> Row:
        # The mean of the capture keeps its brightness and removes all structure.
        prompts.field(singles[-1])[:] = round(float(prompts.field(singles[-1]).mean()))
        return prompts.row(row, singles)

    return prompts.each(change)


def _swapped(prompts: Prompts) -> Control:
    if not prompts.compares:
        return prompts.none("a one-image prompt shows no reference")
    return prompts.each(lambda row, singles: prompts.row(row, singles[::-1]))


def _other_shape(prompts: Prompts) -> Control:
    if not prompts.compares:
        return prompts.none("a one-image prompt shows no reference")
    first = {(row["shape"], eye_of(row["capture"])): row for row in reversed(prompts.rows)}
    shapes = sorted({shape for shape, _ in first})
    if len(shapes) < 2:
        return prompts.none(f"all captures are of one shape, {shapes[0]}")
    other = dict(zip(shapes, (*shapes[1:], shapes[0]), strict=True))
    by_shape = {row["shape"]: row for row in reversed(prompts.rows)}

    def change(row: Row, singles: list[np.ndarray]) -> Row:
        shape = other[row["shape"]]
        reference = first.get((shape, eye_of(row["capture"])), by_shape[shape])  # of the same eye, if there is one
        return prompts.row(row, [prompts.singles(reference)[0], singles[-1]])

    return prompts.each(change)


def _shuffled_letters(prompts: Prompts) -> Control:
    if reason := no_grid_reason(prompts):
        return prompts.none(reason)
    if prompts.layout.pins == 1:
        return prompts.none("the layout has one pin only")

    def change(row: Row, singles: list[np.ndarray]) -> Row:
        random = np.random.default_rng(int(draw_key(row, "letters")[:16], 16))
        columns, letters = (_derangement(random, n) for n in (prompts.layout.columns, len(prompts.layout.rows)))
        moved = Augmentation(prompts.layout, gains=(1.0,), marks=(columns, letters))
        return prompts.row(row, [moved.image(single, 0) for single in singles], columns=columns, letters=letters)

    return prompts.each(change)


def _lighting(prompts: Prompts) -> Control:
    is_photograph = prompts.rows[0]["view"] == "RAW"
    if not is_photograph and prompts.relit is None:
        return prompts.none("light changes photographs, and the photographs of these distance images are not at hand")

    def change(row: Row, light: str) -> Row | None:
        singles = prompts.singles(row)
        if is_photograph:
            field = prompts.field(singles[-1])
            field[:] = (LIGHTS[light](field.astype(np.float32) / 255) * 255 + 0.5).clip(0, 255)
        elif prompts.relit is not None:
            drawn = prompts.relit(row, LIGHTS[light])
            if drawn is None:
                return None
            singles[-1] = drawn
        return prompts.row(row, singles, light.replace(" ", "-"), light=light)

    pairs = [(row, change(row, light)) for light in LIGHTS for row in prompts.rows]
    kept = [(row, changed) for row, changed in pairs if changed is not None]
    return Control(prompts.name, tuple(changed for _, changed in kept), tuple(row for row, _ in kept))


MAKERS: dict[str, Callable[[Prompts], Control]] = {
    "blank": _blank,
    "swapped": _swapped,
    "other_shape": _other_shape,
    "shuffled_letters": _shuffled_letters,
    "lighting": _lighting,
}


def _side_lamp(values: np.ndarray) -> np.ndarray:
    across = np.linspace(_WORN, 1, values.shape[1], dtype=np.float32)[None, :, None]
    return values * across ** (1 / _GAMMA)


# Each light maps the values of a pin field, float32 (H, W, 3) in 0..1; the result is clipped to 0..1.
LIGHTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "dim": lambda values: values * _WORN ** (1 / _GAMMA),
    "bright": lambda values: values * (1 / _WORN) ** (1 / _GAMMA),
    "worn lamp at the left": _side_lamp,
    "darker tone curve": lambda values: values**_TONE,
}


def _derangement(random: np.random.Generator, n: int) -> tuple[int, ...]:
    """Return a permutation of 0..n-1 without a fixed point; for n = 1, the identity."""
    while True:
        permutation = tuple(random.permutation(n).tolist())
        if n == 1 or all(place != moved for place, moved in enumerate(permutation)):
            return permutation


def draw_key(row: Row, salt: str) -> str:
    """Return a hash by which captures have a random order that never changes."""
    return hashlib.sha256(f"{row['sha256']}/{salt}".encode()).hexdigest()
