"""A chat dataset of a few rows with pictures of random pins, without the stages that make one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from pinspect.core import prompts
from pinspect.core.answers import AnswerContract, AnswerKind
from pinspect.core.layout import Layout
from pinspect.core.rows import SPLITS, Row

LAYOUT = Layout(("U", "C", "D"), 9)
CONTRACT = AnswerContract(LAYOUT, ("CYLN", "SQUR"), ("bend", "missing"))
SIZE = (640, 256)  # px: 27 pins of one visual token of the default base, and their address grid


def write_rows(root: Path, count: int = 3) -> dict[str, list[Row]]:
    """Write `data/chat` and `data/composited` below `root`: zero- and one-shot rows of two and three pictures."""
    rows = {split: [_row(split, number) for number in range(count)] for split in SPLITS}
    images = root / "data/composited/images"
    images.mkdir(parents=True)
    (root / "data/chat").mkdir()
    for split, of_split in rows.items():
        lines = "".join(json.dumps(row) + "\n" for row in of_split)
        (root / f"data/chat/{split}.jsonl").write_text(lines, encoding="utf-8")
        for name in {name for row in of_split for name in row["images"]}:
            rng = np.random.default_rng(sum(name.encode()))
            pins = rng.integers(0, 255, (SIZE[1] // 16, SIZE[0] // 16, 3), np.uint8)
            Image.fromarray(pins).resize(SIZE, Image.Resampling.NEAREST).save(root / "data/composited" / name)
    return rows


def _row(split: str, number: int) -> Row:
    one_shot = number % 3 == 2
    answer = CONTRACT.render(
        CONTRACT.defective("CYLN", "RAW", "bend", LAYOUT.addresses[number])
        if number % 2
        else CONTRACT.passed("CYLN", "RAW")
    )
    star = CONTRACT.render(CONTRACT.star("CYLN", "RAW", LAYOUT.addresses[5]), AnswerKind.STAR) if one_shot else None
    shown = [*(["images/star.png"] if one_shot else []), "images/reference.png", f"images/{split}-{number}.png"]
    return {
        "id": f"{split}-{number}",
        "source": "camera",
        "split": split,
        "shape": "CYLN",
        "view": "RAW",
        "kind": "two_image",
        "shot": "one_shot" if one_shot else "zero_shot",
        "file": f"images/{split}-{number}.jpg",
        "capture": f"{split}-{number}.jpg",
        "sha256": f"{number:064x}",
        "answer_kind": "comparison",
        "answer": answer,
        "images": shown,
        "messages": prompts.two_image("RAW", answer, star=star),
    }
