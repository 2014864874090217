"""Draw the pictures of docs/nsoartc.md from the sample line: `python tools/nsoartc_pictures.py`.

Reads data/captures; writes docs/pictures/nsoartc/<mode>.jpg, one for each defect mode and one for a passed capture.
"""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pinspect.captures.labels import REFERENCE, Capture, images_folder, read_captures
from pinspect.core.answers import PASSED
from pinspect.core.images import read_image, to_gray
from pinspect.core.params import Params, load_params
from pinspect.nsoartc.alignment import align, warp
from pinspect.nsoartc.dst_view import dst_view
from pinspect.nsoartc.unit_space import UnitSpace, build_unit_space
from pinspect.nsoartc.window_beta import nsoartc

ROOT = Path(__file__).resolve().parents[1]
CAPTURES, OUT = ROOT / "data/captures", ROOT / "docs/pictures/nsoartc"
WIDTH, HEIGHT, CAPTION = 480, 195, 22
EXAMPLE = 3  # which of a mode's captures is shown: any would do


def main() -> None:
    params = load_params(ROOT / "params.yaml")
    captures = read_captures(CAPTURES, params.contract()).captures
    OUT.mkdir(parents=True, exist_ok=True)
    spaces = {shape: unit_space(captures, shape, params) for shape in params.answers.shapes}
    for mode in (PASSED, *params.answers.defect_modes):
        columns = [column(example(captures, shape, mode), spaces[shape], params) for shape in spaces]
        sheet = Image.fromarray(np.hstack(columns))
        sheet.save(OUT / f"{mode}.jpg", quality=85)
        print(OUT / f"{mode}.jpg")


def unit_space(captures: list[Capture], shape: str, params: Params) -> UnitSpace:
    references = [capture for capture in captures if (capture.shape, capture.role) == (shape, REFERENCE)]
    boxes = [tuple(map(float, capture.field_box)) for capture in references]
    grays = [gray(capture, params) for capture in references]
    names = [capture.file for capture in references]
    return build_unit_space(grays, names, boxes, shape, params.layout.layout(), params.dst)


def example(captures: list[Capture], shape: str, mode: str) -> Capture:
    return [c for c in captures if (c.shape, c.defect_mode) == (shape, mode) and c.role != REFERENCE][EXAMPLE]


def gray(capture: Capture, params: Params) -> np.ndarray:
    return to_gray(read_image(images_folder(CAPTURES) / capture.file, params.raw.max_pixels))


def column(capture: Capture, space: UnitSpace, params: Params) -> np.ndarray:
    """The panels of one capture, one below the other."""
    seen = gray(capture, params)
    aligned = warp(seen, align(seen, space.mean, params.dst.maximum_shift), space.size)
    beta, delta, distance = nsoartc(aligned, space.mean, space.window)
    panels = {
        f"{space.shape}, {capture.defect_mode}, {capture.defect_position}: aligned capture": aligned,
        "beta, 0 to 2": beta / 2,
        "delta, -1 to 1": delta / 2 + 0.5,
        "DST with window beta": distance / space.white,
        "the DST view": dst_view(aligned, space),
    }
    return np.vstack([panel(picture, caption) for caption, picture in panels.items()])


def panel(picture: np.ndarray, caption: str) -> np.ndarray:
    """uint8 (CAPTION + HEIGHT, WIDTH, 3); `picture` is uint8 colour, or float gray in 0..1."""
    if picture.ndim == 2:
        picture = np.repeat((np.clip(picture, 0, 1) * 255).astype(np.uint8)[..., None], 3, axis=-1)
    small = cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    framed = Image.new("RGB", (WIDTH, CAPTION + HEIGHT), "white")
    font = ImageFont.load_default(size=14)
    ImageDraw.Draw(framed).text((4, CAPTION / 2), caption, fill="black", font=font, anchor="lm")
    framed.paste(Image.fromarray(small), (0, CAPTION))
    return np.asarray(framed)


if __name__ == "__main__":
    main()
