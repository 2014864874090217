"""The pin layout of a connector and the addresses in it."""

from __future__ import annotations

import re
from dataclasses import dataclass

NO_ADDRESS = "passed"  # stands in the place of an address where no pin is defective


@dataclass(frozen=True, order=True)
class Address:
    """The place of one pin.

    Attributes:
        column: Number of the column, from 1 at the left.
        row: Letter of the row.
    """

    column: int
    row: str

    def __str__(self) -> str:
        return f"X:{self.column}, Y:{self.row}"


@dataclass(frozen=True)
class Layout:
    """Rows and columns of the pin field.

    Attributes:
        rows: Row letters, from the top.
        columns: Number of columns; they are numbered 1..n from the left.

    Raises:
        ValueError: A row is not one capital letter or is named twice, or there is no row or no column.
    """

    rows: tuple[str, ...]
    columns: int

    def __post_init__(self) -> None:
        if self.columns < 1:
            raise ValueError(f"columns must be at least 1, found {self.columns}")
        if not self.rows:
            raise ValueError("rows must name at least one row")
        for row in self.rows:
            if not re.fullmatch(r"[A-Z]", row):
                raise ValueError(f"a row is one capital letter, found {row!r}")
        if len(set(self.rows)) != len(self.rows):
            raise ValueError(f"a row is named twice in {list(self.rows)}")

    @property
    def pins(self) -> int:
        """Return the number of pins."""
        return len(self.rows) * self.columns

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Return all addresses, row by row from the top left."""
        return tuple(Address(column, row) for row in self.rows for column in range(1, self.columns + 1))

    def index(self, address: Address) -> int:
        """Return the position of an address in `addresses`, 0..pins - 1.

        Raises:
            ValueError: The layout has no such pin.
        """
        if address.row not in self.rows or not 1 <= address.column <= self.columns:
            raise ValueError(f"no pin at {address}: the layout has {self}")
        return self.rows.index(address.row) * self.columns + address.column - 1

    def address(self, text: str) -> Address:
        """Read an address such as `X:3, Y:U`.

        Raises:
            ValueError: The text is not an address of this layout. The message names what was expected.
        """
        match = re.fullmatch(r"X:(\d+), Y:([A-Z])", text)
        if not match:
            raise ValueError(f"expected an address such as 'X:3, Y:{self.rows[0]}', found {text!r}")
        address = Address(int(match[1]), match[2])
        self.index(address)
        if str(address) != text:
            raise ValueError(f"expected '{address}', found {text!r}")
        return address

    def __str__(self) -> str:
        return f"rows {','.join(self.rows)} and columns 1..{self.columns}"
