import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from evaluation_examples import (
    CONTRACT,
    PARAMS,
    answered,
    baseline,
    chat_row,
    escaped,
    moved,
    overkilled,
    right,
    unreadable,
)
from PIL import Image

from pinspect.errors import StageInputError
from pinspect.evaluation import evaluate, metrics, plots
from pinspect.evaluation.report import embed_pictures, find_misses, render_report
from pinspect.prompts import ONE_SHOT, ZERO_SHOT

SUBJECT = evaluate.Subject(
    title="Evaluation of adapter 0123abcd",
    learning_curve=pd.DataFrame({"step": [1, 2, 3], "loss": [2.0, 1.0, 0.5], "validation_loss": [np.nan, np.nan, 0.6]}),
    facts={"Trainable": "424,960 parameters, 10.6%", "File size": "1.73 MB"},
    provenance={"Dataset": "b99729e74cb610799ad42bd2503cd8e7.dir", "Commit": "4f8c06c"},
    digests={"adapter_sha256": "0123abcd"},
    params="evaluate:\n  view: DST",
    set_aside={"camera0_far_off.jpg": "the connector lies 57 px off its place"},
    names={f"images/camera/{number}.jpg": f"OK_{number}.jpg" for number in range(12)},
)


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
    return [*(["star.jpg"] if row["shot"] == ONE_SHOT else []), "reference.jpg", f"{source}-{number}.jpg"]


def chat_rows(*numbers, source="camera"):
    rows = [
        chat_row(n, view=v, shot=s, source=source)
        for n in numbers
        for v in ("DST", "RAW")
        for s in (ZERO_SHOT, ONE_SHOT)
    ]
    return [row | {"images": shown(row)} for row in rows]


def written(tmp_path, images, rows, predictions):
    out = tmp_path / "eval"
    headline = evaluate.write_evaluation(predictions, rows, images, CONTRACT, PARAMS.evaluate, SUBJECT, out)
    return headline, (out / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """What a browser would load, which ids it would look up, and whether every element is closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.used, self.ids = [], [], set(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.handle_startendtag(tag, attributes)

    def handle_startendtag(self, tag, attributes):
        found = dict(attributes)
        self.loads += [found[name] for name in ("src", "href", "xlink:href") if name in found]
        self.used |= {found[name][1:] for name in ("href", "xlink:href") if found.get(name, "").startswith("#")}
        self.ids += [found["id"]] if "id" in found else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_stands_alone(tmp_path, images):
    rows = chat_rows(*range(8))
    _, text = written(tmp_path, images, rows, answered(rows, escaped, chance=lambda row: 0.4))
    page = Page(text)
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
    cards = text.split('<article class="miss">')[1:]
    assert [re.search(r"<h3>(.*?)</h3>", card)[1] for card in cards] == [
        f"OK_{n}.jpg" for n in (0, 0, 3, 3, 1, 1, 2, 2)
    ]
    assert [re.search(r'"worst">(.*?)<', card)[1] for card in cards[::2]] == [
        *("escape", "not answered", "overkill", "wrong address")
    ]
    assert all(re.findall(r"<figcaption>(.*?)<", card) == ["star", "reference", "inspected"] for card in cards)
    assert '<span class="wrong">- your judgement-&gt;passed</span>' in cards[0]
    assert "<span>- number of pins-&gt;27 pins</span>" in cards[0]
    assert "Not readable: expected 5 lines, found 3" in cards[2]


def test_a_miss_in_one_shot_only_says_that_the_other_was_right(tmp_path, images):
    rows = chat_rows(0)
    answer = pd.concat([answered([row], escaped if row["shot"] == ONE_SHOT else right) for row in rows])
    _, text = written(tmp_path, images, rows, answer)
    assert text.count("right zero-shot") == 2
    assert "<h4>zero-shot" not in text


def test_a_report_without_misses_says_so(tmp_path, images):
    rows = chat_rows(0, 1, 2, 3)
    headline, text = written(tmp_path, images, rows, answered(rows))
    assert "No camera capture was answered wrong." in text
    assert "data:image" not in text
    assert headline["zero_shot"] == {
        **{"exact_match": 1.0, "balanced_accuracy": 1.0, "address_on_defective": 1.0, "mode_on_defective": 1.0},
        **{"escape_rate": 0.0, "overkill_rate": 0.0, "parse_rate": 1.0, "captures": 4},
    }


def test_the_figures_of_the_report_are_those_of_the_tables(tmp_path, images):
    rows = chat_rows(*range(10))
    headline_rows = evaluate.headline_rows(rows, PARAMS.evaluate)
    model = pd.concat([answered(rows[:8], escaped), answered(rows[8:])])
    told = pd.concat([model, baseline(headline_rows, unreadable)])
    headline, text = written(tmp_path, images, rows, told)
    assert (headline["zero_shot"]["exact_match"], headline["baseline"]["exact_match"]) == (0.9, 0.0)
    assert "Of 10 held-out captures the model answered <b>9</b> exactly right" in text
    assert "<b>1</b> of 5 defective captures pass" in text
    low, high = metrics.wilson(9, 10)
    assert f'<b>0.900</b> <span class="n">9/10</span><br><span class="ci">{low:.2f}–{high:.2f}</span>' in text
    assert "right by the model alone on 9 and by the baseline alone on 0 of 10 captures, p = 0.004" in text
    for fact in ("1.73 MB", "b99729e74cb610799ad42bd2503cd8e7.dir", "camera0_far_off.jpg (the connector lies 57 px"):
        assert fact in text


def test_the_headline_leaves_out_what_was_not_there(tmp_path, images):
    rows = chat_rows(1, 3, source="virtual")
    headline, text = written(tmp_path, images, rows, answered(rows))
    assert "zero_shot" not in headline
    assert set(headline["virtual"]["zero_shot"]) == {"exact_match", "overkill_rate", "parse_rate", "captures"}
    assert "No camera capture stands in the test split" in text


def test_many_misses_make_pictures_smaller_and_leave_out_virtual_ones_only(tmp_path, images):
    rows = [*chat_rows(*range(12)), *chat_rows(*range(12), source="virtual")]
    misses = find_misses(given_for(rows, answered(rows, unreadable), images))
    camera, virtual = misses[:24], misses[24:]
    assert {miss.source for miss in camera} == {"camera"}
    everything, kept = embed_pictures(camera, virtual, images, budget=10**9)
    assert len(kept) == len(virtual)
    size = sum((images / path).stat().st_size for path in everything)
    fewer, kept = embed_pictures(camera, virtual, images, budget=size // 3)
    assert {path for miss in camera for _, path in miss.images} <= set(fewer)
    assert len(kept) < len(virtual)
    assert sum(len(picture.uri) for picture in fewer.values()) < 4 / 3 * size / 3 + 1000


def given_for(rows, predictions, images):
    from pinspect.evaluation.report import ReportInput

    return ReportInput(
        title="", date="", predictions=predictions, scores=metrics.score_table(predictions, bootstrap_samples=10),
        contract=CONTRACT, model=evaluate.MODEL, baseline=evaluate.BASELINE, decoding="constrained", view="DST",
        kind="two_image", confidence=0.95, images={row["id"]: row["images"] for row in rows}, images_folder=images,
        learning_curve=SUBJECT.learning_curve,
    )  # fmt: skip


def test_markup_in_an_answer_is_shown_and_not_run(tmp_path, images):
    rows = chat_rows(0)
    _, text = written(tmp_path, images, rows, answered(rows, lambda row: "<script>alert(1)</script>"))
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_a_picture_that_is_missing_is_named(tmp_path, images):
    rows = chat_rows(0)
    (images / "camera-0.jpg").unlink()
    with pytest.raises(StageInputError, match=r"camera-0\.jpg: a miss shows it"):
        written(tmp_path, images, rows, answered(rows, escaped))


def test_test_rows_that_production_never_asks_are_no_evaluation():
    rows = [chat_row(0, view="RAW")]
    with pytest.raises(StageInputError, match=r"evaluate\.view"):
        evaluate.answer_test_rows(None, rows, None, CONTRACT, PARAMS.evaluate)


def test_the_same_evaluation_is_told_in_the_same_bytes(images):
    rows = chat_rows(*range(4))
    given = given_for(rows, answered(rows, escaped, chance=lambda row: 0.3), images)
    assert render_report(given) == render_report(replace(given, images=dict(given.images)))


def test_plot_tables_hold_every_answer(tmp_path):
    rows = [chat_row(number) for number in range(6)]
    plots.write_plot_tables({"zero_shot": answered(rows, unreadable, chance=lambda row: 0.5)}, tmp_path)
    confusion = pd.read_csv(tmp_path / "confusion_zero_shot.csv")
    assert confusion["found"].tolist() == ["not answered"] * 6
    assert pd.read_csv(tmp_path / "roc_zero_shot.csv")["caught_rate"].tolist() == [0, 1]
