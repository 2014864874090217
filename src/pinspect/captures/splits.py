"""Assign captures to training, validation and test.

A hash of a capture's content decides, so neither names nor order matter. Near-duplicates (the same picture, stored
again or brightened) would leak from training into the test, so a later capture joins the split of the oldest capture
that it nearly equals. All captures of one shot (both eyes, see `core.names`) stay together, too: the near-duplicates of
all its views decide. A decided split is recorded and never changes.

Two pictures are near-duplicates when their perceptual hashes differ in few bits. On the sample line, where all
pictures look alike, the hashes of two distinct captures differ in at least 34 of 256 bits (half of the pairs in 103).
The hashes of a capture and its copy (JPEG quality 60-95, brightness -5..+10 %, half or 1.5 times the size, one px
cropped) differ in at most 15.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image
from pyarrow.csv import ConvertOptions, read_csv
from scipy.fft import dctn

from pinspect.captures.lookups import TextHashes, places_of
from pinspect.core.errors import CaptureError
from pinspect.core.files import atomic_path
from pinspect.core.names import shot_of
from pinspect.core.params import RawParams
from pinspect.core.rows import SPLITS

TRAIN, VALIDATION, TEST = SPLITS
_THUMBNAIL = 64
_FREQUENCIES = 16
_HASH_BYTES = _FREQUENCIES**2 // 8
_COMPARED_BITS = 64
_SAMPLE = 4096
RECORD = ("sha256", "split", "rule")


@dataclass(frozen=True)
class SplitRule:
    """How to split new captures.

    Attributes:
        salt: Goes into the hash; another salt splits differently.
        validation_share: Share of captures for validation, 0..1.
        test_share: Share of captures for the test, 0..1.
        near_duplicate_bits: Number of bits, of 256, in which the perceptual hashes of near-duplicates may differ.
    """

    salt: str
    validation_share: float
    test_share: float
    near_duplicate_bits: int

    @classmethod
    def of(cls, params: RawParams) -> SplitRule:
        """Return the rule that `params` describes."""
        return cls(params.split_salt, params.validation_share, params.test_share, params.near_duplicate_bits)

    @property
    def version(self) -> str:
        """The rule's name in the record; splits that another rule has decided do not bind this rule."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]

    def by_content(self, sha256: str) -> str:
        """Return the split of a capture that resembles no other capture."""
        place = int(hashlib.sha256(f"{self.salt}/{sha256}".encode()).hexdigest()[:16], 16) / 16**16
        if place < self.test_share:
            return TEST
        return VALIDATION if place < self.test_share + self.validation_share else TRAIN


def perceptual_hash(image: Image.Image) -> str:
    """Return 256 bits as 64 hex digits that hardly change with brightness, contrast, size and compression.

    The bits are the signs of the lowest 16 x 16 cosine frequencies (without the constant row and column) of the gray
    picture at 64 x 64 px.
    """
    small = image.convert("L").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    frequencies = np.asarray(dctn(np.asarray(small, np.float64), norm="ortho"))
    return np.packbits(frequencies[1 : _FREQUENCIES + 1, 1 : _FREQUENCIES + 1] > 0).tobytes().hex()


def assign_splits(captures: pd.DataFrame, rule: SplitRule, recorded: pd.Series) -> tuple[pd.Series, list[str]]:
    """Assign each capture to a split.

    Args:
        captures: A row per capture in order of age, the oldest first: `file`, `sha256`, `perceptual_hash` (from
            `perceptual_hash`), `is_reference` and `label` (judgement, mode and position in words). Recorded captures
            count as older than all others; among the others, references count as older than inspected captures.
            References are always for training, since other captures are compared with them.
        rule: How to split new captures.
        recorded: sha256 -> split, as decided before (see `read_splits`).

    Returns:
        The split of each row, and remarks for the user, one line each.
    """
    before = _decided(captures["sha256"], recorded)
    by_age = np.lexsort((~captures["is_reference"].to_numpy(bool), before.isna()))
    files, contents = captures["file"].array, captures["sha256"].array
    is_reference, is_new = (values.to_numpy(bool)[by_age] for values in (captures["is_reference"], before.isna()))
    label_of, labels = pd.factorize(captures["label"].iloc[by_age])
    near_duplicates = NearDuplicates(captures["perceptual_hash"].iloc[by_age], rule.near_duplicate_bits)
    shots = _Shots(captures["file"].iloc[by_age])
    splits: list[str] = []  # by age
    remarks = []
    most_alike = 0

    def name(age: int) -> str:
        return files[by_age[age]]

    for age in range(len(by_age)):
        views = shots.of(age)
        near = near_duplicates.older(age, age)
        older = near
        if is_new[age] and age == views[0] and len(views) > 1:  # the first view decides for all of its shot
            older = np.unique(np.concatenate([near_duplicates.older(view, age) for view in views]))
        unlike = near[label_of[near] != label_of[age]]
        if len(unlike):
            remarks.append(
                f"{name(age)} ({labels[label_of[age]]}) shows nearly the same as {name(unlike[0])} "
                f"({labels[label_of[unlike[0]]]}); correct the wrong label, if one is wrong"
            )
        if age != views[0]:
            older = np.concatenate([views[:1], older])  # a name is certain, near-duplicates are only likely
        if is_reference[age]:
            split = TRAIN
        elif not is_new[age]:
            split = before.iloc[by_age[age]]
        else:
            split = splits[older[0]] if len(older) else rule.by_content(contents[by_age[age]])
        splits.append(split)
        divided = [name(other) for other in older if splits[other] != split]
        if divided:
            remarks.append(
                f"{name(age)} ({split}) shows the same as {', '.join(divided)} in another split; remove one of them"
            )
        most_alike = max(most_alike, len(older))
    if most_alike >= max(10, len(by_age) / 2):  # if most captures count as one picture, they all end in one split
        remarks.append(
            f"{most_alike} of {len(by_age)} captures count as near-duplicates of one capture: lower "
            f"raw.near_duplicate_bits in params.yaml (now {rule.near_duplicate_bits} of 256)"
        )
    return pd.Series(splits, captures.index[by_age], dtype=str).reindex(captures.index), remarks


def _decided(contents: pd.Series, recorded: pd.Series) -> pd.Series:
    """Return the recorded split of each content, NaN for none; `Series.map` would make an object of each hash."""
    places = places_of(pa.array(contents, pa.large_string()), pa.array(recorded.index.astype(str), pa.large_string()))
    return pd.Series(recorded.array.take(places, allow_fill=True), contents.index)


class NearDuplicates:
    """Finds the perceptual hashes that differ from one of them in few bits.

    Each pair is first compared in 64 bits, those that differ most often between the hashes. Pairs that differ in more
    than `bits` of these are no near-duplicates; the others are compared in all 256 bits. The result is exact.
    """

    def __init__(self, hashes: pd.Series, bits: int):
        """Prepare hashes for comparison.

        Args:
            hashes: From `perceptual_hash`.
            bits: Largest number of bits in which near-duplicates differ.
        """
        content = np.fromiter(map(bytes.fromhex, hashes), f"S{_HASH_BYTES}", len(hashes))
        octets = content.view(np.uint8).reshape(-1, _HASH_BYTES)
        sample = np.unpackbits(octets[:: len(octets) // _SAMPLE + 1], axis=1)
        places = np.argsort(abs(sample.sum(axis=0) - len(sample) / 2), kind="stable")[:_COMPARED_BITS]
        selected = np.empty((len(octets), _COMPARED_BITS // 8), np.uint8)
        for start in range(0, len(octets), _SAMPLE):
            bits_of_some = np.unpackbits(octets[start : start + _SAMPLE], axis=1)
            selected[start : start + _SAMPLE] = np.packbits(bits_of_some[:, places], axis=1)
        self._selected = selected.view(np.uint64).ravel()
        self._words = content.view(np.uint64).reshape(-1, _HASH_BYTES // 8)
        self._bits = bits

    def older(self, index: int, age: int) -> np.ndarray:
        """Return the near-duplicates of a hash among the first hashes.

        Args:
            index: Index of the hash.
            age: Number of first hashes to compare with.

        Returns:
            int64 (near-duplicates,), their indices in ascending order.
        """
        candidates = np.flatnonzero(np.bitwise_count(self._selected[:age] ^ self._selected[index]) <= self._bits)
        differing = np.bitwise_count(self._words[candidates] ^ self._words[index]).sum(axis=1)
        return candidates[differing <= self._bits]


class _Shots:
    """The captures of each shot.

    Args:
        files: Names of the captures, by age.
    """

    def __init__(self, files: pd.Series):
        self._shot, shots = pd.factorize(files.map(shot_of))
        self._has_views = np.asarray(shots != "")[self._shot]
        self._order = np.argsort(self._shot, kind="stable")
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(self._shot))])

    def of(self, age: int) -> np.ndarray:
        """Return the ages of all captures of a capture's shot, the oldest first, its own among them."""
        if not self._has_views[age]:
            return np.array([age])
        shot = self._shot[age]
        return self._order[self._starts[shot] : self._starts[shot + 1]]


def read_splits(path: Path, rule: SplitRule) -> pd.Series:
    """Read the splits that `rule` has decided before.

    Returns:
        sha256 -> split; empty when there is no record yet.

    Raises:
        CaptureError: The record is damaged.
    """
    if not path.exists():
        return pd.Series(dtype=str)
    try:
        words = dict.fromkeys(RECORD[1:], pa.dictionary(pa.int32(), pa.string()))
        types = ConvertOptions(column_types=words | {RECORD[0]: pa.string()}, include_columns=RECORD)
        record = read_csv(path, convert_options=types).to_pandas()
    except (KeyError, ValueError) as error:
        raise CaptureError(f"{path}: not a record of splits ({error}); restore it by `git checkout {path}`") from None
    unknown = sorted(set(record["split"]) - set(SPLITS))
    if unknown:
        raise CaptureError(f"{path}: unknown splits {unknown}; restore it by `git checkout {path}`")
    decided = record[record["rule"] == rule.version].set_index("sha256")["split"].astype("str")
    has_twins = TextHashes(map(hash, decided.index)).repeated()  # pandas would make an object of each hash
    return decided[~decided.index.duplicated(keep="last")] if has_twins else decided


def write_splits(path: Path, splits: pd.Series, rule: SplitRule) -> None:
    """Write the record atomically, ordered by sha256.

    Args:
        path: The record.
        splits: sha256 -> split.
        rule: The rule that decided them.
    """
    record = pd.DataFrame({"sha256": splits.index, "split": splits.to_numpy(), "rule": rule.version}, columns=RECORD)
    with atomic_path(path) as partial:
        record.sort_values("sha256").to_csv(partial, index=False, lineterminator="\n")
