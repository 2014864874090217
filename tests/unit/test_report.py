import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pinspect.core.errors import StageInputError
from pinspect.core.operating_point import OperatingPoint
from pinspect.core.prompts import INSTRUCTIONS, ONE_SHOT, STAR_INSTRUCTION, ZERO_SHOT, PromptKind
from pinspect.core.statistics import wilson
from pinspect.evaluation import cases, figures, metrics, plots
from pinspect.evaluation.cases import embed_pictures, inspected_cell
from pinspect.evaluation.evaluation import Evaluation
from pinspect.evaluation.report import render_report
from pinspect.evaluation.writing import write_evaluation
from pinspect.examination.examiner import Examiner
from pinspect.examination.results import Check, ControlResult, Evidence, EvidenceMap, Examination
from pinspect.examination.selection import HITS_PER_MODE, shown_row_ids
from tests.support.evaluation_examples import (
    ADDRESSES,
    CONTRACT,
    PARAMS,
    QUESTION,
    REPORT,
    answered,
    baseline,
    chat_row,
    escaped,
    messages,
    moved,
    overkilled,
    right,
    unreadable,
)

CURVE = pd.DataFrame({"step": [1, 2, 3], "loss": [2.0, 1.0, 0.5], "validation_loss": [np.nan, np.nan, 0.6]})
FACTS = {"Trainable parameters": "424,960 (10.6%)", "File size": "1.73 MB"}
DIGESTS = {"adapter_sha256": "0123abcd", "dataset_digest": "b99729e74cb610799ad42bd2503cd8e7.dir"}
SET_ASIDE = {"camera0_far_off.jpg": "the connector lies 57 px off its place"}
NAMES = {f"images/camera/{number}.jpg": f"OK_{number}.jpg" for number in range(12)}
CHECKS = {"rows": 4, "failing_rows": 1, "expectations": [
    {"rule": "the judgement is passed or defective", "success": False, "element_count": 4, "unexpected_count": 1},
    {"rule": "the dataset has enough rows", "success": True, "unexpected_count": 0},
]}  # fmt: skip
POINT = OperatingPoint(
    threshold=0.25, wanted_escape_rate=0.05, escape_rate=0.05, overkill_rate=0.1, defective=20, passed=10,
    chosen_on="camera", view="DST", kind="two_image", weights_sha256="0123abcd",
)  # fmt: skip
ASKED = (("two_image", ZERO_SHOT), ("two_image", ONE_SHOT))
KINDS = (*ASKED, ("one_image", ZERO_SHOT), ("stacked", ZERO_SHOT), ("stacked", ONE_SHOT))


@pytest.fixture
def images(tmp_path):
    """Noise, which JPEG cannot make small: three pictures a capture."""
    folder = tmp_path / "composited"
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


def evaluation_of(rows, predictions, images, *, controls=(), evidence=None, answer_checks=None, bounds=None, **more):
    """An evaluation in which everything that may be missing is missing, unless a test gives it."""
    settings = REPORT.model_copy(update={"bounds": bounds or {}, "bootstrap_samples": 10})
    examination = Examination(answered([]), predictions, controls, evidence or Evidence(), answer_checks)
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
    """The cards of captures, each up to where the next thing begins."""
    return [re.split(r"</article>", part)[0] for part in text.split(f'<article class="case {outcome}">')[1:]]


def section_of(text, name):
    return re.split(r"<h2 ", text.split(f'<h2 id="{name}"')[1])[0]


def words_of(text):
    """What a reader of the page sees of it, on one line."""
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text))


def lines_of(section):
    """The words of every line of the first table in a section, without its head."""
    body = section.split("<tbody>")[1].split("</tbody>")[0]
    return [words_of(line.split(">", 1)[1]).split() for line in body.split("<tr")[1:]]


class Page(HTMLParser):
    """What a browser would load, which ids it would look up, and whether every element is closed."""

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


def evidence_for(rows):
    """Maps on the tokens of a composite, everything on its lowest right one."""
    shares = np.zeros((4, 10), np.float32)
    shares[-1, -1] = 1
    pin = ADDRESSES[0]
    return {row["id"]: EvidenceMap(shares, 0.5, ADDRESSES[-1], pin, pin, 0.375, False) for row in rows}


def everything(rows, predictions, images):
    """An evaluation in which nothing is missing."""
    uri = "data:image/jpeg;base64,AAAA"
    return evaluation_of(
        rows, predictions, images, bounds=REPORT.bounds, operating_point=POINT, learning_curve=CURVE, facts=FACTS,
        digests=DIGESTS, params_text="evaluate:\n  view: DST", set_aside=SET_ASIDE, names=NAMES,
        evidence=Evidence(evidence_for(rows)), dataset_checks=CHECKS, answer_checks=CHECKS,
        controls=[
            ControlResult("blank", 50, (Check("judged passed", 0, 50, bound=0),), pictures=(uri,)),
            ControlResult("swapped", 50, (Check("defective pairs judged passed", 2, 50, bound=46, at_least=True),)),
            ControlResult("other_shape", 0, reason="all captures are of one shape, CYLN"),
        ],
    )  # fmt: skip


def test_the_report_stands_alone(images):
    rows = chat_rows(*range(8), kinds=KINDS)
    even = [1 / len(ADDRESSES)] * len(ADDRESSES)
    predictions = answered(rows, escaped, chance=lambda row: 0.4, shares=lambda row: even)
    page = Page(text := render_report(everything(rows, predictions, images)))
    assert page.open == []
    assert all(load.startswith(("data:", "#")) for load in page.loads)
    assert page.used <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not re.search(r"@import|url\((?!#)|<script|<link", text)


def test_every_camera_miss_stands_in_the_report_with_the_models_own_words(tmp_path, images):
    rows = chat_rows(*range(6))
    wrong = {0: escaped, 1: overkilled, 2: moved, 3: unreadable}
    answer = pd.concat([answered([row], wrong.get(int(row["id"].split("-")[1]), right)) for row in rows])
    _, text = written(tmp_path, images, rows, answer)
    cards = cards_of(text)
    # Production's view first, then the other one; in each the costliest first.
    assert [re.search(r"<h4>(.*?)</h4>", card)[1] for card in cards] == [f"OK_{n}.jpg" for n in (0, 3, 1, 2) * 2]
    assert ["_DST" in card for card in cards] == [True] * 4 + [False] * 4
    assert [re.search(r'"outcome">(.*?)<', card)[1] for card in cards] == [
        *("escape", "not answered", "overkill", "wrong address")
    ] * 2
    assert all(re.findall(r"<figcaption>(.*?)<", card) == ["star", "reference", "inspected"] for card in cards)
    assert '<span class="wrong">- your judgement-&gt;passed</span>' in cards[0]
    assert "<span>- number of pins-&gt;27 pins</span>" in cards[0]
    assert "Not readable: expected 5 lines, found 3" in cards[1]


def test_misses_of_every_kind_of_prompt_are_shown(images):
    rows = chat_rows(0, kinds=KINDS)
    evaluation = evaluation_of(rows, answered(rows, escaped), images)
    cards = cards_of(render_report(evaluation))
    assert len(cards) == len(PromptKind) * 2
    by_prompt = {(kind, view): [card for card in cards if f"_{view} · {kind}" in card] for kind in
            ("two-image", "one-image", "stacked") for view in ("RAW", "DST")}  # fmt: skip
    assert all(len(matches) == 1 for matches in by_prompt.values())
    assert "quantity of pins" in by_prompt["one-image", "RAW"][0]
    stacked = re.findall(r"<figcaption>(.*?)<", by_prompt["stacked", "DST"][0])
    assert stacked == ["worked example", "reference above, inspected below"]


def test_a_one_shot_miss_is_told_with_all_turns_of_its_chat(images):
    rows = chat_rows(0, views=("DST",))
    evaluation = evaluation_of(rows, answered(rows, escaped), images)
    (card,) = cards_of(render_report(evaluation))
    star, question = card.split('<section class="turn')[1:]
    assert STAR_INSTRUCTION in star
    assert "- defect position-&gt;X:1, Y:U" in words_of(star)
    assert re.findall(r"<figcaption>(.*?)<", star) == ["star"]
    assert INSTRUCTIONS[PromptKind.TWO_IMAGE, "DST"] in question
    assert re.findall(r"<figcaption>(.*?)<", question) == ["reference", "inspected"]
    assert "- defect mode-&gt;bend" in question.split("expected</h5>")[1]


def test_a_miss_in_one_shot_only_says_that_the_other_was_right(tmp_path, images):
    rows = chat_rows(0)
    answer = pd.concat([answered([row], escaped if row["shot"] == ONE_SHOT else right) for row in rows])
    _, text = written(tmp_path, images, rows, answer)
    cards = cards_of(text)
    assert len(cards) == 2
    assert all("right zero-shot" in card and "model, zero-shot" not in card for card in cards)


def test_a_report_without_misses_says_so_and_shows_hits_of_every_mode(tmp_path, images):
    rows = chat_rows(*range(12))
    headline, text = written(tmp_path, images, rows, answered(rows))
    assert "No camera capture was answered wrong with production’s prompt, nor with any other." in text
    assert cards_of(text) == []
    hits = cards_of(text, "hit")
    modes = [re.search(r"defect mode-&gt;(\w+)", card)[1] for card in hits]
    assert modes == [mode for mode in ("bend", "missing", "retract", "passed") for _ in range(HITS_PER_MODE)]
    assert headline["captures"] == 12
    assert set(headline["zero_shot"].values()) <= {0.0, 1.0}


def test_evidence_is_asked_for_just_the_rows_that_the_report_shows(images):
    rows = chat_rows(*range(8), kinds=KINDS)
    predictions = pd.concat([answered(rows[:10], moved), answered(rows[10:])], ignore_index=True)
    wanted, maps = shown_row_ids(predictions, QUESTION), evidence_for(rows)
    assert len(wanted) == len(set(wanted))
    text = render_report(evaluation_of(rows, predictions, images, evidence=Evidence(maps)))
    cards = [*cards_of(text), *cards_of(text, "hit")]
    assert sum(card.count("<h5>model, ") for card in cards) == len(wanted)
    fewer = Evidence({row_id: maps[row_id] for row_id in wanted})
    assert render_report(evaluation_of(rows, predictions, images, evidence=fewer)) == text


def test_the_address_map_gives_every_share_and_frames_the_expected_pin(images):
    rows = chat_rows(2, views=("DST",), kinds=[("two_image", ZERO_SHOT)])
    shares = [0.9, *[0.1] * 1, *[0.0] * 25]
    (card,) = cards_of(render_report(evaluation_of(rows, answered(rows, moved, shares=lambda row: shares), images)))
    drawn = card.split('aria-label="P(address) of every pin">')[1].split("</svg>")[0]
    assert re.findall(r'font-size="11"[^>]*>(\d+)<', drawn) == ["90", "10"]
    # Capture 2 is defective at the second address.
    assert [(rect[0], rect[1]) for rect in re.findall(r'x="(\d+)" y="(\d+)"[^>]*stroke="var\(--red\)"', drawn)] == [
        ("47", "15")
    ]


def test_the_evidence_map_lies_over_the_inspected_picture(images):
    rows = chat_rows(0, views=("DST",), kinds=[("two_image", ZERO_SHOT)])
    evaluation = evaluation_of(rows, answered(rows, moved), images, evidence=Evidence(evidence_for(rows)))
    text = render_report(evaluation)
    (card,) = cards_of(text)
    inspected = re.search(r'aria-label="inspected[^>]*><use href="#(\w+)"', card)[1]
    drawn = card.split('aria-label="evidence map')[1].split("</svg>")[0]
    assert f'href="#{inspected}"' in drawn
    # All weight lies on the last of 4 x 10 tokens of a picture of 160 x 64 px.
    assert re.findall(r'<rect x="([\d.]+)" y="([\d.]+)"[^>]*--glow', drawn) == [("144.0", "48.0")]
    assert "38 % on the defective pin" in words_of(card)


def test_the_inspected_pin_of_a_stacked_composite_lies_in_its_lower_half():
    cells = {kind: inspected_cell("X:3, Y:U", CONTRACT.layout, kind) for kind in PromptKind}
    assert cells["two_image"] == cells["one_image"] == pytest.approx((3 / 10, 1 / 4, 1 / 10, 1 / 4))
    assert cells["stacked"] == pytest.approx((3 / 10, 5 / 8, 1 / 10, 1 / 8))
    assert inspected_cell("NA", CONTRACT.layout, "stacked") is None


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


def test_the_verdict_says_when_captures_are_too_few_to_prove_a_bound(images):
    rows = chat_rows(*range(12))
    few = render_report(evaluation_of(rows, answered(rows), images, bounds={"exact_match": 0.93, "parse_rate": 1.0}))
    assert verdict_of(few) == (
        "It holds all 2 bounds of settings.yaml, but 12 captures are too few to prove 1 of them: the intervals "
        "reach beyond the bounds."
    )
    plenty = render_report(evaluation_of(rows, answered(rows), images, bounds={"exact_match": 0.5}))
    assert verdict_of(plenty) == "It holds all 1 bounds of settings.yaml, intervals included."


def test_the_verdict_tells_of_controls_that_fail(images):
    rows = chat_rows(*range(4))
    text = render_report(everything(rows, answered(rows), images))
    assert verdict_of(text).endswith("; it fails 1 of 3 controls (Reference and capture swapped).")
    held = re.findall(r'<td class="(?:held|missed|none)">(yes|no|not judged)</td>', section_of(text, "controls"))
    assert held == ["yes", "no", "not judged"]


def test_a_model_behind_the_baseline_is_said_to_be(images):
    rows = chat_rows(*range(8))
    headline_rows = QUESTION.rows(rows)
    predictions = pd.concat([answered(rows[:4], moved), answered(rows[4:]), baseline(headline_rows)], ignore_index=True)
    text = words_of(render_report(evaluation_of(rows, predictions, images)))
    assert "answered 8 of 8 exactly right: the model does not beat it." in text
    assert "The model is worse in: Exact match, Address." in text


def test_every_kind_of_prompt_has_its_line_with_free_generation_beside(images):
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


def test_the_operating_point_is_told_for_validation_and_for_test(images):
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
    lines = [" ".join(line) for line in lines_of(text)]
    assert lines == ["The judgement is passed or defective 4 1 no", "The dataset has enough rows – 0 yes"]


def test_what_was_not_measured_is_said_not_to_be(images):
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
def test_a_report_is_made_of_whatever_there_is(images, rows, answer):
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


def test_the_virtual_line_stands_beside_the_camera(tmp_path, images):
    rows = [*chat_rows(0, 1), *chat_rows(0, 1, 2, source="virtual")]
    headline, _ = written(tmp_path, images, rows, answered(rows))
    assert (headline["captures"], headline["virtual"]) == (2, {"exact_match": 1.0, "captures": 3})
    detail = json.loads((tmp_path / "eval/detail.json").read_text())
    assert (detail["source"], detail["virtual"]["zero_shot"]["exact_match"]) == ("camera", 1.0)


def test_many_misses_make_pictures_smaller_and_leave_out_virtual_ones_only(images):
    rows = [*chat_rows(*range(12)), *chat_rows(*range(12), source="virtual")]
    misses = cases.find_misses(evaluation_of(rows, answered(rows, unreadable), images))
    camera, virtual = misses[:24], misses[24:]
    assert {miss.source for miss in camera} == {"camera"}
    everything_, kept = embed_pictures(camera, virtual, images, budget=10**9)
    assert len(kept) == len(virtual)
    size = sum((images / path).stat().st_size for path in everything_)
    fewer, kept = embed_pictures(camera, virtual, images, budget=size // 3)
    assert {path for miss in camera for turn in miss.turns for _, path in turn.pictures} <= set(fewer)
    assert len(kept) < len(virtual)
    assert sum(len(picture.uri) for picture in fewer.values()) < 4 / 3 * size / 3 + 1000


def test_a_report_with_twenty_misses_stays_below_6_mb(tmp_path):
    random, rows = np.random.default_rng(0), chat_rows(*range(20), kinds=KINDS, views=("DST",))
    for number, row in enumerate(rows):
        row["images"] = [f"{number // len(KINDS)}-{name}" for name in row["images"]]
    for name in {name for row in rows for name in row["images"]}:
        Image.fromarray(random.integers(0, 90, (256, 640, 3), np.uint8)).save(tmp_path / name)
    text = render_report(evaluation_of(rows, answered(rows, unreadable), tmp_path))
    assert len(cards_of(text)) == 20 * len(PromptKind)
    assert len(text.encode()) < 6_000_000


def test_markup_in_an_answer_is_shown_and_not_run(tmp_path, images):
    rows = chat_rows(0)
    _, text = written(tmp_path, images, rows, answered(rows, lambda row: "<script>alert(1)</script>"))
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_a_picture_that_is_missing_is_named(tmp_path, images):
    rows = chat_rows(0)
    (images / "camera-0.jpg").unlink()
    with pytest.raises(StageInputError, match=r"camera-0\.jpg: not readable"):
        written(tmp_path, images, rows, answered(rows, escaped))


def test_test_rows_that_production_never_asks_are_no_evaluation():
    rows = [chat_row(0, view="RAW")]
    with pytest.raises(StageInputError, match=r"evaluate\.view"):
        Examiner(None, None, CONTRACT, PARAMS.evaluate).test(rows)


def test_the_same_evaluation_is_told_in_the_same_bytes(images):
    rows = chat_rows(*range(4))
    evaluation = everything(rows, answered(rows, escaped, chance=lambda row: 0.3), images)
    assert render_report(evaluation) == render_report(replace(evaluation))


def test_figures_follow_the_page_into_the_dark():
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
