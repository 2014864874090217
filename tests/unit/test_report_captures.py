"""The captures that the report shows: misses and hits, their pictures, address maps and evidence maps."""

import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pinspect.core.errors import StageInputError
from pinspect.core.prompts import INSTRUCTIONS, ONE_SHOT, STAR_INSTRUCTION, ZERO_SHOT, PromptKind
from pinspect.evaluation import cases
from pinspect.evaluation.cases import embed_pictures, inspected_cell
from pinspect.evaluation.report import render_report
from pinspect.examination.results import Evidence
from pinspect.examination.selection import HITS_PER_MODE, shown_row_ids
from tests.support.evaluation_examples import (
    CONTRACT,
    QUESTION,
    answered,
    escaped,
    moved,
    overkilled,
    right,
    unreadable,
)
from tests.support.report_examples import (
    KINDS,
    cards_of,
    chat_rows,
    evaluation_of,
    evidence_for,
    noise_images,
    words_of,
    written,
)


@pytest.fixture
def images(tmp_path):
    return noise_images(tmp_path / "composited")


def test_every_camera_miss_stands_in_the_report_with_the_models_own_words(tmp_path, images):
    rows = chat_rows(*range(6))
    wrong = {0: escaped, 1: overkilled, 2: moved, 3: unreadable}
    answer = pd.concat([answered([row], wrong.get(int(row["id"].split("-")[1]), right)) for row in rows])
    _, text = written(tmp_path, images, rows, answer)
    cards = cards_of(text)
    # Production's view first, then the other view; within a view the costliest outcome first.
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


def test_a_one_shot_miss_is_shown_with_all_turns_of_its_chat(images):
    rows = chat_rows(0, views=("DST",))
    evaluation = evaluation_of(rows, answered(rows, escaped), images)
    (card,) = cards_of(render_report(evaluation))
    star, question = card.split('<section class="turn')[1:]
    assert STAR_INSTRUCTION in star
    assert "- defect position->X:1, Y:U" in words_of(star)
    assert re.findall(r"<figcaption>(.*?)<", star) == ["star"]
    assert INSTRUCTIONS[PromptKind.TWO_IMAGE, "DST"] in question
    assert re.findall(r"<figcaption>(.*?)<", question) == ["reference", "inspected"]
    assert "- defect mode-&gt;bend" in question.split("expected</h5>")[1]


def test_a_miss_in_one_shot_only_notes_the_right_zero_shot_answer(tmp_path, images):
    rows = chat_rows(0)
    answer = pd.concat([answered([row], escaped if row["shot"] == ONE_SHOT else right) for row in rows])
    _, text = written(tmp_path, images, rows, answer)
    cards = cards_of(text)
    assert len(cards) == 2
    assert all("right zero-shot" in card and "model, zero-shot" not in card for card in cards)


def test_a_report_without_misses_states_it_and_shows_hits_of_every_mode(tmp_path, images):
    rows = chat_rows(*range(12))
    headline, text = written(tmp_path, images, rows, answered(rows))
    assert "No camera capture was answered wrong with production’s prompt, nor with any other." in text
    assert cards_of(text) == []
    hits = cards_of(text, "hit")
    modes = [re.search(r"defect mode-&gt;(\w+)", card)[1] for card in hits]
    assert modes == [mode for mode in ("bend", "missing", "retract", "passed") for _ in range(HITS_PER_MODE)]
    assert headline["captures"] == 12
    assert set(headline["zero_shot"].values()) <= {0.0, 1.0}


def test_evidence_is_needed_only_for_the_rows_that_the_report_shows(images):
    rows = chat_rows(*range(8), kinds=KINDS)
    predictions = pd.concat([answered(rows[:10], moved), answered(rows[10:])], ignore_index=True)
    wanted, maps = shown_row_ids(predictions, QUESTION), evidence_for(rows)
    assert len(wanted) == len(set(wanted))
    text = render_report(evaluation_of(rows, predictions, images, examined={"evidence": Evidence(maps)}))
    cards = [*cards_of(text), *cards_of(text, "hit")]
    assert sum(card.count("<h5>model, ") for card in cards) == len(wanted)
    fewer = Evidence({row_id: maps[row_id] for row_id in wanted})
    assert render_report(evaluation_of(rows, predictions, images, examined={"evidence": fewer})) == text


def test_the_address_map_gives_every_share_and_frames_the_expected_pin(images):
    rows = chat_rows(2, views=("DST",), kinds=[("two_image", ZERO_SHOT)])
    shares = [0.9, *[0.1] * 1, *[0.0] * 25]
    (card,) = cards_of(render_report(evaluation_of(rows, answered(rows, moved, shares=lambda row: shares), images)))
    drawn = card.split('aria-label="P(address) of every pin">')[1].split("</svg>")[0]
    assert re.findall(r'font-size="11"[^>]*>(\d+)<', drawn) == ["90", "10"]
    # The defect of capture 2 is at the second address.
    assert [(rect[0], rect[1]) for rect in re.findall(r'x="(\d+)" y="(\d+)"[^>]*stroke="var\(--red\)"', drawn)] == [
        ("47", "15")
    ]


def test_the_evidence_map_lies_over_the_inspected_picture(images):
    rows = chat_rows(0, views=("DST",), kinds=[("two_image", ZERO_SHOT)])
    evaluation = evaluation_of(rows, answered(rows, moved), images, examined={"evidence": Evidence(evidence_for(rows))})
    text = render_report(evaluation)
    (card,) = cards_of(text)
    inspected = re.search(r'aria-label="inspected[^>]*><use href="#(\w+)"', card)[1]
    drawn = card.split('aria-label="evidence map')[1].split("</svg>")[0]
    assert f'href="#{inspected}"' in drawn
    # The last of 4 x 10 tokens of a picture of 160 x 64 px has all the weight.
    assert re.findall(r'<rect x="([\d.]+)" y="([\d.]+)"[^>]*--glow', drawn) == [("144.0", "48.0")]
    assert "38 % on the defective pin" in words_of(card)


def test_the_inspected_pin_of_a_stacked_composite_lies_in_its_lower_half():
    cells = {kind: inspected_cell("X:3, Y:U", CONTRACT.layout, kind) for kind in PromptKind}
    assert cells["two_image"] == cells["one_image"] == pytest.approx((3 / 10, 1 / 4, 1 / 10, 1 / 4))
    assert cells["stacked"] == pytest.approx((3 / 10, 5 / 8, 1 / 10, 1 / 8))
    assert inspected_cell("passed", CONTRACT.layout, "stacked") is None


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
