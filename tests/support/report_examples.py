"""Evaluations and their reports for tests, and functions that read a report."""

import re
from html import unescape

import numpy as np
import pandas as pd
from PIL import Image

from pinspect.core.operating_point import OperatingPoint
from pinspect.core.prompts import ONE_SHOT, ZERO_SHOT
from pinspect.evaluation.evaluation import Evaluation
from pinspect.evaluation.writing import write_evaluation
from pinspect.examination.results import Check, ControlResult, Evidence, EvidenceMap, Examination
from tests.support.evaluation_examples import (
    ADDRESSES,
    CONTRACT,
    PARAMS,
    REPORT,
    answered,
    chat_row,
    messages,
)

CURVE = pd.DataFrame({"step": [1, 2, 3], "loss": [2.0, 1.0, 0.5], "validation_loss": [np.nan, np.nan, 0.6]})
FACTS = {"Trainable parameters": "424,960 (10.6%)", "File size": "1.73 MB"}
DIGESTS = {"adapter_sha256": "0123abcd", "dataset_digest": "b99729e74cb610799ad42bd2503cd8e7.dir"}
SET_ASIDE = {"camera0_far_off.jpg": "the connector lies 57 px off its place"}
NAMES = {f"images/camera/{number}.jpg": f"OK_{number}.jpg" for number in range(12)}
CHECKS = {"rows": 4, "failing_rows": 1, "expectations": [
    {"rule": "the judgement is passed or defective", "type": "expect_column_values_to_be_in_set", "success": False,
     "kwargs": {"column": "answer_judgement", "value_set": ["passed", "defective"]}, "element_count": 4,
     "unexpected_count": 1, "failing_rows": [
         {"answer_judgement": "doubtful", "id": "row-1", "line": "train.jsonl, line 2", "capture": "OK_1.jpg"}]},
    {"rule": "the dataset has enough rows", "type": "expect_table_row_count_to_be_between", "success": True,
     "kwargs": {"min_value": 2}, "observed_value": 4, "unexpected_count": 0, "failing_rows": []},
]}  # fmt: skip
POINT = OperatingPoint(
    threshold=0.25, wanted_escape_rate=0.05, escape_rate=0.05, overkill_rate=0.1, defective=20, passed=10,
    chosen_on="camera", view="DST", kind="two_image", weights_sha256="0123abcd",
)  # fmt: skip
ASKED = (("two_image", ZERO_SHOT), ("two_image", ONE_SHOT))
KINDS = (*ASKED, ("one_image", ZERO_SHOT), ("stacked", ZERO_SHOT), ("stacked", ONE_SHOT))


def noise_images(folder):
    """Write noise, which JPEG compresses badly, as the composites of 12 captures of each source; return the folder."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in ("star", "reference", *(f"camera-{n}" for n in range(12)), *(f"virtual-{n}" for n in range(12))):
        Image.fromarray(random.integers(0, 255, (64, 160, 3), np.uint8)).save(folder / f"{name}.jpg", quality=90)
    return folder


def shown(row):
    _, source, number = str(row["file"]).removesuffix(".jpg").split("/")
    worked = ["star.jpg"] if row["shot"] == ONE_SHOT else []
    return [*worked, *(["reference.jpg"] if row["kind"] == "two_image" else []), f"{source}-{number}.jpg"]


def chat_rows(*numbers, source="camera", kinds=ASKED, views=("DST", "RAW")):
    prompts = [(n, view, kind, shot) for n in numbers for view in views for kind, shot in kinds]
    rows = [chat_row(n, view=view, shot=shot, kind=kind, source=source) for n, view, kind, shot in prompts]
    return [row | {"images": shown(row), "messages": messages(row)} for row in rows]


def evaluation_of(rows, predictions, images, *, bounds=None, examined=None, **more):
    """Return an evaluation without any optional part, except those in the arguments."""
    settings = REPORT.model_copy(update={"bounds": bounds or {}, "bootstrap_samples": 10})
    examination = Examination(answered([]), predictions, **(examined or {}))
    return Evaluation(examination, CONTRACT, PARAMS.evaluate, settings, rows, images, **more)


def written(tmp_path, images, rows, predictions):
    out = tmp_path / "eval"
    evaluation = evaluation_of(
        rows, predictions, images, bounds=REPORT.bounds, learning_curve=CURVE, facts=FACTS, digests=DIGESTS,
        set_aside=SET_ASIDE, names=NAMES, params_text="evaluate:\n  view: DST",
    )  # fmt: skip
    headline = write_evaluation(evaluation, out)
    return headline, (out / "report.html").read_text(encoding="utf-8")


def cards_of(text, outcome="miss"):
    """Return the cards of captures with `outcome`."""
    return [re.split(r"</article>", part)[0] for part in text.split(f'<article class="case {outcome}">')[1:]]


def section_of(text, name):
    return re.split(r"<h2 ", text.split(f'<h2 id="{name}"')[1])[0]


def words_of(text):
    """Return the visible text of the page on one line."""
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text)))


def lines_of(section):
    """Return the words of every body row of the first table in a section."""
    body = section.split("<tbody>")[1].split("</tbody>")[0]
    return [words_of(line.split(">", 1)[1]).split() for line in body.split("<tr")[1:]]


def evidence_for(rows):
    """Return evidence maps whose weight is all on the bottom right token."""
    shares = np.zeros((4, 10), np.float32)
    shares[-1, -1] = 1
    pin = ADDRESSES[0]
    return {row["id"]: EvidenceMap(shares, 0.5, ADDRESSES[-1], pin, pin, 0.375, False) for row in rows}


def everything(rows, predictions, images):
    """Return an evaluation with every optional part."""
    uri = "data:image/jpeg;base64,AAAA"
    return evaluation_of(
        rows, predictions, images, bounds=REPORT.bounds, operating_point=POINT, learning_curve=CURVE, facts=FACTS,
        digests=DIGESTS, params_text="evaluate:\n  view: DST", set_aside=SET_ASIDE, names=NAMES,
        dataset_checks=CHECKS,
        examined={
            "evidence": Evidence(evidence_for(rows)),
            "answer_checks": CHECKS,
            "controls": [
                ControlResult("blank", 50, (Check("judged passed", 0, 50, bound=0),), pictures=(uri,)),
                ControlResult("swapped", 50, (Check("defective pairs judged passed", 2, 50, bound=46, at_least=True),)),
                ControlResult("other_shape", 0, reason="all captures are of one shape, CYLN"),
            ],
            "other_controls": {"RAW": [ControlResult("blank", 50, (Check("judged passed", 9, 50, bound=0),))]},
            "simple_questions": [
                ControlResult("star", 20, (Check("stars at their address", 20, 20, bound=18, at_least=True),)),
                ControlResult("grid", 20, (Check("grids read whole", 3, 20, bound=18, at_least=True),)),
            ],
        },
    )  # fmt: skip
