"""Draw the README's picture from the latest evaluation: `make pictures`, or `python tools/overview_picture.py`.

The picture shows a passed reference and an inspected capture of the test split in both views, and the model's answer.
"""

import json
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from pinspect.core import predictions
from pinspect.core.images import read_image
from pinspect.core.prompts import ZERO_SHOT
from pinspect.core.question import Question, camera_else_virtual
from pinspect.core.rows import read_chat

ROOT = Path(__file__).resolve().parents[1]
MARGIN, GAP, CAPTION = 24, 16, 30
INK, PAPER = (34, 34, 34), (255, 255, 255)


def choose() -> tuple[dict[str, dict], str]:
    """Return the rows (by view) of a camera capture with a retracted pin, and the model's answer to its RAW view."""
    table = predictions.read(ROOT / "reports/predictions/test.csv")
    question = Question(view="RAW", kind="two_image", decoding="constrained")
    answers = camera_else_virtual(question.answers(table))
    chosen = answers[answers["expected_defect_mode"] == "retract"].sort_values("id").iloc[0]
    prompt = {"file": chosen["file"], "kind": question.kind, "shot": ZERO_SHOT}
    rows = [row for row in read_chat(ROOT / "data/chat/test.jsonl") if prompt.items() <= row.items()]
    return {row["view"]: row for row in rows}, chosen["answer"]


def draw(rows: dict[str, dict], answer: str) -> Image.Image:
    """Draw the pictures in two rows of two, with the answer below."""
    small, mono = ImageFont.load_default(20), ImageFont.load_default(22)
    tiles = [
        (f"{name}, {view}", read_image(ROOT / "data/composited" / image))
        for view in ("RAW", "DST")
        for name, image in zip(("passed reference", "inspected capture"), rows[view]["images"], strict=True)
    ]
    width, height = tiles[0][1].size
    lines = answer.split("\n")
    size = (2 * width + 2 * MARGIN + GAP, 2 * (height + CAPTION + GAP) + 2 * MARGIN + 30 * len(lines))
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for index, (name, tile) in enumerate(tiles):
        x = MARGIN + (index % 2) * (width + GAP)
        y = MARGIN + (index // 2) * (height + CAPTION + GAP)
        pen.text((x, y), name, fill=INK, font=small)
        sheet.paste(tile, (x, y + CAPTION))
    for index, line in enumerate(lines):
        pen.text((MARGIN, size[1] - MARGIN - 30 * (len(lines) - index)), line, fill=INK, font=mono)
    return sheet


if __name__ == "__main__":
    target = ROOT / "docs/pictures/overview.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    draw(*choose()).save(target, optimize=True)
    print(json.dumps({"written": str(target.relative_to(ROOT))}))
