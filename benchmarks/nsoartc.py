"""What NSOARTC gives and costs, measured on this machine.

    python benchmarks/nsoartc.py            everything
    python benchmarks/nsoartc.py faults     some parts; the figures of the others stay

Reads data/captures (and data/splits.csv, where the raw stage has written it) and writes benchmarks/results/nsoartc.json
and nsoartc.md. The parts are accuracy, speed, throughput_ms, increment and faults. One core, about two minutes for all.
Nothing is fitted on the test split: the unit space comes from the references alone.
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
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from PIL import Image
from skimage.metrics import structural_similarity
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from pinspect.captures.labels import FIELD_BOX
from pinspect.captures.raw import COLUMNS, build_raw
from pinspect.core.images import read_image, to_gray
from pinspect.core.layout import Layout
from pinspect.core.manifests import read_manifest
from pinspect.core.params import Params, load_params
from pinspect.examination.baseline import fit_baseline
from pinspect.nsoartc.alignment import align, warp
from pinspect.nsoartc.dst import Reading, build_dst
from pinspect.nsoartc.dst_view import dst_view, paint_dst_view
from pinspect.nsoartc.pin_scores import measure_pins
from pinspect.nsoartc.unit_space import UnitSpace, even_light
from pinspect.nsoartc.window_beta import distance_image, nsoartc

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
WINDOW = 9
MODES = ("bend", "retract", "missing")
DEFAULT = "default: aligned, light evened, pins measured"


def main() -> None:
    cv2.setNumThreads(1)
    params = load_params(ROOT / "params.yaml")
    results = RESULTS / "nsoartc.json"
    asked = sys.argv[1:] or list(PARTS)
    if unknown := set(asked) - set(PARTS):
        sys.exit(f"{', '.join(sorted(unknown))}: no part of this benchmark; there are {', '.join(PARTS)}")
    found = json.loads(results.read_text(encoding="utf-8")) if sys.argv[1:] else {"machine": machine()}
    with (
        tempfile.TemporaryDirectory() as folder,
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stderr(nowhere),  # the progress bars
        threadpool_limits(1),
    ):
        captures, raw = sample_line(Path(folder), params)
        found |= {part: PARTS[part](captures, raw, params, Path(folder)) for part in asked}
    RESULTS.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "nsoartc.md").write_text(as_markdown(found), encoding="utf-8")
    print(as_markdown(found))


def machine() -> str:
    return f"{platform.machine()}, {os.cpu_count()} cores, one used; Python {platform.python_version()}"


def sample_line(folder: Path, params: Params) -> tuple[pd.DataFrame, Path]:
    """The manifest and the raw folder of the captures in data/captures, split as the project has split them; the dst
    folder lies beside it."""
    data = folder / "sample"
    data.mkdir()
    if (ROOT / "data/splits.csv").exists():
        shutil.copy(ROOT / "data/splits.csv", data)
    virtual = params.raw.virtual.model_copy(update={"train": 0, "validation": 0, "test": 0})
    asked = params.raw.model_copy(update={"virtual": virtual})
    build_raw(ROOT / "data/captures", data / "raw", data / "splits.csv", params.contract(), asked)
    build_dst(data / "raw", data / "dst", reading_of(params), workers=1)
    return read_manifest(data / "raw/manifest.csv", COLUMNS), data / "raw"


def reading_of(params: Params) -> Reading:
    return Reading(params.layout.layout(), params.dst, params.raw.max_pixels)


def gray_of(raw: Path, file: str, params: Params) -> np.ndarray:
    return to_gray(read_image(raw / file, params.raw.max_pixels))


# Accuracy


def accuracy(captures: pd.DataFrame, raw: Path, params: Params, folder: Path) -> list[dict]:
    """AUROC of the judgement and accuracy of the address, per shape, variant and set of captures."""
    rows = []
    layout = params.layout.layout()
    baseline = fit_baseline(raw.parent / "dst", raw, params.contract())
    for shape, of_shape in captures.groupby("shape"):
        space = UnitSpace.load(raw.parent / f"dst/unit_space/camera-{shape}.npz")
        inspected = of_shape[of_shape["role"] == "inspected"]
        references = of_shape[of_shape["role"] == "reference"]
        grays = {file: gray_of(raw, file, params) for file in of_shape["file"]}
        aligned = {f: warp(g, align(g, space.mean, params.dst.maximum_shift), space.size) for f, g in grays.items()}
        evened = {file: even_light(gray, space.templates) for file, gray in aligned.items()}
        rotated = partial(window_distance, rotation=True)
        pictures = {
            "window beta, unaligned": (grays, rotated, _measured_box(references)),
            "window beta, aligned": (aligned, rotated, space.cell_box),
            "one gain an image, aligned": (aligned, partial(window_distance, rotation=False), space.cell_box),
            "light evened, aligned": (evened, partial(window_distance, rotation=False), space.cell_box),
        }
        variants = {
            name: cell_scores(seen, distance, references, inspected, box, layout)
            for name, (seen, distance, box) in pictures.items()
        }
        variants["brightness of the DST view's discs"] = np.stack(
            [discs(aligned[file], space) for file in inspected["file"]]
        )
        variants[DEFAULT] = baseline.scores.loc[inspected["file"], list(map(str, layout.addresses))].to_numpy()
        for name, scores in variants.items():
            for split in ("test", "all"):
                chosen = np.ones(len(inspected), bool) if split == "all" else (inspected["split"] == split).to_numpy()
                rows.append(
                    {"shape": shape, "variant": name, "captures": split}
                    | rates(scores[chosen], inspected[chosen], params)
                )
        test = inspected[inspected["split"] == "test"]
        right = [_is_right(baseline.inspect(row.file).answer.values(), row) for row in test.itertuples()]
        rows[-2]["whole_answer"] = round(float(np.mean(right)), 4)
    return rows


def window_distance(y: np.ndarray, x: np.ndarray, *, rotation: bool) -> np.ndarray:
    """DST of every pixel's window: with the window's own beta, or with one gain for the whole image."""
    distance = nsoartc(y, x, WINDOW)[2] if rotation else distance_image(y / (np.sum(x * y) / np.sum(x * x)), x, WINDOW)
    return np.pad(distance, WINDOW // 2, mode="edge")


def discs(aligned: np.ndarray, space: UnitSpace) -> np.ndarray:
    """The mean brightness (0..255) of the DST view within a fifth of a pitch of each pin's place: (pins,)."""
    view, reach = dst_view(aligned, space).mean(axis=2), round(space.pitch / 5)
    places = space.pin_centres.round().astype(int)
    return np.array([view[y - reach : y + reach + 1, x - reach : x + reach + 1].mean() for x, y in places])


def cell_scores(
    seen: dict[str, np.ndarray],
    distance: Callable[[np.ndarray, np.ndarray], np.ndarray],
    references: pd.DataFrame,
    inspected: pd.DataFrame,
    box: tuple[float, ...],
    layout: Layout,
) -> np.ndarray:
    """The mean distance in each pin's cell, as a z-score against the references' own: (captures, pins)."""
    mean = np.mean([seen[file] for file in references["file"]], axis=0, dtype=np.float32)
    across = np.linspace(box[0], box[2], layout.columns + 1).round().astype(int).clip(0)
    down = np.linspace(box[1], box[3], len(layout.rows) + 1).round().astype(int).clip(0)

    def cells(file: str) -> np.ndarray:
        picture = distance(seen[file], mean)
        rows = [picture[top:bottom] for top, bottom in pairwise(down)]
        return np.array([row[:, left:right].mean() for row in rows for left, right in pairwise(across)])

    own = np.stack([cells(file) for file in references["file"]])
    return (np.stack([cells(file) for file in inspected["file"]]) - own.mean(axis=0)) / own.std(axis=0)


def rates(scores: np.ndarray, captures: pd.DataFrame, params: Params) -> dict:
    """AUROC and address accuracy of the highest cell, of all and of each mode."""
    defective = (captures["judgement"] == "defective").to_numpy()
    addresses = np.array([str(address) for address in params.layout.layout().addresses])
    right = addresses[scores.argmax(axis=1)] == captures["defect_position"].to_numpy()
    highest = scores.max(axis=1)
    found = {
        "n": len(captures),
        "auroc": _round(roc_auc_score(defective, highest)),
        "address": _round(right[defective].mean()),
    }
    for mode in MODES:
        of_mode = (captures["defect_mode"] == mode).to_numpy()
        if of_mode.any():
            some = of_mode | ~defective
            found[mode] = [
                _round(roc_auc_score(defective[some], highest[some])),
                _round(right[of_mode].mean()),
                int(of_mode.sum()),
            ]
    return found


def _measured_box(references: pd.DataFrame) -> tuple[float, ...]:
    """The cells' box in unaligned px: half a pitch round the outer pins."""
    x0, y0, x1, y1 = references[list(FIELD_BOX)].astype(float).mean()
    pitch = ((x1 - x0) - (y1 - y0)) / 6
    middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
    return middle_x - 4.5 * pitch, middle_y - 1.5 * pitch, middle_x + 4.5 * pitch, middle_y + 1.5 * pitch


def _is_right(answer: dict, row) -> bool:
    return all(answer[name] == getattr(row, name) for name in ("judgement", "defect_mode", "defect_position"))


# Speed


def speed(captures: pd.DataFrame, raw: Path, params: Params, folder: Path) -> dict:
    """Milliseconds an image at 640 x 260, and ratios within this run; medians of interleaved rounds.

    A line compares many captures with one unit space: NSOARTC takes them as a batch, SSIM one after the other. The
    clock is the process's own, so that other work on the machine counts less.
    """
    x, *ys = (gray_of(raw, file, params) for file in captures["file"][:21])
    batch = np.stack(ys)
    jobs = {
        "ssim": lambda: [structural_similarity(x, y, win_size=WINDOW, data_range=1.0, full=True) for y in ys],
        "stride_1": lambda: nsoartc(batch, x, WINDOW, 1),
        "stride_4": lambda: nsoartc(batch, x, WINDOW, 4),
    }
    taken = {name: [] for name in jobs}
    for _ in range(15):
        for name, job in jobs.items():
            taken[name].append(seconds(job, time.process_time) / len(ys))
    ms = {name: float(np.median(times)) * 1e3 for name, times in taken.items()}
    ms["plain_numpy"] = seconds(lambda: by_definition(ys[0], x, WINDOW), time.process_time) * 1e3
    tracemalloc.start()
    nsoartc(ys[0], x, WINDOW, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {name: round(value, 2) for name, value in ms.items()} | {
        "ssim_over_stride_1": round(ms["ssim"] / ms["stride_1"], 2),
        "ssim_over_stride_4": round(ms["ssim"] / ms["stride_4"], 2),
        "plain_numpy_over_stride_1": round(ms["plain_numpy"] / ms["stride_1"]),
        "memory_of_images": round(peak / x.nbytes, 1),
        "memory_mb": round(peak / 1e6, 1),
    }


def by_definition(y: np.ndarray, x: np.ndarray, window: int) -> np.ndarray:
    """beta, delta and DST window by window, in plain NumPy."""
    rows, columns = x.shape[0] - window + 1, x.shape[1] - window + 1
    found = np.empty((3, rows, columns))
    for row in range(rows):
        for column in range(columns):
            a, b = (image[row : row + window, column : column + window].ravel() for image in (x, y))
            squares = a @ a
            beta = (a @ b) / squares if squares >= 1e-5 else 1.0
            delta = b.sum() / a.sum() - beta if squares >= 1e-5 else 0.0
            found[:, row, column] = beta, delta, np.abs(b - beta * a).mean()
    return found


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
    asked = params.raw.model_copy(update={"virtual": virtual})
    (root / "captures/images").mkdir(parents=True)
    (root / "captures/labels.csv").write_text("file,shape,judgement,defect_mode,defect_position,role\n")
    build_raw(root / "captures", root / "raw", root / "splits.csv", params.contract(), asked)
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
        row = {"file": name, "outcome": "refused" if error else "handled", "told": error}
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
    "accuracy": accuracy,
    "speed": speed,
    "throughput_ms": throughput,
    "increment": increment,
    "faults": faults,
}


def _round(value: float) -> float:
    return round(float(value), 4)


# The page


def as_markdown(found: dict) -> str:
    lines = [
        "# NSOARTC: figures",
        "",
        f"Made by `make bench-nsoartc` on {found['machine']}. The same numbers for machines: `nsoartc.json`.",
        "",
        "## Judgement (AUROC) and address of the highest cell",
        "",
        "The unit space comes from the references alone; nothing is fitted on the captures that are scored. Modes:",
        "AUROC / address (captures of the mode).",
        "",
        "| shape | captures | variant | AUROC | address | " + " | ".join(MODES) + " |",
        "| --- | --- | --- | --- | --- |" + " --- |" * len(MODES),
    ]
    for row in found["accuracy"]:
        modes = " | ".join(f"{row[m][0]:.3f} / {row[m][1]:.3f} ({row[m][2]})" if m in row else "" for m in MODES)
        lines.append(
            f"| {row['shape']} | {row['captures']} ({row['n']}) | {row['variant']} | {row['auroc']:.3f} | "
            f"{row['address']:.3f} | {modes} |"
        )
    answers = {row["shape"]: row["whole_answer"] for row in found["accuracy"] if "whole_answer" in row}
    told = ", ".join(f"{shape} {share:.1%}" for shape, share in answers.items())
    speed, flow, growth = found["speed"], found["throughput_ms"], found["increment"]
    return "\n".join(
        [
            *lines,
            "",
            f"The baseline's whole answer (judgement, mode and address) is right for {told} of the test split;",
            "its threshold and its mode classifier come from the train and validation splits.",
            "",
            "## Speed at 640 x 260, one core",
            "",
            "| | ms an image |",
            "| --- | --- |",
            f"| NSOARTC, 9 x 9, stride 1 | {speed['stride_1']} |",
            f"| NSOARTC, 9 x 9, stride 4 | {speed['stride_4']} |",
            f"| scikit-image SSIM, 9 x 9, full | {speed['ssim']} |",
            f"| plain NumPy, window by window | {speed['plain_numpy']} |",
            "",
            f"SSIM takes {speed['ssim_over_stride_1']} times as long as stride 1 and",
            f"{speed['ssim_over_stride_4']} times as long as stride 4; plain NumPy takes",
            f"{speed['plain_numpy_over_stride_1']} times as long as stride 1. One image at stride 1",
            f"holds {speed['memory_mb']} MB at its peak,",
            f"{speed['memory_of_images']} images of float32, its three results included.",
            "",
            "## From image file to DST file, one core",
            "",
            "| " + " | ".join(flow) + " |",
            "|" + " --- |" * len(flow),
            "| " + " | ".join(str(value) for value in flow.values()) + " |",
            "",
            "## Ten captures more",
            "",
            f"A clean run of the dst stage on {growth['captures']} captures takes {growth['clean_s']} s,",
            (
                f"with ten more added {growth['ten_more_s']} s: {growth['share']:.1%}. The folder is "
                f"{'byte for byte that' if growth['identical_to_a_clean_run'] else 'NOT that'} of a clean run."
            ),
            "",
            "## Spoiled and unusual files",
            "",
            "One defective capture as ten kinds of file, through the dst stage together with good captures. The",
            "difference is that of the DST view from the capture's own, in levels of 255, on average.",
            "",
            "| file | outcome | difference | told |",
            "| --- | --- | --- | --- |",
            *(f"| {f['file']} | {f['outcome']} | {f.get('difference', '')} | {f['told']} |" for f in found["faults"]),
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
