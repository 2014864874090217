"""Draw the pictures of docs/nsoartc.md: `python tools/nsoartc_pictures.py [--series lines/series]`.

Reads data/captures and the series line. Writes four pictures to docs/pictures/nsoartc.
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from line_captures import Group, floats, read_line

from pinspect.core.nsoartc_settings import PART_NAMES, NsoartcSettings
from pinspect.core.params import load_params
from pinspect.nsoartc.distance import dst_picture, nsoartc, one_gain
from pinspect.nsoartc.parts import FloatImage, default_part
from pinspect.nsoartc.pixels import LUMINANCE
from pinspect.nsoartc.reduction import reduce_dst

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs/pictures/nsoartc"
WIDTH, CAPTION = 400, 20
EXAMPLE = 3  # which capture of a mode is shown
SETTINGS = NsoartcSettings(size=5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--series", type=Path, default=ROOT / "lines/series", help="folder of the series line")
    arguments = parser.parse_args()
    params = load_params(ROOT / "params.yaml")
    OUT.mkdir(parents=True, exist_ok=True)
    parts().save(OUT / "parts.png", optimize=True)
    sample = next(iter(read_line(ROOT / "data/captures", params)))
    sheet(sample, ("passed", "bend", "retract", "missing"), with_view=True).save(OUT / "sample.jpg", quality=82)
    series = next(iter(read_line(arguments.series, params)))
    modes = ("passed", "X-plus", "X-minus", "Y-plus", "Y-minus", "pullout")
    sheet(series, modes, with_view=False).save(OUT / "series.jpg", quality=82)
    stage_2(series, ("passed", "X-plus", "pullout")).save(OUT / "stage2.png", optimize=True)


def parts() -> Image.Image:
    """Draw the seven default parts, 5 x 5, ones in black."""
    cells = []
    for name in PART_NAMES:
        squares = np.kron(255 * (1 - default_part(name, 5)), np.ones((16, 16))).astype(np.uint8)
        squares[::16] = squares[:, ::16] = 150
        cells.append(captioned(np.pad(squares, ((0, 1), (0, 1)), constant_values=150), name, 82))
    return Image.fromarray(np.hstack([np.pad(cell, ((4, 4), (6, 6), (0, 0)), constant_values=255) for cell in cells]))


def distances_of(group: Group) -> tuple[list[FloatImage], float]:
    """Return the distances of all captures, one gain each, and a white that few passed pins reach."""
    images = floats(group.aligned)
    reference = images[0] @ LUMINANCE
    for _ in range(2):
        chosen = [image for image, is_reference in zip(images, group.is_reference, strict=True) if is_reference]
        reference = (np.mean(chosen, axis=0) @ LUMINANCE).astype(np.float32)
        images = [one_gain(image, reference) for image in images]
    distances = [nsoartc(image, reference, SETTINGS, same_size=True) for image in images]
    passed = [distance for distance, is_reference in zip(distances, group.is_reference, strict=True) if is_reference]
    return distances, 2 * float(np.quantile(np.stack(passed), 0.995))


def example(group: Group, mode: str) -> int:
    table = group.table
    return int(table.index[(table["defect_mode"] == mode) & (table["role"] == "inspected")][EXAMPLE])


def sheet(group: Group, modes: tuple[str, ...], *, with_view: bool) -> Image.Image:
    """Draw a column a mode: the aligned capture, its DST picture, and the DST view if asked for."""
    distances, white = distances_of(group)
    columns = []
    for mode in modes:
        index = example(group, mode)
        capture = group.aligned[index]
        pictures = {
            f"{group.name}, {mode}, {group.table['defect_position'][index]}": capture,
            "NSOARTC, stage 1": dst_picture(distances[index], white),
        }
        columns.append(np.vstack([captioned(picture, caption, WIDTH) for caption, picture in pictures.items()]))
    half = len(columns) // 2
    return Image.fromarray(np.vstack([np.hstack(columns[:half]), np.hstack(columns[half:])]))


def stage_2(group: Group, modes: tuple[str, ...]) -> Image.Image:
    """Draw the reduced picture of one capture a mode, five times enlarged."""
    distances, white = distances_of(group)
    passed = [distance for distance, is_reference in zip(distances, group.is_reference, strict=True) if is_reference]
    reference = np.mean([dst_picture(distance, white) for distance in passed], axis=(0, 3))
    cells = []
    for mode in modes:
        index = example(group, mode)
        small = reduce_dst(dst_picture(distances[index], white), reference)
        large = np.kron(small, np.ones((5, 5), np.uint8))
        cells.append(captioned(large, f"{mode}, {group.table['defect_position'][index]}", large.shape[1]))
    return Image.fromarray(np.hstack([np.pad(cell, ((0, 0), (3, 3), (0, 0)), constant_values=255) for cell in cells]))


def captioned(picture: np.ndarray, caption: str, width: int) -> np.ndarray:
    """Return uint8 (rows, width, 3): the picture, gray or RGB, in this width below its caption."""
    color = np.repeat(picture[..., None], 3, axis=-1) if picture.ndim == 2 else picture
    if color.shape[1] != width:
        height = round(color.shape[0] * width / color.shape[1])
        color = np.asarray(cv2.resize(color, (width, height), interpolation=cv2.INTER_AREA))
    framed = Image.new("RGB", (width, CAPTION + color.shape[0]), "white")
    font = ImageFont.load_default(size=13)
    ImageDraw.Draw(framed).text((4, CAPTION / 2), caption, fill="black", font=font, anchor="lm")
    framed.paste(Image.fromarray(color), (0, CAPTION))
    return np.asarray(framed)


if __name__ == "__main__":
    main()
