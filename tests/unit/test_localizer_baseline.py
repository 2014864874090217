"""The localizer as a baseline: it reads DST pictures alone, and validation captures choose its threshold."""

import shutil

import numpy as np
import pytest

from pinspect.core.answers import AnswerContract
from pinspect.core.drawings import ModeDrawing
from pinspect.core.operating_point import LOCALIZER_THRESHOLD
from pinspect.core.predictions import LOCALIZER
from pinspect.examination.localizer import answer_of, fit_localizer
from pinspect.nsoartc.localizer import Localization
from tests.support.dst_line import build, drop_raw, read_rows, write_rows
from tests.support.sample import line, params

CONTRACT = params().contract()
CAPTURES = line(seed=22, train=24, references=6, shapes=("CYLN",))
SPLITS = {capture.name: {"split": ("test", "validation")[number % 2]} for number, capture in enumerate(CAPTURES[-24:])}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The dst folder of a line whose inspected captures are validation and test captures."""
    root = tmp_path_factory.mktemp("localizer")
    inspected = {c.name: SPLITS.get(c.name, {"split": "validation"}) for c in CAPTURES if c.role == "inspected"}
    drop_raw(root, CAPTURES, **inspected)
    build(root)
    return root


@pytest.fixture(scope="module")
def localizer(root):
    return fit_localizer(root / "data/dst", root / "data/raw", CONTRACT)


def chat_rows(root, split: str) -> list[dict]:
    return [
        {
            "id": name, "source": "camera", "shape": row["shape"], "view": "RAW", "kind": "two_image",
            "shot": "zero_shot", "file": row["file"], "answer": CONTRACT.render(CONTRACT.passed(row["shape"], "RAW")),
        }
        for name, row in read_rows(root / "data/raw").items() if row["split"] == split and row["role"] == "inspected"
    ]  # fmt: skip


def test_it_judges_and_locates_unseen_captures(root, localizer):
    rows = read_rows(root / "data/raw")
    table = localizer.answer(chat_rows(root, "test"), "free").set_index("id")
    assert table["parses"].all() and (table["model"] == LOCALIZER).all() and (table["decoding"] == "free").all()
    judged = [table.loc[name, "found_judgement"] == rows[name]["judgement"] for name in table.index]
    placed = [
        table.loc[name, "found_defect_position"] == rows[name]["defect_position"]
        for name in table.index if rows[name]["judgement"] == "defective"
    ]  # fmt: skip
    assert len(placed) > 2 and sum(judged) >= len(judged) - 2 and sum(placed) >= len(placed) - 2
    assert ((table["p_defective"] >= 0.5) == (table["found_judgement"] == "defective")).all()


def test_labels_of_the_test_split_change_nothing_and_labels_of_the_validation_split_move_the_threshold(
    root, localizer, tmp_path
):
    thresholds = {}
    for split in ("test", "validation"):
        shutil.copytree(root / "data/raw", tmp_path / split)
        rows = read_rows(tmp_path / split)
        for row in rows.values():
            if row["split"] == split:
                row |= {"judgement": "passed", "defect_mode": "passed", "defect_position": "passed"}
        write_rows(tmp_path / split, rows.values())
        thresholds[split] = fit_localizer(root / "data/dst", tmp_path / split, CONTRACT).thresholds["camera"]
    assert thresholds == {"test": localizer.thresholds["camera"], "validation": LOCALIZER_THRESHOLD}
    assert localizer.production_threshold == localizer.thresholds["camera"] > 1


@pytest.mark.parametrize(
    ("direction", "mode"), [("X-plus", "X-plus"), ("Y-minus", "down"), ("Y-plus", "pullout"), ("", "pullout")]
)
def test_the_direction_becomes_the_lines_mode_of_this_direction(direction, mode):
    drawings = {
        "X-plus": ModeDrawing(draw="lean", direction="right"),
        "down": ModeDrawing(draw="lean", direction="down"),
        "pullout": ModeDrawing(draw="higher"),
    }
    contract = AnswerContract(CONTRACT.layout, ("CYLN",), tuple(drawings), drawings)
    address = CONTRACT.layout.addresses[3]
    localization = Localization(4.0, address, np.ones(27, np.float32), (0.0, 0.0), direction)
    assert answer_of(localization, 3.0, "CYLN", "DST", contract) == contract.defective("CYLN", "DST", mode, address)
    assert answer_of(localization, 5.0, "CYLN", "DST", contract) == contract.passed("CYLN", "DST")
