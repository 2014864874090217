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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import dctn

from pinspect.core.errors import CaptureError
from pinspect.core.files import write_file
from pinspect.core.names import shot_of
from pinspect.core.params import RawParams
from pinspect.core.rows import SPLITS

TRAIN, VALIDATION, TEST = SPLITS
_THUMBNAIL = 64
_FREQUENCIES = 16
_HASH_BYTES = _FREQUENCIES**2 // 8
_MOST_HANDS = 32
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
    before = captures["sha256"].map(recorded)
    order = np.lexsort((~captures["is_reference"].to_numpy(bool), before.isna()))
    by_age, before = captures.drop(columns="perceptual_hash").iloc[order], before.iloc[order].to_list()
    files, contents, is_reference = by_age["file"].array, by_age["sha256"].array, by_age["is_reference"].to_list()
    label_of, labels = pd.factorize(by_age["label"])
    near_duplicates = NearDuplicates(captures["perceptual_hash"].iloc[order], rule.near_duplicate_bits)
    shot_of_age = pd.factorize(by_age["file"].map(shot_of))
    has_shot = (shot_of_age[1] != "")[shot_of_age[0]]
    views_of_shot = _Groups(shot_of_age[0])
    splits: list[str] = []
    remarks = []
    most_alike = 0
    for age in range(len(by_age)):
        is_new = pd.isna(before[age])
        views = views_of_shot.of(age) if has_shot[age] else np.array([age])
        oldest = int(views[0])
        deciding = [age, *views] if is_new and oldest == age else [age]  # the first view decides for all of its shot
        near = [near_duplicates.of(view) for view in deciding]
        older = [int(other) for other in np.unique(np.concatenate(near)) if other < age]
        unlike = [other for other in near[0] if other < age and label_of[other] != label_of[age]]
        if unlike:
            remarks.append(
                f"{files[age]} ({labels[label_of[age]]}) shows nearly the same as {files[unlike[0]]} "
                f"({labels[label_of[unlike[0]]]}); correct the wrong label, if one is wrong"
            )
        if oldest != age:
            older.insert(0, oldest)  # a name is certain, near-duplicates are only likely
        if is_reference[age]:
            split = TRAIN
        elif not is_new:
            split = before[age]
        else:
            split = splits[older[0]] if older else rule.by_content(contents[age])
        splits.append(split)
        divided = [files[other] for other in older if splits[other] != split]
        if divided:
            remarks.append(
                f"{files[age]} ({split}) shows the same as {', '.join(divided)} in another split; remove one of them"
            )
        most_alike = max(most_alike, len(older))
    if most_alike >= max(10, len(by_age) / 2):  # if most captures count as one picture, they all end in one split
        remarks.append(
            f"{most_alike} of {len(by_age)} captures count as near-duplicates of one capture: lower "
            f"raw.near_duplicate_bits in params.yaml (now {rule.near_duplicate_bits} of 256)"
        )
    return pd.Series(splits, by_age.index, dtype=str).reindex(captures.index), remarks


class NearDuplicates:
    """Finds the perceptual hashes that differ from one of them in few bits, without comparing each with each.

    The bits are dealt to `bits + 1` hands. Two hashes that differ in at most `bits` bits agree in one hand at least, so
    only hashes with an equal hand are compared. The result is exact.
    """

    def __init__(self, hashes: Sequence[str] | pd.Series, bits: int):
        """Index hashes.

        Args:
            hashes: From `perceptual_hash`.
            bits: Largest number of bits in which near-duplicates differ.
        """
        content = np.fromiter(map(bytes.fromhex, hashes), f"S{_HASH_BYTES}", len(hashes))
        self._words = content.view(np.uint64).reshape(-1, _HASH_BYTES // 8)
        self._bits = bits
        hands = bits + 1 if bits < _MOST_HANDS else 0  # hands of few bits agree by chance: then compare with all
        octets = content.view(np.uint8).reshape(-1, _HASH_BYTES)
        self._hands = [_Groups(_hand(octets, range(hand, 8 * _HASH_BYTES, hands))) for hand in range(hands)]

    def of(self, index: int) -> np.ndarray:
        """Return the indices of the near-duplicates of a hash, in ascending order, itself among them."""
        candidates = (
            np.unique(np.concatenate([hand.of(index) for hand in self._hands]))
            if self._hands
            else np.arange(len(self._words))
        )
        differing = np.bitwise_count(self._words[candidates] ^ self._words[index]).sum(axis=1)
        return candidates[differing <= self._bits]


class _Groups:
    """Which elements are equal, in a few bytes for each.

    Args:
        values: Small integers, from 0.
    """

    def __init__(self, values: np.ndarray):
        self._values = values
        self._order = np.argsort(values, kind="stable").astype(np.int32)
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(values))])

    def of(self, index: int) -> np.ndarray:
        """Return the indices of the elements that equal one of them, in ascending order, itself among them."""
        value = self._values[index]
        return self._order[self._starts[value] : self._starts[value + np.int64(1)]]


def _hand(hashes: np.ndarray, bits: Sequence[int]) -> np.ndarray:
    """Return the first 16 of some bits of each hash as a number: hashes with the same bits have the same number."""
    places = np.array(bits[:16])
    dealt = hashes[:, places // 8] >> (7 - places % 8).astype(np.uint8) & 1
    return dealt.astype(np.uint16) @ (1 << np.arange(len(places), dtype=np.uint16))


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
        record = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8", usecols=RECORD)
    except ValueError as error:
        raise CaptureError(f"{path}: not a record of splits ({error}); restore it by `git checkout {path}`") from None
    unknown = sorted(set(record["split"]) - set(SPLITS))
    if unknown:
        raise CaptureError(f"{path}: unknown splits {unknown}; restore it by `git checkout {path}`")
    decided = record[record["rule"] == rule.version].drop_duplicates("sha256", keep="last")
    return decided.set_index("sha256")["split"]


def write_splits(path: Path, splits: pd.Series, rule: SplitRule) -> None:
    """Write the record atomically, ordered by sha256.

    Args:
        path: The record.
        splits: sha256 -> split.
        rule: The rule that decided them.
    """
    record = pd.DataFrame({"sha256": splits.index, "split": splits.to_numpy(), "rule": rule.version}, columns=RECORD)
    write_file(path, record.sort_values("sha256").to_csv(index=False, lineterminator="\n"))
