"""Read and write file names of the public series.

A name of the series describes its capture::

    [<set>_][[SQ]<class>_]camera<shot>_<eye>_<lamp 1>_<lamp 2>_<rotation>_<shift x>_<shift y>_<LABEL>.jpg

    42Ym10_camera7_0_300_346_90_008_m006_BENDNG.jpg     pin 4 in row 2, bent down by 10 degrees, left eye
    SQ83D04_camera9_2_495_393_91_012_m001_NUKENG.jpg    square pin 8 in row 3, pulled out by 40 %, right eye
    OK_camera0_0_452_400_89_0_0_OK.jpg                  passed

A class is `OK`, or column digit, row digit (from 1 at the top), direction and amount: `X` right, `Xm` left, `Y` up,
`Ym` down with degrees, or `D` (pulled out) with a share. Shares and shifts are written without their point: `016` is
0.16, `m02` is -0.2. Names of older sets have no class and may have the pin in the label: `NUKE31NG` is pin 3 in row 2,
since older labels count rows from 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePath

from pinspect.core.answers import DEFECTIVE, PASSED, AnswerContract

EYES = ("left", "right")
SQUARE, ROUND = "SQUR", "CYLN"
_EYE_DIGITS = {"0": "left", "1": "center", "2": "right"}
_MODES = {"X": "X-plus", "Xm": "X-minus", "Y": "Y-plus", "Ym": "Y-minus", "D": "pullout"}
_CLASS = re.compile(r"(SQ)?(?:(OK)|(\d)(\d)(?:([XY]m?)(\d+)|(D)(0\d+)))")
_SHOT = re.compile(r"camera(\d+)")
_OLD_LABEL = re.compile(r"(?:BEND|NUKE)(\d)(\d)NG")
_SHIFT = r"m?0\d*"
_FIELDS = (
    ("eye", r"[012]", "0 (left), 1 (center) or 2 (right)"),
    ("lamp 1", r"\d+", "a number"),
    ("lamp 2", r"\d+", "a number"),
    ("rotation", r"\d+", "whole degrees"),
    ("shift x", _SHIFT, "a share such as 016 or m02"),
    ("shift y", _SHIFT, "a share such as 016 or m02"),
    ("label", r"[A-Za-z0-9-]+", "a word such as OK, BENDNG or NUKENG"),
)


@dataclass(frozen=True)
class SeriesName:
    """The facts in a file name of the public series.

    Attributes:
        set_name: The words before the class; empty in most names.
        shape: `SQUR` or `CYLN`; empty where the name has no class.
        column: Column of the defective pin, from 1 at the left; None for a passed or unknown pin.
        row: Row of the defective pin, from 1 at the top; None for a passed or unknown pin.
        direction: `X`, `Xm`, `Y`, `Ym`, `D`, or empty for a passed or unknown defect.
        amount: Degrees for a bent pin, a share of its height (0..1) for a pulled-out pin; None where unknown.
        shot: Number of the shot within its class.
        eye: `left`, `center` or `right`.
        lamps: Brightness of the two lamps.
        rotation: Degrees; 89 is straight.
        shift: Shift in x and y, as a share of the pitch.
        label: The last word, e.g. `BENDNG`.
        suffix: The end of the file name, e.g. `.jpg`.
    """

    set_name: str
    shape: str
    column: int | None
    row: int | None
    direction: str
    amount: float | None
    shot: int
    eye: str
    lamps: tuple[int, int]
    rotation: int
    shift: tuple[float, float]
    label: str
    suffix: str

    @classmethod
    def parse(cls, file: str) -> SeriesName:
        """Read the facts in a file name.

        Args:
            file: A file name without folders.

        Raises:
            ValueError: This is no name of the series; the message names the part, what was found and what was expected.
        """
        path = PurePath(file)
        words = path.stem.split("_")
        place = next((number for number, word in enumerate(words) if _SHOT.fullmatch(word)), None)
        if place is None:
            raise ValueError(f"{file}: no shot: expected a word such as camera0")
        shot, fields = int(words[place].removeprefix("camera")), words[place + 1 :]
        if len(fields) != len(_FIELDS):
            parts = ", ".join(name for name, _, _ in _FIELDS)
            raise ValueError(
                f"{file}: expected {len(_FIELDS)} words after {words[place]} ({parts}), found {len(fields)}"
            )
        for (name, pattern, expected), word in zip(_FIELDS, fields, strict=True):
            if not re.fullmatch(pattern, word):
                raise ValueError(f"{file}: {name}: expected {expected}, found {word!r}")
        eye, lamp_1, lamp_2, rotation, shift_x, shift_y, label = fields
        known_class = _CLASS.fullmatch(words[place - 1]) if place else None
        shape, column, row, direction, amount = "", None, None, "", None
        if known_class:
            square, _, column_digit, row_digit, axis, degrees, pulled, share = known_class.groups()
            shape, direction = SQUARE if square else ROUND, axis or pulled or ""
            column, row = (int(column_digit), int(row_digit)) if column_digit else (None, None)
            amount = float(degrees) if degrees else _to_share(share) if share else None
        elif old := _OLD_LABEL.fullmatch(label):
            column, row, direction = int(old[1]), int(old[2]) + 1, "D" if label.startswith("NUKE") else ""
        return cls(
            set_name="_".join(words[: place - 1 if known_class else place]),
            shape=shape,
            column=column,
            row=row,
            direction=direction,
            amount=amount,
            shot=shot,
            eye=_EYE_DIGITS[eye],
            lamps=(int(lamp_1), int(lamp_2)),
            rotation=int(rotation),
            shift=(_to_share(shift_x), _to_share(shift_y)),
            label=label,
            suffix=path.suffix,
        )

    def __str__(self) -> str:
        """Write the file name."""
        eye = next(digit for digit, eye in _EYE_DIGITS.items() if eye == self.eye)
        numbers = (*self.lamps, self.rotation, *map(_share_text, self.shift))
        words = [*self._beginning, f"camera{self.shot}", eye, *map(str, numbers), self.label]
        return "_".join(words) + self.suffix

    @property
    def mode(self) -> str:
        """The defect mode in the series' words, e.g. `Y-minus`; `passed`; or empty where the name has none."""
        if self.label == "OK":
            return PASSED
        return _MODES.get(self.direction, "")

    @property
    def shot_name(self) -> str:
        """What the names of all captures of one shot share: both eyes, any light."""
        if self.shape:
            return "_".join((*self._beginning, f"camera{self.shot}"))
        # A name without a class may be of any pin: only names that agree in all but the eye are of one shot.
        _, _, others = str(self).removeprefix(f"{self.set_name}_").split("_", 2)
        return "_".join((*self._beginning, f"camera{self.shot}", others))

    @property
    def _beginning(self) -> list[str]:
        words = [self.set_name] if self.set_name else []
        if not self.shape:
            return words
        pin = "OK"
        if self.column and self.amount is not None:
            amount = _share_text(self.amount) if self.direction == "D" else f"{self.amount:g}"
            pin = f"{self.column}{self.row}{self.direction}{amount}"
        return [*words, f"{'SQ' if self.shape == SQUARE else ''}{pin}"]


@dataclass(frozen=True)
class NamedLabel:
    """What a file name reveals about the label of its capture; unknown facts are empty.

    Attributes:
        shape: The shape, where the name proves it (`SQ` marks square pins).
        usual_shape: The shape of a name without a mark; weaker than any other source.
        judgement: `passed` or `defective`.
        defect_mode: `passed`, or a mode of the line.
        defect_position: The address of the defective pin.
    """

    shape: str = ""
    usual_shape: str = ""
    judgement: str = ""
    defect_mode: str = ""
    defect_position: str = ""


def label_in_name(file: str, contract: AnswerContract) -> NamedLabel:
    """Return what a file name reveals about its capture's label.

    Names that end in `_OK` or in a mode of the line (`_BEND`, `_BENDNG`) reveal judgement and mode; full names of the
    series also reveal the pin, and the direction where the line has modes such as `X-plus`.

    Args:
        file: A file name without folders.
        contract: The line's layout, shapes and defect modes.

    Raises:
        ValueError: The name is of the series, but its pin is not in the layout.
    """
    name = series_name(file)
    word = PurePath(file).stem.rpartition("_")[2].lower()
    words = {"ok": PASSED} | {f"{mode}{end}".lower(): mode for mode in contract.defect_modes for end in ("", "ng")}
    mode = name.mode if name else ""
    if mode not in (PASSED, *contract.defect_modes):
        mode = words.get(word, "")
    label = NamedLabel(defect_mode=mode, judgement={"": "", PASSED: PASSED}.get(mode, DEFECTIVE))
    if name is None:
        return label
    return NamedLabel(
        shape=name.shape if name.shape == SQUARE and SQUARE in contract.shapes else "",
        usual_shape=name.shape if name.shape in contract.shapes else "",
        judgement=label.judgement,
        defect_mode=label.defect_mode,
        defect_position=_position(name, contract) if mode not in ("", PASSED) and name.column else "",
    )


@lru_cache(maxsize=8192)  # a window of captures (`manifests.WINDOW`), each of which is read several times
def series_name(file: str) -> SeriesName | None:
    """Return the facts in a file name of the series, or None for any other name."""
    try:
        return SeriesName.parse(file)
    except ValueError:
        return None


def eye_of(file: str) -> str:
    """Return the eye of a capture by its file name: `left`, `right`, or empty for a single or a center camera.

    The eye is a field of the series' names (0 = left, 2 = right), or the first word of any other name (`left_...`).
    """
    if name := series_name(file):
        return name.eye if name.eye in EYES else ""
    eye, _, others = file.partition("_")
    return eye if eye in EYES and others else ""


def shot_of(file: str) -> str:
    """Return what the file names of all captures of one shot share; empty for a name without an eye.

    A shot is one connector in one place. Both eyes' captures of a shot belong together.
    """
    if name := series_name(file):
        return name.shot_name
    eye = eye_of(file)
    return file.removeprefix(eye) if eye else ""


def _position(name: SeriesName, contract: AnswerContract) -> str:
    rows = contract.layout.rows
    if not name.row or name.row > len(rows):
        raise ValueError(f"{name}: the name has row {name.row}, the layout has {len(rows)} rows ({', '.join(rows)})")
    return f"X:{name.column}, Y:{rows[name.row - 1]}"


def _to_share(text: str) -> float:
    """`016` is 0.16, `m02` is -0.2, `0` is 0."""
    digits = text.removeprefix("m")
    return float(f"{digits[0]}.{digits[1:] or 0}") * (-1 if text.startswith("m") else 1)


def _share_text(share: float) -> str:
    return ("m" if share < 0 else "") + f"{abs(share):g}".replace(".", "")
