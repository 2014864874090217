"""Draw the pictures of docs/nsoartc.md: `python tools/nsoartc_pictures.py [--series FOLDER]`.

Reads data/captures and the series line. Writes four pictures to docs/pictures/nsoartc.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from line_captures import Group, read_line

from pinspect.core.nsoartc_settings import PART_NAMES
from pinspect.core.params import load_params
from pinspect.nsoartc.aligned import AlignedCapture, place_capture
from pinspect.nsoartc.dst_view import dst_view
from pinspect.nsoartc.parts import default_part
from pinspect.nsoartc.reduction import reduce_dst

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs/pictures/nsoartc"
WIDTH, CAPTION = 320, 18
EXAMPLE = 3  # which capture of a mode is shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--series", type=Path, default=ROOT / "lines/series/data/captures", help="folder of the series line"
    )
    arguments = parser.parse_args()
    params = load_params(ROOT / "params.yaml")
    OUT.mkdir(parents=True, exist_ok=True)
    parts().save(OUT / "parts.png", optimize=True)
    sample = next(iter(read_line(ROOT / "data/captures", params)))
    sheet(sample, ("passed", "bend", "retract", "missing")).save(OUT / "sample.jpg", quality=80)
    series = next(iter(read_line(arguments.series, params)))
    modes = ("passed", "X-plus", "X-minus", "Y-plus", "Y-minus", "pullout")
    sheet(series, modes).save(OUT / "series.jpg", quality=80)
    stage_2(series, modes).save(OUT / "stage2.png", optimize=True)


def parts() -> Image.Image:
    """Draw the seven default parts, 5 x 5, ones in black."""
    cells = []
    for name in PART_NAMES:
        squares = np.kron(255 * (1 - default_part(name, 5)), np.ones((16, 16))).astype(np.uint8)
        squares[::16] = squares[:, ::16] = 150
        cells.append(captioned(np.pad(squares, ((0, 1), (0, 1)), constant_values=150), name, 82))
    return Image.fromarray(np.hstack([np.pad(cell, ((4, 4), (6, 6), (0, 0)), constant_values=255) for cell in cells]))


def example(group: Group, mode: str) -> tuple[str, AlignedCapture]:
    """Return a caption and the aligned capture of one inspected capture of a mode."""
    table = group.table
    index = int(table.index[(table["defect_mode"] == mode) & (table["role"] == "inspected")][EXAMPLE])
    position = "" if mode == "passed" else f", {table['defect_position'][index]}"
    return f"{mode}{position}", place_capture(group.images[index], group.places[index], group.space)


def sheet(group: Group, modes: tuple[str, ...]) -> Image.Image:
    """Draw a column a mode: the aligned capture, and its DST picture."""
    columns = []
    for mode in modes:
        caption, capture = example(group, mode)
        columns.append(np.vstack([captioned(capture.image, caption, WIDTH), captioned(dst_view(capture), "", WIDTH)]))
    half = len(columns) // 2
    return Image.fromarray(np.vstack([np.hstack(columns[:half]), np.hstack(columns[half:])]))


def stage_2(group: Group, modes: tuple[str, ...]) -> Image.Image:
    """Draw the reduced picture of one capture a mode, enlarged; it is made from distances of every pixel."""
    space = replace(group.space, nsoartc=replace(group.space.nsoartc, stride=1))
    passed = [
        dst_view(place_capture(image, place, space))
        for image, place, is_reference in zip(group.images, group.places, group.is_reference, strict=True)
        if is_reference
    ]
    reference = np.mean(passed, axis=(0, 3))
    cells = []
    for mode in modes:
        caption, capture = example(replace(group, space=space), mode)
        small = reduce_dst(dst_view(capture), reference)
        cells.append(captioned(np.kron(small, np.ones((4, 4), np.uint8)), caption, 4 * small.shape[1]))
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
