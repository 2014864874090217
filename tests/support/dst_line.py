"""Raw folders for tests of the dst stage and what follows it, and their dst folders."""

import csv
import hashlib

from pinspect.captures.raw import COLUMNS as RAW_COLUMNS
from pinspect.nsoartc.dst import DstReport, Reading, build_dst
from tests.support.sample import params

READING = Reading(params().layout.layout(), params().dst, params().raw.max_pixels)


def drop_raw(root, captures, **changes) -> None:
    """Write a raw folder of `captures` as the raw stage does. `changes`: columns by capture name."""
    raw = root / "data/raw"
    rows = read_rows(raw)
    for capture in captures:
        row = dict.fromkeys(RAW_COLUMNS, "") | {
            "source": "camera", "capture": capture.name, "shape": capture.shape, "judgement": capture.judgement,
            "defect_mode": capture.defect_mode, "defect_position": capture.defect_position, "role": capture.role,
            "split": capture.split,
        }  # fmt: skip
        row |= dict(zip(RAW_COLUMNS[10:14], map(str, capture.field_box), strict=True)) | changes.get(capture.name, {})
        rows[capture.name] = row | put(raw, row.pop("content", capture.jpeg), row.pop("suffix", ".jpg"))
    write_rows(raw, rows.values())


def put(raw, content: bytes, suffix: str) -> dict[str, str]:
    sha256 = hashlib.sha256(content).hexdigest()
    file = f"images/{sha256[:2]}/{sha256[:20]}{suffix}"
    (raw / file).parent.mkdir(parents=True, exist_ok=True)
    (raw / file).write_bytes(content)
    return {"file": file, "sha256": sha256}


def read_rows(raw) -> dict[str, dict[str, str]]:
    if not (raw / "manifest.csv").exists():
        return {}
    with (raw / "manifest.csv").open(newline="") as file:
        return {row["capture"]: row for row in csv.DictReader(file)}


def write_rows(raw, rows) -> None:
    with (raw / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, RAW_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["capture"]))


def build(root, reading: Reading = READING) -> DstReport:
    return build_dst(root / "data/raw", root / "data/dst", reading, workers=1)
