"""Look up many values: pandas and Python would make an object of a hundred bytes for each."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from pyarrow.compute import SetLookupOptions, call_function


class TextHashes:
    """The texts of a large set, eight bytes for each; two texts never have one hash by chance.

    Args:
        hashes: `hash(text)` of each text, in this process.
    """

    def __init__(self, hashes: Iterable[int]):
        self._sorted = np.sort(np.fromiter(hashes, np.int64))

    def __contains__(self, text: str) -> bool:
        place = np.searchsorted(self._sorted, hash(text))
        return bool(place < len(self._sorted) and self._sorted[place] == hash(text))

    def repeated(self) -> set[int]:
        """Return the hashes of texts that occur more than once."""
        return set(self._sorted[1:][self._sorted[1:] == self._sorted[:-1]].tolist())


def places_of(values: pa.Array, known: pa.Array) -> np.ndarray:
    """Return the place of each value among the known ones, int32 (values,); -1 for a value that is unknown."""
    return call_function("index_in", [values], SetLookupOptions(known)).fill_null(-1).to_numpy()
