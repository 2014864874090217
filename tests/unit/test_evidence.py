"""Evidence maps: the attention of the address tokens, at the right cell, for every kind of prompt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pinspect.core.answers import AnswerKind
from pinspect.core.errors import ModelError
from pinspect.evaluation.wording import evidence_summary
from pinspect.examination.evidence import attention_maps, cell_shares, choose_layer, evidence_table
from pinspect.examination.results import EVIDENCE_COLUMNS, Evidence
from pinspect.model.families import FAMILIES, Checkpoint
from pinspect.model.loading import Inspector, load_inspector
from pinspect.model.rows import RowEncoder
from pinspect.pretraining import base
from tests.support.inspected_rows import CONTRACT, LAYOUT, make_rows
from tests.support.tiny_families import TINY_FAMILIES

BASE = Path(__file__).parents[2] / "models/base"
KINDS = ("two_image", "one_image", "stacked")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module")
def untrained() -> Inspector:
    model, processor, _ = base.new_base(LAYOUT, seed=0)
    return Inspector(model.eval(), processor, torch.device("cpu"))


def rows_of(images, kind="two_image", few=12):
    return make_rows(images, kind, cell=64)[:few]


def labels(rows):
    return {row["id"]: row["answer"] for row in rows}


def defects(rows):
    truths = {row["id"]: CONTRACT.parse(row["answer"], AnswerKind(row["answer_kind"])) for row in rows}
    return {identity: truth.defect_position for identity, truth in truths.items() if truth.defect_position}


# --- shares of cells


@pytest.mark.parametrize("tokens", [(4, 10), (8, 20), (5, 7), (3, 3), (24, 24)])
def test_cell_shares_sum_to_one_whatever_the_token_grid(tokens):
    weights = np.random.default_rng(1).random(tokens).astype(np.float32)
    shares = cell_shares(weights, LAYOUT)
    assert shares.shape == (4, 10)
    assert shares.sum() == pytest.approx(1)
    assert (shares >= 0).all()


def test_a_token_across_cells_is_divided_by_area():
    weights = np.zeros((4, 15), np.float32)
    weights[1, 1] = 1  # from 2/3 to 4/3 of a cell
    assert cell_shares(weights, LAYOUT)[1, :3] == pytest.approx([0.5, 0.5, 0])
    even = cell_shares(np.ones((6, 7), np.float32), LAYOUT)
    assert even == pytest.approx(np.full((4, 10), 1 / 40))


def test_only_the_inspected_half_of_a_stacked_picture_counts():
    weights = np.zeros((8, 10), np.float32)
    weights[1, 3], weights[6, 2] = 3, 1
    shares = cell_shares(weights, LAYOUT, composites=2)
    assert shares[2, 2] == 1


# --- planted attention


@pytest.mark.parametrize("kind", KINDS)
def test_planted_attention_is_found_where_it_lies(kind, images, untrained):
    """All heads of the last layer are made to look, from the places that generate the address, at one token each: the
    column's at the defective pin, the row's at the pin in the opposite corner of the inspected composite."""
    rows = rows_of(images, kind)
    layer = len(untrained.model.get_decoder().layers) - 1
    where = defects(rows)
    encoder, tokenizer = RowEncoder(untrained.processor, images), untrained.processor.tokenizer
    prompts = {tuple(encoder.chat(row).input_ids): row for row in rows if row["id"] in where}
    colon = tokenizer.convert_tokens_to_ids(":")
    seen = {}

    def note_ids(_module, _args, kwargs):
        seen["ids"] = kwargs["input_ids"]

    def plant(_module, _inputs, output):
        hidden, weights = output
        weights = torch.full_like(weights, 1e-9)
        for chat, ids in enumerate(seen["ids"].tolist()):
            (row,) = [row for known, row in prompts.items() if ids[: len(known)] == list(known)]
            start = encoder.chat(row).prompt_length
            column_at, row_at = [place for place in range(start, len(ids)) if ids[place] == colon]
            visual = [place for place, token in enumerate(ids) if token == untrained.processor.image_token_id][-40:]
            defect = where[row["id"]]
            letter = LAYOUT.rows.index(defect.row)
            weights[chat, :, column_at, visual[(letter + 1) * 10 + defect.column]] = 0.6
            weights[chat, :, row_at, visual[(3 - letter) * 10 + 10 - defect.column]] = 0.2
        return hidden, weights

    hooks = [
        untrained.model.register_forward_pre_hook(note_ids, with_kwargs=True),
        untrained.model.get_decoder().layers[layer].self_attn.register_forward_hook(plant),
    ]
    try:
        maps = attention_maps(untrained, rows, labels(rows), images, CONTRACT, layer=layer)
    finally:
        for hook in hooks:
            hook.remove()
    assert set(maps) == set(where)
    for identity, evidence_map in maps.items():
        defect = where[identity]
        alone = defect.column == 5 and LAYOUT.rows.index(defect.row) == 1  # the middle pin is opposite to itself
        assert evidence_map.agreement == pytest.approx(1 if alone else 0.75, abs=1e-3)
        assert evidence_map.looked == pytest.approx(0.4, abs=1e-3)
        assert evidence_map.hit and evidence_map.brightest == evidence_map.named == evidence_map.defect == defect
        assert evidence_map.weights.sum() == pytest.approx(1, abs=1e-5)
        assert evidence_map.weights.shape == ((8, 10) if kind == "stacked" else (4, 10))


def test_an_untrained_model_looks_nowhere_in_particular(images, untrained):
    rows = rows_of(images)
    for evidence_map in attention_maps(untrained, rows, labels(rows), images, CONTRACT, layer=0).values():
        assert evidence_map.weights.sum() == pytest.approx(1, abs=1e-5)
        assert 0 < evidence_map.looked < 1
        assert evidence_map.agreement < 0.2


def test_the_shipped_base_looks_at_the_defective_pin(images):
    inspector = load_inspector(Checkpoint(FAMILIES["pinspect"], str(BASE), BASE))
    rows = rows_of(images)
    layer = choose_layer(inspector, rows, images, CONTRACT)
    maps = attention_maps(inspector, rows, labels(rows), images, CONTRACT, layer=layer)
    table = evidence_table(maps, rows, CONTRACT)
    assert table["hit"].sum() >= len(table) / 2, "chance would be 1 in 27"
    other = attention_maps(inspector, rows, labels(rows), images, CONTRACT, layer=0 if layer else 1)
    assert evidence_table(other, rows, CONTRACT)["agreement"].mean() <= table["agreement"].mean()


# --- which rows have maps, and the state of the model afterwards


def test_only_answers_that_name_an_address_have_a_map(images, untrained):
    rows = rows_of(images, few=6)
    answers = labels(rows)
    first, second = list(defects(rows))[:2]
    answers[first] = "no answer at all"
    passed = [row["id"] for row in rows if row["id"] not in defects(rows)]
    wrongly_named = CONTRACT.render(CONTRACT.defective("CYLN", "RAW", "bend", LAYOUT.addresses[7]))
    answers[passed[0]] = wrongly_named
    maps = attention_maps(untrained, rows, answers, images, CONTRACT, layer=0)
    assert set(maps) == {passed[0], *defects(rows)} - {first}
    assert maps[passed[0]].agreement is None and maps[passed[0]].named == LAYOUT.addresses[7]
    table = evidence_table(maps, rows, CONTRACT).set_index("id")
    assert table.loc[passed[0], "defect_position"] == "" and table.loc[second, "agreement"] == maps[second].agreement


def test_attention_is_computed_as_before_afterwards(images, untrained, monkeypatch):
    rows, decoder = rows_of(images, few=2), untrained.model.get_decoder()
    before = decoder.config._attn_implementation
    attention_maps(untrained, rows, labels(rows), images, CONTRACT, layer=0)
    assert decoder.config._attn_implementation == before != "eager"
    with pytest.raises(FileNotFoundError):
        attention_maps(untrained, rows, labels(rows), images / "nowhere", CONTRACT, layer=0)
    assert decoder.config._attn_implementation == before
    assert not decoder.layers[0].self_attn._forward_hooks


def test_without_a_defective_validation_row_the_last_layer_is_taken(images, untrained):
    rows = rows_of(images)
    passed = [row for row in rows if row["id"] not in defects(rows)]
    assert choose_layer(untrained, passed, images, CONTRACT) == len(untrained.model.get_decoder().layers) - 1


def test_an_error_names_a_family_without_a_token_grid(images, tmp_path):
    tiny = next(tiny for tiny in TINY_FAMILIES.values() if tiny.family == "llava-1.5-7b")
    folder = tiny.save(tmp_path / "base")
    inspector = load_inspector(Checkpoint(FAMILIES[tiny.family], str(folder), folder))
    rows = rows_of(images, few=2)
    with pytest.raises(ModelError, match="llava: no evidence maps") as refused:
        attention_maps(inspector, rows, labels(rows), images, CONTRACT, layer=0)
    assert "\n" not in str(refused.value)


def test_the_summary_counts_hits_against_chance(images, untrained):
    rows = rows_of(images)
    table = evidence_table(attention_maps(untrained, rows, labels(rows), images, CONTRACT, layer=0), rows, CONTRACT)
    table = table.assign(hit=[True, True, True, False, False, False], agreement=0.25)
    summary = evidence_summary(Evidence(table=table, base_table=table.assign(hit=False)), LAYOUT, 0.95)
    assert "3 of 6 defective captures (19 to 81 %)" in summary and "25 % of its attention" in summary
    assert "1 capture in 27" in summary and "0 of 6" in summary.split("The base without the adapter")[1]
    nothing = table.assign(agreement=None, hit=None)
    assert "no map can be compared" in evidence_summary(Evidence(table=nothing), LAYOUT, 0.95)
    assert evidence_summary(Evidence(table=table[:0]), LAYOUT, 0.95) == ""
    assert list(table.columns) == list(EVIDENCE_COLUMNS)
