"""How the virtual line draws a defect mode: what happens to the pin, and in which direction."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from pinspect.core.yaml_file import Section

Draw = Literal["lean", "lower", "higher", "absent", "darker", "nothing"]
Direction = Literal["any", "left", "right", "up", "down"]

ANY_DIRECTION = "any"
# The series' name of a bend -> where the top of the pin moves in the picture.
NAMED_DIRECTIONS: dict[str, Direction] = {"X-plus": "right", "X-minus": "left", "Y-plus": "up", "Y-minus": "down"}


class ModeDrawing(Section):
    """How the virtual line draws one defect mode: an entry of `answers.defect_modes`.

    Attributes:
        draw: What happens to the pin: it leans, is lower, higher, absent or darker. The virtual line has no captures of
            a mode whose drawing is `nothing`.
        direction: Where the top of a leaning pin moves, as seen in the picture.
    """

    draw: Draw
    direction: Direction = ANY_DIRECTION

    @model_validator(mode="after")
    def _check_direction(self) -> ModeDrawing:
        if self.direction != ANY_DIRECTION and self.draw != "lean":
            raise ValueError(f"only 'draw: lean' has a direction; remove 'direction: {self.direction}'")
        return self
