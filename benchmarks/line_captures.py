"""Captures of a line for benchmarks, grouped by what has one unit space, aligned to it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from pinspect.core.images import read_image, to_gray
from pinspect.core.params import Params
from pinspect.nsoartc.alignment import Alignment, warp
from pinspect.nsoartc.unit_space import UnitSpace, build_unit_space

BOX = ["field_x0", "field_y0", "field_x1", "field_y1"]


@dataclass(frozen=True)
class Group:
    """Captures of one shape and, where the names have eyes, one eye.

    table: the rows of labels.csv. images: uint8 RGB as captured. places, aligned: how each capture lies in the unit
    space, and the capture laid over it.
    """

    name: str
    shape: str
    table: pd.DataFrame
    images: list[np.ndarray]
    space: UnitSpace
    places: list[Alignment]
    aligned: list[np.ndarray]

    @property
    def is_reference(self) -> np.ndarray:
        return (self.table["role"] == "reference").to_numpy()


def read_line(folder: Path, params: Params) -> Iterator[Group]:
    """Yield the groups of a project's folder, or of a folder with labels.csv and images/.

    Field boxes are used only if labels.csv has them.
    """
    folder = folder / "data/captures" if (folder / "data/captures").is_dir() else folder
    labels = pd.read_csv(folder / "labels.csv", dtype=str, keep_default_na=False)
    labels["eye"] = [eye[1] if (eye := re.search(r"camera\d+_([02])_", name)) else "" for name in labels["file"]]
    has_boxes = set(BOX) <= set(labels)
    if not has_boxes:
        labels["eye"] = labels["eye"].map({"0": "left", "2": "right", "": ""})
    else:
        labels["eye"] = ""
    for (shape, eye), rows in labels.groupby(["shape", "eye"]):
        table = rows.reset_index(drop=True)
        images = [np.asarray(read_image(folder / "images" / name, params.raw.max_pixels)) for name in table["file"]]
        references = table[table["role"] == "reference"]
        boxes = references[BOX].astype(float).to_numpy().tolist() if has_boxes else None
        chosen, names = [images[index] for index in references.index], list(references["file"])
        space = build_unit_space(chosen, names, boxes, str(shape), params.layout.layout(), params.dst)
        places = [space.alignment_target.align(to_gray(image), params.dst.maximum_shift) for image in images]
        aligned = [warp(image, place, space.size) for image, place in zip(images, places, strict=True)]
        yield Group(f"{shape} {eye}".strip(), str(shape), table, images, space, places, aligned)


def floats(images: list[np.ndarray]) -> list[np.ndarray]:
    """uint8 images as float32 in 0..1."""
    return [cv2.multiply(image, 1 / 255, dtype=cv2.CV_32F) for image in images]
