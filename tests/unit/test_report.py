"""The report of an evaluation: what it shows, what it leaves out, and its figures."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pandas as pd
import pytest

from pinspect.core.errors import StageInputError
from pinspect.core.prompts import ZERO_SHOT
from pinspect.core.statistics import wilson
from pinspect.evaluation import figures, metrics, plots
from pinspect.evaluation.report import render_report
from pinspect.examination.examiner import Examiner
from tests.support.evaluation_examples import (
    ADDRESSES,
    CONTRACT,
    PARAMS,
    QUESTION,
    answered,
    baseline,
    chat_row,
    escaped,
    moved,
    overkilled,
    right,
    unreadable,
)
from tests.support.report_examples import (
    CURVE,
    KINDS,
    chat_rows,
    evaluation_of,
    everything,
    lines_of,
    noise_images,
    section_of,
    words_of,
    written,
)


@pytest.fixture
def images(tmp_path):
    return noise_images(tmp_path / "composited")


class Page(HTMLParser):
    """Addresses that a browser would load, ids that the page refers to, and elements that are still open."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.used, self.ids = [], [], set(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)
        self.handle_startendtag(tag, attributes)

    def handle_startendtag(self, tag, attributes):
        values = dict(attributes)
        self.loads += [values[name] for name in ("src", "href", "xlink:href") if name in values]
        self.used |= {values[name][1:] for name in ("href", "xlink:href") if values.get(name, "").startswith("#")}
        self.ids += [values["id"]] if "id" in values else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_loads_nothing_from_outside(images):
    rows = chat_rows(*range(8), kinds=KINDS)
    even = [1 / len(ADDRESSES)] * len(ADDRESSES)
    predictions = answered(rows, escaped, chance=lambda row: 0.4, shares=lambda row: even)
    page = Page(text := render_report(everything(rows, predictions, images)))
    assert page.open == []
    assert all(load.startswith(("data:", "#")) for load in page.loads)
    assert page.used <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"@import|url\((?!#)|<script|<link", text)


def test_the_figures_of_the_report_are_those_of_the_tables(tmp_path, images):
    rows = chat_rows(*range(10))
    headline_rows = QUESTION.rows(rows)
    model = pd.concat([answered(rows[:8], escaped), answered(rows[8:])])
    predictions = pd.concat([model, baseline(headline_rows, unreadable)])
    headline, text = written(tmp_path, images, rows, predictions)
    assert (headline["zero_shot"]["exact_match"], headline["baseline"]["exact_match"]) == (0.9, 0.0)
    assert "Of 10 captures that it has never seen, the model answered <b>9</b> exactly right" in text
    assert "<b>1</b> of 5 defective captures pass" in text
    low, high = wilson(9, 10)
    assert f'<b>0.900</b> <span class="n">9/10</span><br><span class="ci">{low:.2f}–{high:.2f}</span>' in text
    words = words_of(text).replace("\u00a0", " ")
    assert "right by the model alone on 9 and by the baseline alone on 0 of 10 captures, p = 0.004" in words
    for fact in ("1.73 MB", "b99729e74cb610799ad42bd2503cd8e7.dir", "camera0_far_off.jpg the connector lies 57 px"):
        assert fact in words


def verdict_of(text):
    return words_of(re.search(r'<p class="verdict">(.*?)</p>', text)[1])


def test_the_verdict_names_every_bound_that_is_missed(images):
    rows = chat_rows(*range(12))
    wrong = pd.concat([answered(rows[:4], escaped), answered(rows[4:])])
    bounds = {"exact_match": 0.95, "escape_rate": 0.03, "overkill_rate": 0.05}
    text = render_report(evaluation_of(rows, wrong, images, bounds=bounds))
    assert verdict_of(text) == (
        "Not good enough: it misses 2 of the 3 bounds of settings.yaml (Exact match 0.917, wanted ≥ 0.95, "
        "Escape rate 0.167, wanted ≤ 0.03)."
    )
    assert re.findall(r'<small class="(\w+)">(.*?)</small>', text) == [
        ("missed", "missed"), ("missed", "missed"), ("held", "held, not proven"),
    ]  # fmt: skip


def test_the_verdict_notes_when_captures_are_too_few_to_prove_a_bound(images):
    rows = chat_rows(*range(12))
    few = render_report(evaluation_of(rows, answered(rows), images, bounds={"exact_match": 0.93, "parse_rate": 1.0}))
    assert verdict_of(few) == (
        "It holds all 2 bounds of settings.yaml, but 12 captures are too few to prove 1 of them: the intervals "
        "reach beyond the bounds."
    )
    plenty = render_report(evaluation_of(rows, answered(rows), images, bounds={"exact_match": 0.5}))
    assert verdict_of(plenty) == "It holds all 1 bounds of settings.yaml, intervals included."


def test_the_verdict_names_failed_controls(images):
    rows = chat_rows(*range(4))
    text = render_report(everything(rows, answered(rows), images))
    assert verdict_of(text).endswith("; it fails 1 of 3 controls (Reference and capture swapped).")
    held = re.findall(r'<td class="(?:held|missed|none)">(yes|no|not judged)</td>', section_of(text, "controls"))
    assert held == ["yes", "no", "not judged", "no"]
    assert "in the view RAW" in section_of(text, "controls")


def test_the_report_has_a_row_for_each_simple_question(images):
    rows = chat_rows(*range(4))
    text = render_report(everything(rows, answered(rows), images))
    star, grid = lines_of(section_of(text, "simple"))
    assert "star?" in star and star[-1] == "yes"
    assert "grid?" in grid and grid[-1] == "no"
    plain = words_of(render_report(evaluation_of(rows, answered(rows), images)))
    assert "Simple questions not measured." in plain


def test_the_report_states_when_the_model_is_worse_than_the_baseline(images):
    rows = chat_rows(*range(8))
    headline_rows = QUESTION.rows(rows)
    predictions = pd.concat([answered(rows[:4], moved), answered(rows[4:]), baseline(headline_rows)], ignore_index=True)
    text = words_of(render_report(evaluation_of(rows, predictions, images)))
    assert "answered 8 of 8 exactly right: the model does not beat it." in text
    assert "The model is worse in: Exact match, Address." in text


def test_every_prompt_kind_has_a_row_with_its_free_generation_scores(images):
    rows = chat_rows(*range(4), kinds=KINDS)
    free = answered([row for row in rows if row["kind"] == "two_image"], unreadable, decoding="free")
    predictions = pd.concat([answered(rows), free], ignore_index=True)
    text = section_of(render_report(evaluation_of(rows, predictions, images)), "prompts")
    lines = lines_of(text)
    assert len(lines) == 2 * len(KINDS)
    assert [line[:3] for line in lines[:2]] == [["two-image", "zero-shot,", "DST"], ["two-image", "one-shot,", "DST"]]
    # Last in a line: free generation's exact match and parse rate, the virtual line's exact match.
    assert {tuple(line[-3:]) for line in lines if line[0] == "two-image"} == {("0.000", "0.000", "–")}
    assert {tuple(line[-3:]) for line in lines if line[0] != "two-image"} == {("–", "–", "–")}


def test_the_operating_point_has_rates_for_validation_and_test(images):
    rows = chat_rows(*range(12), views=("DST",))
    # Two defective captures lie below the threshold of 0.25 and one passed capture above it.
    chances = [0.1, 0.9, 0.2, 0.0, *[0.8, 0.1] * 4]
    predictions = answered(rows, chance=lambda row: chances[int(row["id"].split("-")[1])])
    text = section_of(render_report(everything(rows, predictions, images)), "score")
    lines = lines_of(text)
    assert [line[-6:] for line in lines] == [
        *([["0.050", "1/20", "0.01–0.24", "0.100", "1/10", "0.02–0.40"]]),
        *([["0.333", "2/6", "0.10–0.70", "0.167", "1/6", "0.03–0.56"]] * 2),
    ]


def test_the_answer_checks_of_the_dataset_and_of_the_model_are_shown_rule_by_rule(images):
    rows = chat_rows(0, 1)
    text = section_of(render_report(everything(rows, answered(rows), images)), "checks")
    assert "Chat dataset, before training: 3 of 4 answers keep all 2 rules." in words_of(text)
    assert "Model, answers to the test split: 3 of 4 answers keep all 2 rules." in words_of(text)
    judgement, rows_enough = (" ".join(line) for line in lines_of(text))
    expectation = "expect column values to be in set: answer_judgement: passed, defective"
    found = "answer_judgement 'doubtful' (train.jsonl, line 2, OK_1.jpg)"
    assert judgement == f"The judgement is passed or defective {expectation} 4 1 no {found}"
    assert rows_enough == "The dataset has enough rows expect table row count to be between 4 0 yes"


def test_missing_measurements_are_shown_as_not_measured(images):
    rows = chat_rows(0, 1)
    text = words_of(render_report(evaluation_of(rows, answered(rows), images)))
    for note in (
        "ROC not measured", "Calibration not measured", "Operating point not measured", "Controls not measured",
        "Attention not measured", "Free generation was not measured", "Facts about the adapter not recorded",
        "Chat dataset, before training: not measured", "Model, answers to the test split: not measured",
    ):  # fmt: skip
        assert note in text


@pytest.mark.parametrize(
    ("rows", "answer"),
    [
        pytest.param(chat_rows(*range(4), kinds=[("two_image", ZERO_SHOT)]), escaped, id="no one-shot"),
        pytest.param(chat_rows(0, 2, 4), moved, id="defective captures only"),
        pytest.param(chat_rows(1, 3), overkilled, id="passed captures only"),
        pytest.param(chat_rows(0, 1, source="virtual"), right, id="virtual captures only"),
        pytest.param(chat_rows(0), right, id="one capture, no miss"),
        pytest.param(chat_rows(0, 1), unreadable, id="nothing but misses"),
    ],
)
def test_a_report_is_made_from_incomplete_data(images, rows, answer):
    page = Page(render_report(everything(rows, answered(rows, answer, chance=lambda row: 0.5), images)))
    assert page.open == []
    assert page.used <= set(page.ids)


def test_without_camera_captures_the_virtual_line_makes_the_headline(tmp_path, images):
    rows = chat_rows(1, 3, source="virtual")
    headline, text = written(tmp_path, images, rows, answered(rows))
    assert (headline["captures"], "virtual" in headline) == (2, False)
    # A score that could not be measured, such as the escape rate without defective captures, is left out.
    assert set(headline["zero_shot"]) == {"exact_match", "overkill_rate", "parse_rate"}
    assert "the test split has no camera capture" in text
    detail = json.loads((tmp_path / "eval/detail.json").read_text())
    assert (detail["source"], detail["virtual"]) == ("virtual", {})


def test_the_headline_has_virtual_scores_beside_the_camera_scores(tmp_path, images):
    rows = [*chat_rows(0, 1), *chat_rows(0, 1, 2, source="virtual")]
    headline, _ = written(tmp_path, images, rows, answered(rows))
    assert (headline["captures"], headline["virtual"]) == (2, {"exact_match": 1.0, "captures": 3})
    detail = json.loads((tmp_path / "eval/detail.json").read_text())
    assert (detail["source"], detail["virtual"]["zero_shot"]["exact_match"]) == ("camera", 1.0)


def test_test_evaluation_needs_test_rows_with_productions_prompt():
    rows = [chat_row(0, view="RAW")]
    with pytest.raises(StageInputError, match=r"evaluate\.view"):
        Examiner(None, None, CONTRACT, PARAMS.evaluate).test(rows)


def test_the_same_evaluation_gives_the_same_bytes(images):
    rows = chat_rows(*range(4))
    evaluation = everything(rows, answered(rows, escaped, chance=lambda row: 0.3), images)
    assert render_report(evaluation) == render_report(replace(evaluation))


def test_figures_use_the_colors_of_the_page():
    rows = [chat_row(number) for number in range(6)]
    predictions = answered(rows, chance=lambda row: 0.9 if "defective" in row["answer"] else 0.2)
    drawn = (
        figures.roc_figure({"zero-shot": predictions}, (0.0, 1.0)),
        figures.separation_figure(predictions, 0.5),
        figures.reliability_figure(metrics.reliability(predictions)),
        figures.learning_curve_figure(CURVE),
    )
    for figure in drawn:
        colors = {color for color in re.findall(r'(?:fill|stroke)="([^"]+)"', figure) if color != "none"}
        assert colors
        assert all(color.startswith("var(--") for color in colors)


def test_plot_tables_hold_every_answer(tmp_path):
    rows = [chat_row(number) for number in range(6)]
    plots.write_plot_tables("zero_shot", answered(rows, unreadable, chance=lambda row: 0.5), tmp_path)
    confusion = pd.read_csv(tmp_path / "confusion_zero_shot.csv")
    assert confusion["found"].tolist() == ["not answered"] * 6
    assert pd.read_csv(tmp_path / "roc_zero_shot.csv")["caught_rate"].tolist() == [0, 1]
