"""Measures the dst stage on this machine.

    python benchmarks/dst_stage.py            everything
    python benchmarks/dst_stage.py faults     some parts; the others keep their figures

Reads data/captures (and data/splits.csv, if the raw stage has written it) and writes benchmarks/results/dst_stage.json
and dst_stage.md. The parts are throughput_ms, increment and faults. One core, about two minutes.
"""

import contextlib
import hashlib
import io
import json
import os
import platform
import shutil
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image
from threadpoolctl import threadpool_limits

from pinspect.captures.raw import COLUMNS, build_raw
from pinspect.core.images import read_image, to_gray
from pinspect.core.manifests import read_manifest
from pinspect.core.params import Params, load_params
from pinspect.nsoartc.alignment import align, warp
from pinspect.nsoartc.dst import Reading, build_dst
from pinspect.nsoartc.dst_view import paint_dst_view
from pinspect.nsoartc.pin_scores import measure_pins
from pinspect.nsoartc.unit_space import UnitSpace, even_light

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"


def main() -> None:
    cv2.setNumThreads(1)
    params = load_params(ROOT / "params.yaml")
    results = RESULTS / "dst_stage.json"
    chosen = sys.argv[1:] or list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        sys.exit(f"{', '.join(sorted(unknown))}: no part of this benchmark; there are {', '.join(PARTS)}")
    measured = json.loads(results.read_text(encoding="utf-8")) if sys.argv[1:] else {"machine": machine()}
    with (
        tempfile.TemporaryDirectory() as folder,
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stderr(nowhere),  # the progress bars
        threadpool_limits(1),
    ):
        captures, raw = sample_line(Path(folder), params)
        measured |= {part: PARTS[part](captures, raw, params, Path(folder)) for part in chosen}
    RESULTS.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "dst_stage.md").write_text(as_markdown(measured), encoding="utf-8")
    print(as_markdown(measured))


def machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, one used; Python {platform.python_version()}"


def sample_line(folder: Path, params: Params) -> tuple[pd.DataFrame, Path]:
    """Return the manifest and the raw folder of data/captures, split as in the project, with its dst folder beside."""
    data = folder / "sample"
    data.mkdir()
    if (ROOT / "data/splits.csv").exists():
        shutil.copy(ROOT / "data/splits.csv", data)
    virtual = params.raw.virtual.model_copy(update={"train": 0, "validation": 0, "test": 0})
    raw_params = params.raw.model_copy(update={"virtual": virtual})
    build_raw(ROOT / "data/captures", data / "raw", data / "splits.csv", params.contract(), raw_params)
    build_dst(data / "raw", data / "dst", reading_of(params), workers=1)
    return read_manifest(data / "raw/manifest.csv", COLUMNS), data / "raw"


def reading_of(params: Params) -> Reading:
    return Reading(params.layout.layout(), params.dst, params.raw.max_pixels)


def gray_of(raw: Path, file: str, params: Params) -> np.ndarray:
    return to_gray(read_image(raw / file, params.raw.max_pixels))


# From file to file


def seconds(job: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    job()
    return clock() - start


def throughput(captures: pd.DataFrame, raw: Path, params: Params, folder: Path) -> dict:
    """Milliseconds from image file to DST file, one core, by step."""
    space = UnitSpace.load(raw.parent / "dst/unit_space/camera-CYLN.npz")
    files = captures.loc[(captures["shape"] == "CYLN") & (captures["role"] == "inspected"), "file"][:40]
    steps = dict.fromkeys(("decode", "align", "measure", "draw", "encode"), 0.0)
    for file in files:
        marks = [time.process_time()]
        gray = gray_of(raw, file, params)
        marks.append(time.process_time())
        aligned = warp(gray, align(gray, space.mean, params.dst.maximum_shift), space.size)
        marks.append(time.process_time())
        evened = even_light(aligned, space.templates)
        measures = measure_pins(evened, space.templates)
        marks.append(time.process_time())
        view = paint_dst_view(evened, measures, space.pin_distances(measures), space)
        marks.append(time.process_time())
        cv2.imwrite(str(folder / "view.png"), view[..., ::-1], (cv2.IMWRITE_PNG_COMPRESSION, 1))
        marks.append(time.process_time())
        for name, taken in zip(steps, np.diff(marks), strict=True):
            steps[name] += taken / len(files) * 1e3
    total = sum(steps.values())
    return {name: round(value, 2) for name, value in steps.items()} | {
        "total": round(total, 2),
        "captures_a_second": round(1e3 / total, 1),
        "share_of_decoding_and_encoding": round((steps["decode"] + steps["encode"]) / total, 2),
    }


# Adding ten captures to a thousand


def increment(captures: pd.DataFrame, raw: Path, params: Params, folder: Path) -> dict:
    """Seconds of the dst stage: clean on 1000 captures, with ten more added, and clean on all of them."""
    root = folder / "growing"
    reading = reading_of(params)
    virtual = params.raw.virtual.model_copy(update={"train": 990, "test": 0})
    raw_params = params.raw.model_copy(update={"virtual": virtual})
    (root / "captures/images").mkdir(parents=True)
    (root / "captures/labels.csv").write_text("file,shape,judgement,defect_mode,defect_position,role\n")
    build_raw(root / "captures", root / "raw", root / "splits.csv", params.contract(), raw_params)
    manifest = pd.read_csv(root / "raw/manifest.csv", dtype=str, keep_default_na=False)
    first = pd.concat([manifest[manifest["role"] == "reference"], manifest[manifest["role"] != "reference"][:-10]])
    first.to_csv(root / "raw/manifest.csv", index=False)
    clean = seconds(lambda: build_dst(root / "raw", root / "dst", reading, workers=1))
    manifest.to_csv(root / "raw/manifest.csv", index=False)
    added = seconds(lambda: build_dst(root / "raw", root / "dst", reading, workers=1))
    build_dst(root / "raw", root / "again", reading, workers=1)
    return {
        "captures": len(first),
        "clean_s": round(clean, 2),
        "ten_more_s": round(added, 2),
        "share": round(added / clean, 4),
        "identical_to_a_clean_run": _contents(root / "dst") == _contents(root / "again"),
    }


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Faults


def faults(captures: pd.DataFrame, raw: Path, params: Params, folder: Path) -> list[dict]:
    """What the dst stage makes of spoiled and of unusual files: it must handle or refuse each, and finish the others.

    All are made of one defective capture. `difference`: how far, on average, a handled file's DST view is from that of
    the capture itself, in levels of 255.
    """
    of_shape = captures[captures["shape"] == "CYLN"]
    references = of_shape[of_shape["role"] == "reference"]
    good = of_shape[(of_shape["role"] != "reference") & (of_shape["judgement"] == "defective")].iloc[:1]
    contents = spoiled((raw / good["file"].item()).read_bytes(), params.raw.max_pixels)
    place = folder / "faults"
    table = pd.concat([references, good, *(good.assign(capture=name) for name in contents)], ignore_index=True)
    for number, row in table.iterrows():
        is_spoiled = row["capture"] in contents
        content = contents[row["capture"]] if is_spoiled else (raw / row["file"]).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        table.loc[number, ["file", "sha256"]] = [f"images/{sha256[:2]}/{sha256[:20]}", sha256]
        (place / f"raw/images/{sha256[:2]}").mkdir(parents=True, exist_ok=True)
        (place / "raw" / table.loc[number, "file"]).write_bytes(content)
    table.to_csv(place / "raw/manifest.csv", index=False)
    build_dst(place / "raw", place / "dst", reading_of(params), workers=1)
    made = pd.read_csv(place / "dst/manifest.csv", keep_default_na=False).set_index(table["capture"])
    usual = cv2.imread(str(place / "dst" / made.loc[good["capture"].item(), "dst_file"])).astype(int)
    rows = []
    for name in contents:
        error = made.loc[name, "error"].removeprefix(f"{place / 'raw' / made.loc[name, 'file']}: ")
        row = {"file": name, "outcome": "refused" if error else "handled", "message": error}
        if not error:
            view = cv2.imread(str(place / "dst" / made.loc[name, "dst_file"])).astype(int)
            row["difference"] = round(float(np.abs(view - usual).mean()), 2)
        rows.append(row)
    return rows


def spoiled(jpeg: bytes, max_pixels: int) -> dict[str, bytes]:
    """One photograph as ten kinds of file."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    gray = image.convert("L")
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    side = int(max_pixels**0.5) + 1
    return {
        "0 bytes": b"",
        "cut in the middle": jpeg[: len(jpeg) // 2],
        "bomb: more pixels than raw.max_pixels": _png_header(side, side),
        "no image": b"no image\n" * 9,
        "1 x 1 px": _saved(Image.new("RGB", (1, 1)), "png"),
        "16 bit": _saved(Image.fromarray(np.asarray(gray).astype(np.uint16) * 257), "png"),
        "palette": _saved(gray.convert("P"), "png"),
        "alpha": _saved(image.convert("RGBA"), "png"),
        "CMYK": _saved(image.convert("CMYK"), "tiff"),
        "turned, with its EXIF orientation": _saved(image.rotate(180), "png", exif=turned),
    }


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def _png_header(width: int, height: int) -> bytes:
    """A PNG file that says how large it is and holds next to nothing."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"\0" * 99))]
    packed = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


PARTS = {
    "throughput_ms": throughput,
    "increment": increment,
    "faults": faults,
}


# The page


def as_markdown(results: dict) -> str:
    flow, growth = results["throughput_ms"], results["increment"]
    equality = "byte for byte that" if growth["identical_to_a_clean_run"] else "NOT that"
    return "\n".join(
        [
            "# The dst stage: figures",
            "",
            f"Made by `python benchmarks/dst_stage.py` on {results['machine']}. `dst_stage.json` has the same figures.",
            "",
            "## From image file to DST file, one core (ms a capture)",
            "",
            "| " + " | ".join(flow) + " |",
            "|" + " --- |" * len(flow),
            "| " + " | ".join(str(value) for value in flow.values()) + " |",
            "",
            "## Ten captures more",
            "",
            f"A clean run of the dst stage on {growth['captures']} captures takes {growth['clean_s']} s,",
            f"with ten more added {growth['ten_more_s']} s: {growth['share']:.1%}.",
            f"The folder is {equality} of a clean run.",
            "",
            "## Damaged and unusual files",
            "",
            "One defective capture as ten kinds of file, through the dst stage together with good captures. The",
            "difference is that of the DST view from the capture's own, in levels of 255, on average.",
            "",
            "| file | outcome | difference | message |",
            "| --- | --- | --- | --- |",
            *(
                f"| {row['file']} | {row['outcome']} | {row.get('difference', '')} | {row['message']} |"
                for row in results["faults"]
            ),
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
