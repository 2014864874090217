"""What mirroring a picture does to the words of its answer: modes with a direction change places.

The direction of a mode is that of `answers.defect_modes` in `params.yaml` (`draw: lean, direction: left`). A mode
without a declared direction that is named as in the series (`X-plus`, `Y-minus`) has the direction of its name.
"""

from __future__ import annotations

from pinspect.core.answers import AnswerContract
from pinspect.core.drawings import ANY_DIRECTION, NAMED_DIRECTIONS

_LEFT_RIGHT = {"left": "right", "right": "left"}
_UP_DOWN = {"up": "down", "down": "up"}


def direction_of(mode: str, contract: AnswerContract) -> str:
    """Return where the top of a pin with this mode leans in the picture: left, right, up, down, or any."""
    drawing = contract.drawings.get(mode)
    direction = ANY_DIRECTION if drawing is None else drawing.direction
    return NAMED_DIRECTIONS.get(mode, ANY_DIRECTION) if direction == ANY_DIRECTION else direction


def mirrored_modes(contract: AnswerContract, *, columns: bool, rows: bool) -> dict[str, str]:
    """Return what each defect mode becomes in a mirrored picture.

    Args:
        contract: The answer contract.
        columns: Whether the picture is mirrored left to right.
        rows: Whether the picture is mirrored upside down.

    Returns:
        Mode -> its mirrored mode. A mode whose mirrored direction has no mode, or several, is left out: a picture of it
        must not be mirrored this way.
    """
    turned = (_LEFT_RIGHT if columns else {}) | (_UP_DOWN if rows else {})
    directions = {mode: direction_of(mode, contract) for mode in contract.defect_modes}
    mirrored: dict[str, str] = {}
    for mode, direction in directions.items():
        if direction not in turned:
            mirrored[mode] = mode
            continue
        opposite = [
            other
            for other, its_direction in directions.items()
            if its_direction == turned[direction] and _draw(other, contract) == _draw(mode, contract)
        ]
        if len(opposite) == 1:
            mirrored[mode] = opposite[0]
    return mirrored


def _draw(mode: str, contract: AnswerContract) -> str:
    drawing = contract.drawings.get(mode)
    return "lean" if drawing is None else drawing.draw
