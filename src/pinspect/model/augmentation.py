"""What training rows are changed by before they are shown: mirror images, and the light of photographs.

A mirrored row is as true as its original, so long as all its images are mirrored and every address with them: a line's
captures then show each defect at up to four places. The address grid keeps its place, and only the pins change sides.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pinspect.layout import Address, Layout

_ADDRESS = re.compile(r"X:\d+, Y:[A-Z]")


@dataclass(frozen=True)
class Augmentation:
    """How one row is shown.

    layout: of its pins. columns, rows: whether they are mirrored, left to right and top to bottom. gains: what the
    brightness of each image's pin field is multiplied by, 1 leaves it.
    """

    layout: Layout
    columns: bool
    rows: bool
    gains: tuple[float, ...]

    def image(self, composite: np.ndarray, number: int) -> np.ndarray:
        """The `number`th image of the row: uint8 (H, W, 3), a single or a stacked composite, as a new array."""
        cell = composite.shape[1] // (self.layout.columns + 1)
        height = cell * (len(self.layout.rows) + 1)
        shown = composite.copy()
        for top in range(0, len(shown), height):
            field = shown[top + cell : top + height, cell:]
            turned = field[:: -1 if self.rows else 1, :: -1 if self.columns else 1].astype(np.float32)
            field[:] = np.clip(turned * self.gains[number] + 0.5, 0, 255)
        return shown

    def text(self, text: str) -> str:
        """`text` with every address mirrored."""
        return _ADDRESS.sub(lambda found: str(self._mirrored(self.layout.address(found[0]))), text)

    def _mirrored(self, address: Address) -> Address:
        letters = self.layout.rows
        column = self.layout.columns + 1 - address.column if self.columns else address.column
        row = letters[-1 - letters.index(address.row)] if self.rows else address.row
        return Address(column, row)


def augmented(row: dict, layout: Layout, rng: np.random.Generator, *, mirror: bool, light_jitter: float) -> dict:
    """A copy of a chat row with an `augmentation`, drawn from `rng`, and with its answers' addresses mirrored alike.

    mirror: whether rows and columns may be mirrored, each for half of the rows. light_jitter: photographs become up to
    1 + light_jitter times brighter or darker; distance images never, their brightness has a meaning.
    """
    columns, rows = (bool(toss) for toss in rng.random(2) < 0.5 * mirror)
    reach = np.log1p(light_jitter if row["view"] == "RAW" else 0.0)
    gains = tuple(float(gain) for gain in np.exp(rng.uniform(-reach, reach, len(row["images"]))))
    chosen = Augmentation(layout, columns, rows, gains)
    messages = [_retold(message, chosen) for message in row["messages"]]
    return {**row, "answer": chosen.text(row["answer"]), "messages": messages, "augmentation": chosen}


def _retold(message: dict, chosen: Augmentation) -> dict:
    content: Sequence[dict] = message["content"]
    return {
        **message,
        "content": [part | {"text": chosen.text(part["text"])} if part["type"] == "text" else part for part in content],
    }
