"""The answer contract: how an inspection is written, read back and checked.

Prompts, answer checks, constrained decoding and scoring take the grammar from this module. An answer has five lines::

    - image type->CYLN_DST
    - number of pins->27 pins
    - your judgement->defective
    - defect mode->bend
    - defect position->X:3, Y:U

A passed capture has `passed` in each of the last three lines. One-image answers have `- quantity of pins->` in the
second line. The star answer, the worked example of a one-shot prompt, has the first, second and fifth line only. The
grid answer has two lines of its own: the marks of the address grid, from the left and from above::

    - columns->1,2,3,4,5,6,7,8,9
    - rows->U,C,D
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pinspect.core.drawings import ModeDrawing
from pinspect.core.errors import AnswerFormatError
from pinspect.core.layout import NO_ADDRESS, Address, Layout

PASSED = "passed"
DEFECTIVE = "defective"
VIEWS = ("RAW", "DST")
FIELDS = ("image_type", "number_of_pins", "judgement", "defect_mode", "defect_position")
VERDICT = FIELDS[2:]  # what an answer and the label of a capture have in common


class AnswerKind(StrEnum):
    """The form of an answer."""

    COMPARISON = "comparison"  # two images, or one stacked composite
    DISCRIMINATION = "discrimination"  # one image
    STAR = "star"
    GRID = "grid"  # the marks of the address grid


_LABELS = {
    AnswerKind.COMPARISON: {
        "image_type": "image type",
        "number_of_pins": "number of pins",
        "judgement": "your judgement",
        "defect_mode": "defect mode",
        "defect_position": "defect position",
    },
}
_LABELS[AnswerKind.DISCRIMINATION] = _LABELS[AnswerKind.COMPARISON] | {"number_of_pins": "quantity of pins"}
_LABELS[AnswerKind.STAR] = {
    field: _LABELS[AnswerKind.COMPARISON][field] for field in ("image_type", "number_of_pins", "defect_position")
}
_LABELS[AnswerKind.GRID] = {"columns": "columns", "rows": "rows"}


@dataclass(frozen=True)
class GridAnswer:
    """The marks of an address grid, as a picture shows them.

    Attributes:
        columns: Marks of the columns, from the left.
        rows: Marks of the rows, from above.
    """

    columns: tuple[str, ...]
    rows: tuple[str, ...]

    def values(self) -> dict[str, str]:
        """Return the marks as the strings behind the arrows of an answer."""
        return {"columns": ",".join(self.columns), "rows": ",".join(self.rows)}


@dataclass(frozen=True)
class Answer:
    """The five facts of an inspection.

    Attributes:
        shape: Pin shape, such as `CYLN`.
        view: `RAW` or `DST`.
        pins: Number of pins.
        judgement: `passed` or `defective`; None in a star answer.
        defect_mode: `passed` or a defect mode of the line; None in a star answer.
        defect_position: Address of the defective pin or of the star; None for a passed capture.
    """

    shape: str
    view: str
    pins: int
    judgement: str | None
    defect_mode: str | None
    defect_position: Address | None

    @property
    def image_type(self) -> str:
        """Return `<shape>_<view>`, such as `CYLN_DST`."""
        return f"{self.shape}_{self.view}"

    def values(self) -> dict[str, str | None]:
        """Return the facts as the strings behind the arrows of an answer, keyed by `FIELDS`."""
        return {
            "image_type": self.image_type,
            "number_of_pins": f"{self.pins} pins",
            "judgement": self.judgement,
            "defect_mode": self.defect_mode,
            "defect_position": NO_ADDRESS if self.defect_position is None else str(self.defect_position),
        }


@dataclass(frozen=True)
class AnswerContract:
    """The grammar for one product.

    Attributes:
        layout: Rows and columns of the pins.
        shapes: Pin shapes.
        defect_modes: Defect modes, without `passed`.
        drawings: Defect mode -> how the virtual line draws it, and the direction of the mode if it has one.
    """

    layout: Layout
    shapes: tuple[str, ...]
    defect_modes: tuple[str, ...]
    drawings: Mapping[str, ModeDrawing] = dataclasses.field(default_factory=dict[str, ModeDrawing], hash=False)

    def passed(self, shape: str, view: str) -> Answer:
        """Return the answer for a capture without a defect."""
        return Answer(shape, view, self.layout.pins, PASSED, PASSED, None)

    def defective(self, shape: str, view: str, mode: str, address: Address) -> Answer:
        """Return the answer for a capture whose pin at `address` has the defect `mode`."""
        return Answer(shape, view, self.layout.pins, DEFECTIVE, mode, address)

    def star(self, shape: str, view: str, address: Address) -> Answer:
        """Return the answer to a star image with the star at `address`."""
        return Answer(shape, view, self.layout.pins, None, None, address)

    def render(self, answer: Answer, kind: AnswerKind = AnswerKind.COMPARISON) -> str:
        """Write an answer.

        Args:
            answer: The facts.
            kind: The form of the answer.

        Returns:
            The lines of the answer, joined by newlines, without a trailing newline.

        Raises:
            AnswerFormatError: The answer breaks a cross-field rule.
        """
        problems = self.rule_breaches(answer, kind)
        if problems:
            raise AnswerFormatError(f"cannot write this answer: {'; '.join(problems)}")
        values = answer.values()
        return "\n".join(f"- {label}->{values[field]}" for field, label in _LABELS[kind].items())

    def grid(self, columns: Sequence[int] | None = None, rows: Sequence[int] | None = None) -> GridAnswer:
        """Return the answer about an address grid.

        Args:
            columns: For each column the index of the mark that is shown there; None for the usual order.
            rows: The same for each row.
        """
        layout = self.layout
        return GridAnswer(
            tuple(str(index + 1) for index in (range(layout.columns) if columns is None else columns)),
            tuple(layout.rows[index] for index in (range(len(layout.rows)) if rows is None else rows)),
        )

    def render_grid(self, answer: GridAnswer) -> str:
        """Write an answer about an address grid, without a trailing newline."""
        values = answer.values()
        return "\n".join(f"- {label}->{values[field]}" for field, label in _LABELS[AnswerKind.GRID].items())

    def parse_grid(self, text: str) -> GridAnswer:
        """Read an answer about an address grid; marks may repeat.

        Args:
            text: The string, such as a model generates.

        Raises:
            AnswerFormatError: The string breaks the contract. The message names the line and what was expected.
        """
        values = self._split(text, AnswerKind.GRID)
        return GridAnswer(tuple(values["columns"].split(",")), tuple(values["rows"].split(",")))

    def parse(self, text: str, kind: AnswerKind = AnswerKind.COMPARISON) -> Answer:
        """Read an answer.

        Args:
            text: The string, such as a model generates.
            kind: The form of the answer, not `GRID`, whose answers `parse_grid` reads.

        Returns:
            The facts.

        Raises:
            AnswerFormatError: The string breaks the contract. The message names the line and what was expected.
        """
        values = self._split(text, kind)
        shape, view = values["image_type"].rsplit("_", 1)
        position = values["defect_position"]
        answer = Answer(
            shape=shape,
            view=view,
            pins=int(values["number_of_pins"].removesuffix(" pins")),
            judgement=values.get("judgement"),
            defect_mode=values.get("defect_mode"),
            defect_position=None if position == NO_ADDRESS else self.layout.address(position),
        )
        problems = self.rule_breaches(answer, kind)
        if problems:
            raise AnswerFormatError("; ".join(problems))
        return answer

    def rule_breaches(self, answer: Answer, kind: AnswerKind = AnswerKind.COMPARISON) -> list[str]:
        """Return the cross-field rules that an answer breaks, each as a sentence; none for a correct answer."""
        problems: list[str] = []
        if answer.shape not in self.shapes:
            problems.append(f"image type: expected a shape of {list(self.shapes)}, found {answer.shape!r}")
        if answer.view not in VIEWS:
            problems.append(f"image type: expected a view of {list(VIEWS)}, found {answer.view!r}")
        if answer.pins != self.layout.pins:
            problems.append(f"number of pins: the layout has {self.layout.pins} pins, found {answer.pins}")
        if answer.defect_position is not None:
            try:
                self.layout.index(answer.defect_position)
            except ValueError as error:
                problems.append(f"defect position: {error}")
        if kind is AnswerKind.STAR:
            if answer.defect_position is None:
                problems.append("defect position: a star answer must name the pin under the star")
            return problems
        if answer.judgement not in (PASSED, DEFECTIVE):
            problems.append(f"your judgement: expected passed or defective, found {answer.judgement!r}")
        if answer.defect_mode not in (PASSED, *self.defect_modes):
            modes = [PASSED, *self.defect_modes]
            problems.append(f"defect mode: expected one of {modes}, found {answer.defect_mode!r}")
        if (answer.judgement == PASSED) != (answer.defect_mode == PASSED):
            problems.append(f"defect mode: {answer.defect_mode!r} does not go with judgement {answer.judgement!r}")
        if (answer.judgement == PASSED) != (answer.defect_position is None):
            where = NO_ADDRESS if answer.defect_position is None else str(answer.defect_position)
            problems.append(f"defect position: {where!r} does not go with judgement {answer.judgement!r}")
        return problems

    def pattern(self, kind: AnswerKind = AnswerKind.COMPARISON, *, anchored: bool = True) -> str:
        r"""Return a regular expression that matches exactly the well-formed answers of this product.

        The expression includes the cross-field rules: it matches no passed answer that names a defect mode.

        Args:
            kind: The form of the answers.
            anchored: Whether to put `\A` and `\Z` around the expression (`$` would accept a trailing newline).
                Constrained decoding needs it without.
        """
        labels = _LABELS[kind]
        if kind is AnswerKind.GRID:
            forms = self._line_forms()
            body = "\n".join(f"- {label}->{forms[field][0]}" for field, label in labels.items())
            return rf"\A{body}\Z" if anchored else body
        image_type = f"(?:{'|'.join(map(re.escape, self.shapes))})_(?:{'|'.join(VIEWS)})"
        columns = "|".join(str(column) for column in range(1, self.layout.columns + 1))
        address = f"X:(?:{columns}), Y:[{''.join(self.layout.rows)}]"
        head = f"- {labels['image_type']}->{image_type}\n- {labels['number_of_pins']}->{self.layout.pins} pins\n"
        position = f"- {labels['defect_position']}->"
        if kind is AnswerKind.STAR:
            body = f"{head}{position}{address}"
        else:
            judgement, mode = f"- {labels['judgement']}->", f"- {labels['defect_mode']}->"
            modes = "|".join(map(re.escape, self.defect_modes))
            passed = f"{judgement}{PASSED}\n{mode}{PASSED}\n{position}{NO_ADDRESS}"
            defective = f"{judgement}{DEFECTIVE}\n{mode}(?:{modes})\n{position}{address}"
            body = f"{head}(?:{passed}|{defective})"
        return rf"\A{body}\Z" if anchored else body

    def _split(self, text: str, kind: AnswerKind) -> dict[str, str]:
        labels = _LABELS[kind]
        lines = text.split("\n")
        if len(lines) != len(labels):
            raise AnswerFormatError(f"expected {len(labels)} lines, found {len(lines)}: {text!r}")
        forms = self._line_forms()
        values: dict[str, str] = {}
        for number, (line, (field, label)) in enumerate(zip(lines, labels.items(), strict=True), start=1):
            prefix = f"- {label}->"
            if not line.startswith(prefix):
                raise AnswerFormatError(f"line {number}: expected '{prefix}…', found {line!r}")
            value = line.removeprefix(prefix)
            form, example = forms[field]
            if not re.fullmatch(form, value):
                raise AnswerFormatError(f"line {number}: expected {example} after '{prefix}', found {value!r}")
            values[field] = value
        return values

    def _line_forms(self) -> dict[str, tuple[str, str]]:
        shapes = "|".join(map(re.escape, self.shapes))
        modes = (PASSED, *self.defect_modes)
        addresses = "|".join(re.escape(str(address)) for address in self.layout.addresses)
        return {
            "image_type": (
                f"(?:{shapes})_(?:{'|'.join(VIEWS)})",
                " or ".join(f"{shape}_{view}" for shape in self.shapes for view in VIEWS),
            ),
            "number_of_pins": (f"{self.layout.pins} pins", f"'{self.layout.pins} pins'"),
            "judgement": (f"{PASSED}|{DEFECTIVE}", f"'{PASSED}' or '{DEFECTIVE}'"),
            "defect_mode": ("|".join(map(re.escape, modes)), f"one of {', '.join(modes)}"),
            "defect_position": (
                f"{NO_ADDRESS}|{addresses}",
                f"'{NO_ADDRESS}' or an address in {self.layout}, such as '{self.layout.addresses[0]}',",
            ),
            "columns": _marks([str(column) for column in range(1, self.layout.columns + 1)], "numbers"),
            "rows": _marks(self.layout.rows, "letters"),
        }


def _marks(marks: Sequence[str], what: str) -> tuple[str, str]:
    """Return the form of a line with one mark for each column or row, and its description."""
    mark = f"(?:{'|'.join(marks)})"
    return f"{mark}(?:,{mark}){{{len(marks) - 1}}}", f"{len(marks)} {what} of {', '.join(marks)}"
