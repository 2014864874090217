"""Measure accuracy and speed of NSOARTC.

    python benchmarks/nsoartc.py                                   all parts
    python benchmarks/nsoartc.py speed                             one part; the other parts keep their figures
    python benchmarks/nsoartc.py series --series FOLDER      the series line from another folder

Parts: sample (data/captures), series, speed. Writes benchmarks/results/nsoartc.json and nsoartc.md. One core, about
five minutes. Nothing is trained: unit spaces, means and scales come from the references alone.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from line_captures import Group, floats, read_line
from scipy.spatial.distance import minkowski
from skimage.metrics import structural_similarity
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from pinspect.core.drawings import NAMED_DIRECTIONS
from pinspect.core.nsoartc_settings import NsoartcSettings
from pinspect.core.params import Params, load_params
from pinspect.nsoartc.aligned import place_capture
from pinspect.nsoartc.distance import dst_picture, nsoartc, one_gain
from pinspect.nsoartc.dst_view import dst_view, localize_pin
from pinspect.nsoartc.localizer import Localization
from pinspect.nsoartc.parts import matrix_of
from pinspect.nsoartc.pin_scores import measure_pins
from pinspect.nsoartc.pixels import LUMINANCE
from pinspect.nsoartc.reduction import reduce_dst
from pinspect.nsoartc.unit_space import UnitSpace, even_light

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
SMALL, LARGE = NsoartcSettings(size=5), NsoartcSettings(size=9)
FRAME = NsoartcSettings(size=9, variant="difference")
WHITE_QUANTILE = 0.995  # of the references' distances, times two: white of the pictures that stage 2 reduces


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="sample, series, speed; default: all")
    parser.add_argument(
        "--series", type=Path, default=ROOT / "lines/series/data/captures", help="folder of the series line"
    )
    arguments = parser.parse_args()
    params = load_params(ROOT / "params.yaml")
    parts = {
        "sample": lambda: accuracy(ROOT / "data/captures", params),
        "series": lambda: accuracy(arguments.series, params),
        "speed": lambda: speed(params),
    }
    chosen = arguments.parts or list(parts)
    if unknown := set(chosen) - set(parts):
        parser.error(f"unknown part {', '.join(sorted(unknown))}; choose from {', '.join(parts)}")
    path = RESULTS / "nsoartc.json"
    results = json.loads(path.read_text(encoding="utf-8")) if arguments.parts and path.exists() else {}
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for part in chosen:
            results[part] = parts[part]()
    results["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, one used; Python {platform.python_version()}"
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (RESULTS / "nsoartc.md").write_text(as_markdown(results), encoding="utf-8")
    print(as_markdown(results))


# Accuracy


def accuracy(folder: Path, params: Params) -> list[dict]:
    """Return AUROC and address accuracy of each variant, for each group and for all groups together."""
    rows: list[dict] = []
    scored: dict[str, list[pd.DataFrame]] = {}
    for group in read_line(folder, params):
        for variant, outcome in outcomes(group):
            rows.append({"group": group.name, "variant": variant} | rates(outcome))
            scored.setdefault(variant, []).append(outcome)
    if len({row["group"] for row in rows}) > 1:
        for variant, outcomes_of_groups in scored.items():
            rows.append({"group": "all", "variant": variant} | rates(pd.concat(outcomes_of_groups)))
    return rows


def outcomes(group: Group) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield each variant's name and its score, address and direction of every inspected capture."""
    space, is_reference = group.space, group.is_reference
    unaligned, aligned = floats(group.images), floats(group.aligned)
    gained = one_gain_each(aligned, is_reference)
    for name, images, settings in (
        ("stage 1, 5 x 5, not aligned", unaligned, SMALL),
        ("stage 1, 5 x 5, aligned", aligned, SMALL),
        ("stage 1, 5 x 5, aligned, one gain", gained, SMALL),
        ("stage 1, 9 x 9, aligned, one gain", gained, LARGE),
        ("difference variant, 9 x 9, aligned, one gain", gained, FRAME),
    ):
        distances = distances_of(images, is_reference, settings)
        scores = relative(np.array([cell_means(distance, space) for distance in distances]), is_reference)
        yield name, outcome_of(scores, group)
        if images is gained and settings is SMALL:
            yield "stage 2 of 5 x 5, one gain", outcome_of(relative(reduced(distances, group), is_reference), group)
    captures = [place_capture(image, place, space) for image, place in zip(group.images, group.places, strict=True)]
    stride = space.nsoartc.stride
    means = np.array([cell_means(capture.distance, space, stride) for capture in captures])
    size = f"{space.nsoartc.size} x {space.nsoartc.size}"
    yield (
        f"the default: stage 1, {size}, stride {stride}, light evened",
        outcome_of(relative(means, is_reference), group),
    )
    yield (
        "localizer, from the DST picture",
        localized([localize_pin(dst_view(each), space) for each in captures], group),
    )
    grays = [even_light((image @ LUMINANCE).astype(np.float32), space.templates) for image in aligned]
    baseline = np.array([space.pin_distances(measure_pins(gray, space.templates)) for gray in grays])
    yield "per-pin Mahalanobis baseline", outcome_of(baseline, group)


def distances_of(images: list[np.ndarray], is_reference: np.ndarray, settings: NsoartcSettings) -> list[np.ndarray]:
    reference = mean_gray(images, is_reference)
    return [nsoartc(image, reference, settings, same_size=True) for image in images]


def mean_gray(images: list[np.ndarray], is_reference: np.ndarray) -> np.ndarray:
    references = [image for image, chosen in zip(images, is_reference, strict=True) if chosen]
    return (np.mean(references, axis=0) @ LUMINANCE).astype(np.float32)


def one_gain_each(images: list[np.ndarray], is_reference: np.ndarray) -> list[np.ndarray]:
    reference = mean_gray(images, is_reference)
    return [one_gain(image, reference) for image in images]


def cell_means(picture: np.ndarray, space: UnitSpace, stride: int = 1) -> np.ndarray:
    """Return the mean distance in the square of one pitch around each pin: (pins,)."""
    half = space.pitch / 2 / stride
    corners = [(max(0, round(y - half)), max(0, round(x - half))) for x, y in (space.pin_centers / stride).tolist()]
    side = round(2 * half)
    return np.array([picture[top : top + side, left : left + side].mean() for top, left in corners])


def relative(values: np.ndarray, is_reference: np.ndarray) -> np.ndarray:
    """Return z-scores, (captures, pins), against the references, minus each capture's median.

    Each pin has its own mean; the standard deviation is pooled over the pins, because references are few.
    """
    references = values[is_reference]
    spread = np.sqrt(references.var(axis=0).mean()) + 1e-9
    scores = (values - references.mean(axis=0)) / spread
    return scores - np.median(scores, axis=1, keepdims=True)


def reduced(distances: list[np.ndarray], group: Group) -> np.ndarray:
    """Return the mean of the stage 2 picture's windows in each pin's cell: (captures, pins)."""
    references = [distance for distance, chosen in zip(distances, group.is_reference, strict=True) if chosen]
    white = 2 * float(np.quantile(np.stack(references), WHITE_QUANTILE))
    reference = np.mean([dst_picture(distance, white) for distance in references], axis=(0, 3))
    pictures = [reduce_dst(dst_picture(distance, white), reference).astype(np.float32) for distance in distances]
    rows, columns = (
        np.arange(side) * step + middle for side, step, middle in zip(pictures[0].shape, (6, 10), (2, 4), strict=True)
    )
    half = group.space.pitch / 2
    cells = [
        np.ix_(np.flatnonzero(np.abs(rows - y) <= half), np.flatnonzero(np.abs(columns - x) <= half))
        for x, y in group.space.pin_centers.tolist()
    ]
    return np.array([[picture[cell].mean() for cell in cells] for picture in pictures])


def outcome_of(scores: np.ndarray, group: Group) -> pd.DataFrame:
    addresses = np.array([str(address) for address in group.space.layout.addresses])
    table = group.table.assign(score=scores.max(axis=1), address=addresses[scores.argmax(axis=1)], direction="")
    return table[~group.is_reference]


def localized(localizations: list[Localization], group: Group) -> pd.DataFrame:
    table = group.table.assign(
        score=[each.score for each in localizations],
        address=[str(each.address) for each in localizations],
        direction=[each.direction for each in localizations],
    )
    return table[~group.is_reference]


def rates(outcome: pd.DataFrame) -> dict:
    """Return AUROC, address and direction; per mode: AUROC against all passed captures, address, count."""
    defective = outcome["judgement"] == "defective"
    is_correct = outcome["address"] == outcome["defect_position"]
    row: dict = {
        "n": len(outcome),
        "auroc": rounded(roc_auc_score(defective, outcome["score"])),
        "address": rounded(is_correct[defective].mean()),
    }
    bent = outcome["defect_mode"].isin(list(NAMED_DIRECTIONS))
    if bent.any() and (outcome["direction"] != "").any():
        row["direction"] = rounded((outcome["direction"] == outcome["defect_mode"])[bent].mean())
    row["modes"] = {}
    for mode in sorted(set(outcome.loc[defective, "defect_mode"])):
        is_mode = outcome["defect_mode"] == mode
        compared = is_mode | ~defective
        auroc = roc_auc_score(defective[compared], outcome.loc[compared, "score"])
        row["modes"][mode] = [rounded(auroc), rounded(is_correct[is_mode].mean()), int(is_mode.sum())]
    return row


def rounded(value: float) -> float:
    return round(float(value), 4)


# Speed


def speed(params: Params) -> dict:
    """Return milliseconds per capture at 640 x 260, color, float32; medians of interleaved rounds of process time."""
    group = next(iter(read_line(ROOT / "data/captures", params)))
    captures = np.stack(floats(group.aligned[:12]))
    reference = mean_gray(floats(group.aligned), group.is_reference)
    reference_rgb = np.repeat(reference[..., None], 3, axis=-1)
    jobs: dict[str, Callable[[], object]] = {
        "ssim": lambda: [
            structural_similarity(reference_rgb, each, channel_axis=2, data_range=1.0, full=True) for each in captures
        ],
        "nsoartc_batch": lambda: nsoartc(captures, reference, SMALL),
        "nsoartc_one_by_one": lambda: [nsoartc(each, reference, SMALL) for each in captures],
        "size_11": lambda: nsoartc(captures, reference, NsoartcSettings(size=11)),
        "size_21": lambda: nsoartc(captures, reference, NsoartcSettings(size=21)),
        "size_11_stride_5": lambda: nsoartc(captures, reference, NsoartcSettings(size=11, stride=5)),
    }
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(9):
        for name, job in jobs.items():
            times[name].append(seconds(job) / len(captures))
    ms = {name: float(np.median(values)) * 1e3 for name, values in times.items()}
    ms["conv2d_and_scipy"] = seconds(partial(series_way, captures[0], reference)) * 1e3
    return {name: round(value, 2) for name, value in ms.items()} | {
        "ssim_over_batch": round(ms["ssim"] / ms["nsoartc_batch"], 2),
        "ssim_over_one_by_one": round(ms["ssim"] / ms["nsoartc_one_by_one"], 2),
        "conv2d_and_scipy_over_batch": round(ms["conv2d_and_scipy"] / ms["nsoartc_batch"]),
        "size_21_over_size_5": round(ms["size_21"] / ms["nsoartc_batch"], 2),
    }


def series_way(capture: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Compute stage 1 as the public series does: a convolution, then SciPy's distance pixel by pixel."""
    parts = torch.from_numpy(np.stack([matrix_of(SMALL, name) for name in SMALL.parts]))[:, None]
    images = [reference, *np.moveaxis(capture, -1, 0)]
    reference_responses, *channels = (
        torch.nn.functional.conv2d(torch.from_numpy(np.ascontiguousarray(image))[None, None], parts)[0].numpy()
        for image in images
    )
    distance = np.empty((*reference_responses.shape[1:], 3))
    for channel, responses in enumerate(channels):
        for row, column in np.ndindex(*reference_responses.shape[1:]):
            distance[row, column, channel] = minkowski(
                reference_responses[:, row, column], responses[:, row, column], p=4
            )
    return distance


def seconds(job: Callable[[], object]) -> float:
    start = time.process_time()
    job()
    return time.process_time() - start


# The page


def as_markdown(results: dict) -> str:
    lines = [
        "# NSOARTC: figures",
        "",
        f"Made by `python benchmarks/nsoartc.py` on {results['machine']}. `nsoartc.json` has the same figures.",
        "",
        "Nothing is trained; unit spaces and scales come from the references. Score of stage 1 and stage 2: the",
        "highest pin's mean distance as a z-score against the references, less the capture's median. Localizer: from",
        "the DST picture alone. Modes: AUROC against all passed captures / address (captures).",
    ]
    for part, title in (("sample", "The sample line"), ("series", "The series line, without field boxes")):
        if part not in results:
            continue
        lines += ["", f"## {title}", "", "| group | variant | n | AUROC | address | direction | modes |"]
        lines.append("| --- | --- | --- | --- | --- | --- | --- |")
        for row in results[part]:
            modes = "; ".join(f"{name} {auc:.3f} / {adr:.3f} ({n})" for name, (auc, adr, n) in row["modes"].items())
            direction = f"{row['direction']:.3f}" if "direction" in row else ""
            lines.append(
                f"| {row['group']} | {row['variant']} | {row['n']} | {row['auroc']:.3f} | {row['address']:.3f} | "
                f"{direction} | {modes} |"
            )
    if ms := results.get("speed"):
        lines += [
            "",
            "## Speed at 640 x 260, three channels, one core, float32",
            "",
            "| | ms a capture |",
            "| --- | --- |",
            f"| NSOARTC 5 x 5, stride 1, a batch of 12 | {ms['nsoartc_batch']} |",
            f"| NSOARTC 5 x 5, stride 1, one by one | {ms['nsoartc_one_by_one']} |",
            f"| NSOARTC 11 x 11, stride 1 | {ms['size_11']} |",
            f"| NSOARTC 21 x 21, stride 1 | {ms['size_21']} |",
            f"| NSOARTC 11 x 11, stride 5 (the series' settings) | {ms['size_11_stride_5']} |",
            f"| scikit-image SSIM, full, three channels | {ms['ssim']} |",
            f"| conv2d, then SciPy's minkowski pixel by pixel, 5 x 5, stride 1 | {ms['conv2d_and_scipy']} |",
            "",
            f"SSIM takes {ms['ssim_over_batch']} times as long as a batch, {ms['ssim_over_one_by_one']} times as long",
            f"as one by one; the series' way takes {ms['conv2d_and_scipy_over_batch']} times as long as a batch. Parts",
            f"of 21 x 21 take {ms['size_21_over_size_5']} times as long as parts of 5 x 5.",
        ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
