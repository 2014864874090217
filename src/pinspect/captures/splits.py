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

import csv
import hashlib
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.fft import dctn

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
_AGES = """
CREATE TABLE ages (age INTEGER PRIMARY KEY, number, file, sha256, perceptual_hash, is_reference, label, shot, decided);
INSERT INTO ages
    SELECT row_number() OVER (ORDER BY decided.split IS NULL, role != 'reference', number) - 1, number, file, sha256,
        perceptual_hash, role = 'reference', trim(judgement || ' ' || defect_mode || ' ' || defect_position),
        shot_of(file), decided.split
    FROM captures LEFT JOIN decided USING (sha256);
CREATE INDEX views ON ages (shot, age);
"""


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


def assign_splits(captures: sqlite3.Connection, rule: SplitRule) -> list[str]:
    """Assign each capture to a split.

    Args:
        captures: From `new_capture_table`, with perceptual hashes (see `perceptual_hash`). Captures whose split is
            decided count as older than all others, and references as older than inspected captures. References are
            always for training, since other captures are compared with them.
        rule: How to split new captures.

    Returns:
        Remarks for the user, one line each. The splits are in the table.
    """
    captures.create_function("shot_of", 1, shot_of, deterministic=True)
    captures.executescript(_AGES)
    hashes = captures.execute("SELECT perceptual_hash FROM ages ORDER BY age")
    near_duplicates = NearDuplicates((content for (content,) in hashes), rule.near_duplicate_bits)
    count = len(near_duplicates)
    split_of, label_of = np.zeros(count, np.int8), np.zeros(count, np.int32)  # by age
    labels: dict[str, int] = {}
    remarks = []
    most_alike = 0

    def name(age: int) -> str:
        return captures.execute("SELECT file FROM ages WHERE age = ?", (int(age),)).fetchone()[0]

    rows = captures.execute("SELECT age, file, sha256, is_reference, label, shot, decided FROM ages ORDER BY age")
    for age, file, sha256, is_reference, label, shot, decided in rows:
        label_of[age] = labels.setdefault(label, len(labels))
        views = _views(captures, shot) if shot else np.array([age])
        near = near_duplicates.older(age, age)
        older = near
        if not decided and age == views[0] and len(views) > 1:  # the first view decides for all of its shot
            older = np.unique(np.concatenate([near_duplicates.older(view, age) for view in views]))
        unlike = near[label_of[near] != label_of[age]]
        if len(unlike):
            remarks.append(
                f"{file} ({label}) shows nearly the same as {name(unlike[0])} "
                f"({[*labels][label_of[unlike[0]]]}); correct the wrong label, if one is wrong"
            )
        if age != views[0]:
            older = np.concatenate([views[:1], older])  # a name is certain, near-duplicates are only likely
        if is_reference:
            split = TRAIN
        elif decided:
            split = decided
        else:
            split = SPLITS[split_of[older[0]]] if len(older) else rule.by_content(sha256)
        split_of[age] = SPLITS.index(split)
        divided = [name(other) for other in older[split_of[older] != split_of[age]]]
        if divided:
            remarks.append(
                f"{file} ({split}) shows the same as {', '.join(divided)} in another split; remove one of them"
            )
        most_alike = max(most_alike, len(older))
    if most_alike >= max(10, count / 2):  # if most captures count as one picture, they all end in one split
        remarks.append(
            f"{most_alike} of {count} captures count as near-duplicates of one capture: lower "
            f"raw.near_duplicate_bits in params.yaml (now {rule.near_duplicate_bits} of 256)"
        )
    numbers = captures.execute("SELECT number FROM ages ORDER BY age")
    decisions = ((SPLITS[split], number) for split, (number,) in zip(split_of, numbers, strict=True))
    captures.executemany("UPDATE captures SET split = ? WHERE number = ?", decisions)
    return remarks


def _views(captures: sqlite3.Connection, shot: str) -> np.ndarray:
    """Return the ages of all captures of a shot, the oldest first."""
    ages = captures.execute("SELECT age FROM ages WHERE shot = ? ORDER BY age", (shot,))
    return np.array([age for (age,) in ages])


class NearDuplicates:
    """Finds the perceptual hashes that differ from one of them in few bits.

    Each pair is first compared in 64 bits, those that differ most often between the hashes. Pairs that differ in more
    than `bits` of these are no near-duplicates; the others are compared in all 256 bits. The result is exact.
    """

    def __init__(self, hashes: Iterable[str], bits: int):
        """Prepare hashes for comparison.

        Args:
            hashes: From `perceptual_hash`.
            bits: Largest number of bits in which near-duplicates differ.
        """
        content = np.fromiter(map(bytes.fromhex, hashes), f"S{_HASH_BYTES}")
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

    def __len__(self) -> int:
        return len(self._words)

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


def read_splits(path: Path, rule: SplitRule) -> Iterator[tuple[str, str]]:
    """Yield sha256 and split of each capture whose split `rule` has decided before; none when there is no record yet.

    Raises:
        CaptureError: The record is damaged.
    """
    remedy = f"restore it by `git checkout {path}`"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            if missing := [name for name in RECORD if name not in (rows.fieldnames or ())]:
                raise CaptureError(f"{path}: not a record of splits ({', '.join(missing)} missing); {remedy}")
            for row in rows:
                if row["split"] not in SPLITS:
                    raise CaptureError(f"{path}: unknown split {row['split']!r}; {remedy}")
                if row["rule"] == rule.version:
                    yield row["sha256"], row["split"]
    except FileNotFoundError:
        return
    except (csv.Error, UnicodeDecodeError) as error:
        raise CaptureError(f"{path}: not a record of splits ({error}); {remedy}") from None


def write_splits(path: Path, splits: Iterable[tuple[str, str]], rule: SplitRule) -> None:
    """Write the record atomically.

    Args:
        path: The record.
        splits: sha256 and split of each capture, ordered by sha256.
        rule: The rule that decided them.
    """
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(RECORD)
        rows.writerows((sha256, split, rule.version) for sha256, split in splits)
