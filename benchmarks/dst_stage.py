"""Measures the dst stage on this machine.

    python benchmarks/dst_stage.py            everything
    python benchmarks/dst_stage.py faults     some parts; the others keep their figures

Reads data/captures (and data/splits.csv, if the raw stage has written it) and writes benchmarks/results/dst_stage.json
and dst_stage.md. The parts are throughput (against an older revision, in a git worktree), steps_ms, formats and faults.
One core, about two minutes.
"""

import contextlib
import hashlib
import io
import json
import os
import platform
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image
from threadpoolctl import threadpool_limits

from pinspect.captures.raw import COLUMNS, build_raw
from pinspect.core.images import read_image
from pinspect.core.manifests import read_manifest
from pinspect.core.params import Params, load_params
from pinspect.nsoartc.aligned import align_capture, place_capture
from pinspect.nsoartc.dst import Reading, build_dst
from pinspect.nsoartc.dst_view import dst_view, encode_dst
from pinspect.nsoartc.pin_scores import measure_pins
from pinspect.nsoartc.pixels import gray_of
from pinspect.nsoartc.unit_space import UnitSpace

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
OLD = "8b64c44"  # the last revision with the DST view of the first release, written as PNG
CAPTURES, ROUNDS = 40, 3


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
    raw_params = params.raw.model_copy(update={"virtual": virtual, "shards": 0})  # earlier commits read files
    build_raw(ROOT / "data/captures", data / "raw", data / "splits.csv", params.contract(), raw_params)
    build_dst(data / "raw", data / "dst", reading_of(params), workers=1)
    return read_manifest(data / "raw/manifest.csv", COLUMNS), data / "raw"


def reading_of(params: Params) -> Reading:
    return Reading(params.layout.layout(), params.dst, params.raw.max_pixels)


# From file to file


def throughput(captures: pd.DataFrame, raw: Path, params: Params, folder: Path) -> dict:
    """Return captures per second from image file to DST file of this tree and of `OLD`, on one core.

    Both trees run the function of stage dst that makes one capture's DST file, in rounds that alternate between them.
    """
    of_shape = captures[captures["shape"] == "CYLN"]
    inspected = of_shape[of_shape["role"] == "inspected"][:CAPTURES]
    chosen = pd.concat([of_shape[of_shape["role"] == "reference"], inspected])
    (folder / "files.json").write_text(json.dumps(list(inspected["file"])), encoding="utf-8")
    (folder / "few").mkdir()
    chosen.to_csv(folder / "few/manifest.csv", index=False)
    (folder / "few/images").symlink_to(raw / "images")
    old = folder / "old"
    subprocess.run(["git", "worktree", "add", "--detach", "--force", str(old), OLD], cwd=ROOT, check=True)
    times: dict[str, list[float]] = {"old": [], "new": []}
    try:
        for _ in range(ROUNDS):
            for name, tree in (("old", old), ("new", ROOT)):
                times[name].append(_milliseconds(tree, folder))
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(old)], cwd=ROOT, check=True)
    ms = {name: float(np.median(values)) for name, values in times.items()}
    return {
        "old_revision": OLD,
        "old_ms": round(ms["old"], 2),
        "new_ms": round(ms["new"], 2),
        "old_captures_a_second": round(1e3 / ms["old"], 1),
        "new_captures_a_second": round(1e3 / ms["new"], 1),
        "ratio": round(ms["old"] / ms["new"], 2),
    }


def _milliseconds(tree: Path, folder: Path) -> float:
    """Return the milliseconds of process time that a tree needs to make a capture's DST file."""
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORKER, str(folder / "few"), str(folder / "files.json"), str(folder / "round")]
    done = subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True, text=True)
    shutil.rmtree(folder / "round")
    return float(done.stdout)


# Runs in the tree of either revision.
WORKER = """
import dataclasses, hashlib, inspect, json, sys, time
from pathlib import Path
import cv2
from pinspect.core.files import write_file
from pinspect.core.manifests import read_manifest
from pinspect.core.params import load_params
from pinspect.nsoartc.dst import BuiltUnitSpace, Comparison, Reading, build_dst, draw_dst_view

cv2.setNumThreads(1)
raw, names, out = map(Path, sys.argv[1:])
params = load_params("params.yaml")
reading = Reading(params.layout.layout(), params.dst, params.raw.max_pixels)
build_dst(raw, out / "dst", reading, workers=1)
path = out / "dst/unit_space/camera-CYLN.npz"
remarks = [()] * (len(dataclasses.fields(BuiltUnitSpace)) - 2)
space = BuiltUnitSpace(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), *remarks)
comparisons = [(file, Comparison(str(raw / file), "", space)) for file in json.loads(names.read_text())]
def make(comparison):
    if "folder" in inspect.signature(draw_dst_view).parameters:  # as it was until November 2026
        draw_dst_view(reading, comparison, out)
    else:
        for name, content in draw_dst_view(reading, comparison).files.items():
            write_file(out / name, content)
make(comparisons[0])
start = time.process_time()
for comparison in comparisons:
    make(comparison)
print((time.process_time() - start) / len(comparisons) * 1e3)
"""


def steps(captures: pd.DataFrame, raw: Path, params: Params, folder: Path) -> dict:
    """Return the milliseconds of each step from image file to DST file."""
    space = UnitSpace.load(raw.parent / "dst/unit_space/camera-CYLN.npz")
    files = captures.loc[(captures["shape"] == "CYLN") & (captures["role"] == "inspected"), "file"][:CAPTURES]
    names = ("decode", "align", "map", "even the light", "measure the pins", "stage 1", "picture", "encode")
    taken = np.zeros((len(files), len(names)))
    for number, file in enumerate(files):
        marks = [time.process_time()]

        def done(value: object, marks: list[float] = marks) -> None:
            marks.append(time.process_time())

        image = np.asarray(read_image(raw / file, params.raw.max_pixels))
        done(image)
        place = space.alignment_target.align(gray_of(image), params.dst.maximum_shift)
        done(place)
        capture = place_capture(image, place, space)
        done(capture)
        done(capture.evened)
        done(measure_pins(capture.evened, space.templates))
        done(capture.distance)
        picture = dst_view(capture)
        done(picture)
        done(encode_dst(picture))
        taken[number] = np.diff(marks) * 1e3
    return {name: round(float(value), 2) for name, value in zip(names, np.median(taken, axis=0), strict=True)}


def formats(captures: pd.DataFrame, raw: Path, params: Params, folder: Path) -> dict:
    """Return milliseconds, bytes and loss (mean and largest level of 255) of DST pictures in several formats."""
    space = UnitSpace.load(raw.parent / "dst/unit_space/camera-CYLN.npz")
    files = captures.loc[(captures["shape"] == "CYLN") & (captures["role"] == "inspected"), "file"][:CAPTURES]
    images = [np.asarray(read_image(raw / file, params.raw.max_pixels)) for file in files]
    pictures = [dst_view(align_capture(image, space, params.dst.maximum_shift)) for image in images]
    full_color = (cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)
    jpeg = {f"JPEG {q}": (".jpg", (cv2.IMWRITE_JPEG_QUALITY, q, *full_color)) for q in (90, 95, 98)}
    options = {
        "PNG, level 1": (".png", (cv2.IMWRITE_PNG_COMPRESSION, 1)),
        "PNG, level 6": (".png", (cv2.IMWRITE_PNG_COMPRESSION, 6)),
        "PNG, run lengths": (".png", (cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)),
        "WebP, lossless": (".webp", (cv2.IMWRITE_WEBP_QUALITY, 101)),
        **jpeg,
    }
    rows = {}
    for name, (suffix, flags) in options.items():
        taken, sizes, mean_losses, largest = [], [], [], 0
        for picture in pictures:
            start = time.process_time()
            content = cv2.imencode(suffix, picture[..., ::-1], flags)[1]
            taken.append(time.process_time() - start)
            loss = np.abs(cv2.imdecode(content, cv2.IMREAD_COLOR_RGB).astype(int) - picture)
            sizes.append(len(content))
            mean_losses.append(loss.mean())
            largest = max(largest, int(loss.max()))
        rows[name] = {
            "ms": round(float(np.median(taken)) * 1e3, 2),
            "bytes": round(float(np.mean(sizes))),
            "mean_loss": round(float(np.mean(mean_losses)), 2),
            "largest_loss": largest,
        }
    return rows


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


PARTS = {"throughput": throughput, "steps_ms": steps, "formats": formats, "faults": faults}


# The page


def as_markdown(results: dict) -> str:
    flow, taken = results["throughput"], results["steps_ms"]
    return "\n".join(
        [
            "# The dst stage: figures",
            "",
            f"Made by `python benchmarks/dst_stage.py` on {results['machine']}. `dst_stage.json` has the same figures.",
            "",
            "## From image file to DST file, one core",
            "",
            "| | ms a capture | captures a second |",
            "| --- | --- | --- |",
            f"| revision {flow['old_revision']} | {flow['old_ms']} | {flow['old_captures_a_second']} |",
            f"| today | {flow['new_ms']} | {flow['new_captures_a_second']} |",
            f"| ratio | {flow['ratio']} | |",
            "",
            "Today's steps in ms, medians:",
            "",
            "| " + " | ".join(taken) + " |",
            "|" + " --- |" * len(taken),
            "| " + " | ".join(str(value) for value in taken.values()) + " |",
            "",
            "## Formats of a DST picture",
            "",
            "Loss in levels of 255. The stage writes JPEG 95 with full color resolution.",
            "",
            "| format | ms | bytes | mean loss | largest loss |",
            "| --- | --- | --- | --- | --- |",
            *(
                f"| {name} | {row['ms']} | {row['bytes']} | {row['mean_loss']} | {row['largest_loss']} |"
                for name, row in results["formats"].items()
            ),
            "",
            "## Damaged and unusual files",
            "",
            "One defective capture as ten kinds of file, through the dst stage together with good captures. The",
            "difference is that of the DST picture from the capture's own, in levels of 255, on average.",
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
