"""Which captures are trained on, and which are kept to test with.

A hash of the content decides, so that neither names nor order matter. Near-duplicates (the same picture, stored or
brightened anew) would leak from training into the test, so a capture that comes later joins the split of the oldest
one that it nearly equals; so does the other eye's view of a connector. Once decided, a split is written down and never
changes.

Two pictures are near-duplicates when their perceptual hashes differ by few bits. On the sample line, where all
pictures look alike, the hashes of two distinct captures differ by 34 of 256 bits at least (half of the pairs by 103);
those of a capture and its copy (JPEG quality 60-95, brightness -5..+10 %, half or 1.5 times the size, one px cut off)
by 15 at most.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy.fft import dctn

from pinspect.core.errors import CaptureError
from pinspect.core.files import write_file
from pinspect.core.lines import eye_of
from pinspect.core.rows import SPLITS

TRAIN, VALIDATION, TEST = SPLITS
_THUMBNAIL = 64
_FREQUENCIES = 16


@dataclass(frozen=True)
class SplitRule:
    """How new captures are split: a salt for the hash, the shares kept from training, and how many bits near-duplicates
    may differ in."""

    salt: str
    validation_share: float
    test_share: float
    near_duplicate_bits: int

    @property
    def version(self) -> str:
        """Names the rule in the record: what another rule has decided does not bind this one."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:12]

    def by_content(self, sha256: str) -> str:
        """The split of a capture that resembles no other."""
        place = int(hashlib.sha256(f"{self.salt}/{sha256}".encode()).hexdigest()[:16], 16) / 16**16
        if place < self.test_share:
            return TEST
        return VALIDATION if place < self.test_share + self.validation_share else TRAIN


@dataclass(frozen=True)
class Candidate:
    """A capture to be split. References only ever serve as what others are compared with: they are for training."""

    file: str
    sha256: str
    perceptual_hash: str
    is_reference: bool

    @property
    def connector(self) -> str:
        """What the names of both eyes' views of one connector share; empty where the name tells no eye."""
        eye = eye_of(self.file)
        return self.file.removeprefix(eye) if eye else ""


def perceptual_hash(image: Image.Image) -> str:
    """256 bits, as 64 hex digits: the signs of the lowest 16 x 16 cosine frequencies (without the constant row and
    column) of the gray picture at 64 x 64 px. Brightness, contrast, size and compression hardly touch them."""
    small = image.convert("L").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
    frequencies = dctn(np.asarray(small, np.float64), norm="ortho")[1 : _FREQUENCIES + 1, 1 : _FREQUENCIES + 1]
    return np.packbits(frequencies > 0).tobytes().hex()


def assign_splits(
    candidates: Sequence[Candidate], rule: SplitRule, recorded: dict[str, str]
) -> tuple[dict[str, str], list[str]]:
    """The split of each candidate by its sha256, and remarks worth showing, one line each.

    candidates: in order of age, the oldest first. recorded: sha256 -> split, as decided before (see `read_splits`).
    Recorded captures count as older than all others, and among these references as older than inspected captures.
    """
    by_age = sorted(candidates, key=lambda one: (one.sha256 not in recorded, not one.is_reference))
    hashes = np.array([list(bytes.fromhex(one.perceptual_hash)) for one in by_age], np.uint8).reshape(len(by_age), 32)
    splits: dict[str, str] = {}
    first_view: dict[str, Candidate] = {}
    remarks = []
    crowd = 0
    for age, capture in enumerate(by_age):
        bits = np.bitwise_count(hashes[:age] ^ hashes[age]).sum(axis=1, dtype=np.int64)
        older = [by_age[index] for index in np.flatnonzero(bits <= rule.near_duplicate_bits)]
        if capture.connector and first_view.setdefault(capture.connector, capture) is not capture:
            older.append(first_view[capture.connector])
        if capture.is_reference:
            split = TRAIN
        elif capture.sha256 in recorded:
            split = recorded[capture.sha256]
        else:
            split = splits[older[0].sha256] if older else rule.by_content(capture.sha256)
        splits[capture.sha256] = split
        strangers = [other.file for other in older if splits[other.sha256] != split]
        if strangers:
            remarks.append(
                f"{capture.file} ({split}) shows what {', '.join(strangers)} of another split shows; remove one of them"
            )
        crowd = max(crowd, len(older))
    if crowd >= max(10, len(by_age) / 2):  # taken for one, most captures end in one split
        remarks.append(
            f"{crowd} of {len(by_age)} captures nearly equal one other: lower raw.near_duplicate_bits in params.yaml "
            f"(now {rule.near_duplicate_bits} of 256)"
        )
    return splits, remarks


def read_splits(path: Path, rule: SplitRule) -> dict[str, str]:
    """sha256 -> split, of what `rule` has decided before; empty when there is no record yet.

    Raises CaptureError when the record is damaged.
    """
    if not path.exists():
        return {}
    try:
        record = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")[["sha256", "split", "rule"]]
    except (KeyError, ValueError) as error:
        raise CaptureError(f"{path}: not a record of splits ({error}); restore it by `git checkout {path}`") from None
    unknown = sorted(set(record["split"]) - set(SPLITS))
    if unknown:
        raise CaptureError(f"{path}: unknown splits {unknown}; restore it by `git checkout {path}`")
    record = record[record["rule"] == rule.version]
    return dict(zip(record["sha256"], record["split"], strict=True))


def write_splits(path: Path, splits: Iterable[tuple[str, str]], rule: SplitRule) -> None:
    """Write the record down, whole or not at all, ordered by sha256."""
    rows = io.StringIO()
    frame = pd.DataFrame(sorted(splits), columns=["sha256", "split"]).assign(rule=rule.version)
    frame.to_csv(rows, index=False, lineterminator="\n")
    write_file(path, rows.getvalue())
