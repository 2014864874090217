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
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
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


@dataclass(frozen=True)
class Candidate:
    """A capture to split.

    Attributes:
        file: The file name.
        sha256: The hash of the content, in hex.
        perceptual_hash: From `perceptual_hash`.
        is_reference: References are always for training, since other captures are compared with them.
        label: Judgement, mode and position in words.
    """

    file: str
    sha256: str
    perceptual_hash: str
    is_reference: bool
    label: str = ""

    @property
    def shot(self) -> str:
        """What the names of all captures of one shot share; empty for a name without a shot."""
        return shot_of(self.file)


def perceptual_hash(image: Image.Image) -> str:
    """Return 256 bits as 64 hex digits that hardly change with brightness, contrast, size and compression.

    The bits are the signs of the lowest 16 x 16 cosine frequencies (without the constant row and column) of the gray
    picture at 64 x 64 px.
    """
    small = image.convert("L").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    frequencies = np.asarray(dctn(np.asarray(small, np.float64), norm="ortho"))
    return np.packbits(frequencies[1 : _FREQUENCIES + 1, 1 : _FREQUENCIES + 1] > 0).tobytes().hex()


def assign_splits(
    candidates: Sequence[Candidate], rule: SplitRule, recorded: dict[str, str]
) -> tuple[dict[str, str], list[str]]:
    """Assign each candidate to a split.

    Args:
        candidates: In order of age, the oldest first. Recorded captures count as older than all others; among the
            others, references count as older than inspected captures.
        rule: How to split new captures.
        recorded: sha256 -> split, as decided before (see `read_splits`).

    Returns:
        The split of each candidate by its sha256, and remarks for the user, one line each.
    """
    by_age = sorted(candidates, key=lambda candidate: (candidate.sha256 not in recorded, not candidate.is_reference))
    near_duplicates = NearDuplicates([capture.perceptual_hash for capture in by_age], rule.near_duplicate_bits)
    splits: dict[str, str] = {}
    oldest_of_shot: dict[str, Candidate] = {}
    by_shot: dict[str, list[int]] = defaultdict(list)
    for age, capture in enumerate(by_age):
        by_shot[capture.shot].append(age)
    remarks = []
    most_alike = 0
    for age, capture in enumerate(by_age):
        is_new_shot = capture.sha256 not in recorded and capture.shot and capture.shot not in oldest_of_shot
        views = [age, *(by_shot[capture.shot] if is_new_shot else ())]  # the first view decides for all of its shot
        near = [near_duplicates.of(view) for view in views]
        older = [by_age[index] for index in np.unique(np.concatenate(near)) if index < age]
        remarks += _other_label(capture, [by_age[index] for index in near[0] if index < age])
        if capture.shot and oldest_of_shot.setdefault(capture.shot, capture) is not capture:
            older.insert(0, oldest_of_shot[capture.shot])  # a name is certain, near-duplicates are only likely
        if capture.is_reference:
            split = TRAIN
        elif capture.sha256 in recorded:
            split = recorded[capture.sha256]
        else:
            split = splits[older[0].sha256] if older else rule.by_content(capture.sha256)
        splits[capture.sha256] = split
        divided = [other.file for other in older if splits[other.sha256] != split]
        if divided:
            remarks.append(
                f"{capture.file} ({split}) shows the same as {', '.join(divided)} in another split; remove one of them"
            )
        most_alike = max(most_alike, len(older))
    if most_alike >= max(10, len(by_age) / 2):  # if most captures count as one picture, they all end in one split
        remarks.append(
            f"{most_alike} of {len(by_age)} captures count as near-duplicates of one capture: lower "
            f"raw.near_duplicate_bits in params.yaml (now {rule.near_duplicate_bits} of 256)"
        )
    return splits, remarks


class NearDuplicates:
    """Finds the perceptual hashes that differ from one of them in few bits, without comparing each with each.

    The bits are dealt to `bits + 1` hands. Two hashes that differ in at most `bits` bits agree in one hand at least, so
    only hashes with an equal hand are compared. The result is exact.
    """

    def __init__(self, hashes: Sequence[str], bits: int):
        """Index hashes.

        Args:
            hashes: From `perceptual_hash`.
            bits: Largest number of bits in which near-duplicates differ.
        """
        content = np.frombuffer(bytes.fromhex("".join(hashes)), np.uint8).reshape(len(hashes), _HASH_BYTES)
        self._words = np.ascontiguousarray(content).view(np.uint64)
        self._bits = bits
        hands = bits + 1 if bits < _MOST_HANDS else 0  # hands of few bits agree by chance: then compare with all
        self._hands = [_Hand(content, range(hand, 8 * _HASH_BYTES, hands)) for hand in range(hands)]

    def of(self, index: int) -> np.ndarray:
        """Return the indices of the near-duplicates of a hash, in ascending order, itself among them."""
        candidates = (
            np.unique(np.concatenate([hand.equal(index) for hand in self._hands]))
            if self._hands
            else np.arange(len(self._words))
        )
        differing = np.bitwise_count(self._words[candidates] ^ self._words[index]).sum(axis=1)
        return candidates[differing <= self._bits]


class _Hand:
    """Some bits of each hash, and which hashes have the same."""

    def __init__(self, content: np.ndarray, bits: Sequence[int]):
        places = np.array(bits)
        dealt = content[:, places // 8] >> (7 - places % 8).astype(np.uint8) & 1
        packed = np.ascontiguousarray(np.packbits(dealt, axis=1))
        _, group = np.unique(packed.view(f"V{packed.shape[1]}").ravel(), return_inverse=True)
        self._group = group.astype(np.int32)
        self._order = np.argsort(self._group, kind="stable").astype(np.int32)
        self._starts = np.concatenate([[0], np.cumsum(np.bincount(self._group))])

    def equal(self, index: int) -> np.ndarray:
        group = self._group[index]
        return self._order[self._starts[group] : self._starts[group + 1]]


def _other_label(capture: Candidate, near_duplicates: Sequence[Candidate]) -> list[str]:
    """Return a remark on the first near-duplicate of a capture with another label, if there is one."""
    return [
        f"{capture.file} ({capture.label}) shows nearly the same as {other.file} ({other.label}); correct the wrong "
        "label, if one is wrong"
        for other in near_duplicates
        if other.label != capture.label
    ][:1]


def read_splits(path: Path, rule: SplitRule) -> dict[str, str]:
    """Read the splits that `rule` has decided before.

    Returns:
        sha256 -> split; empty when there is no record yet.

    Raises:
        CaptureError: The record is damaged.
    """
    if not path.exists():
        return {}
    try:
        record = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
        rows = list(zip(record["sha256"], record["split"], record["rule"], strict=True))
    except (KeyError, ValueError) as error:
        raise CaptureError(f"{path}: not a record of splits ({error}); restore it by `git checkout {path}`") from None
    unknown = sorted({split for _, split, _ in rows} - set(SPLITS))
    if unknown:
        raise CaptureError(f"{path}: unknown splits {unknown}; restore it by `git checkout {path}`")
    return {sha256: split for sha256, split, version in rows if version == rule.version}


def write_splits(path: Path, splits: Iterable[tuple[str, str]], rule: SplitRule) -> None:
    """Write the record atomically, ordered by sha256.

    Args:
        path: The record.
        splits: Pairs of sha256 and split.
        rule: The rule that decided them.
    """
    rows = io.StringIO()
    frame = pd.DataFrame(sorted(splits), columns=["sha256", "split"]).assign(rule=rule.version)
    frame.to_csv(rows, index=False, lineterminator="\n")
    write_file(path, rows.getvalue())
