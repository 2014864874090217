"""Families whose processors need torchvision keep the contract of tests/stages/test_families.py."""

import pytest

from pinspect.model.backends import adapted_modules
from pinspect.model.families import FAMILIES
from pinspect.model.loading import load_base
from tests.stages.test_families import (
    line,
    processor,
    saved,
    test_a_prompt_holds_every_instruction_and_one_placeholder_per_image,
    test_an_adapter_learns_answers_and_merges,
    test_the_loss_of_a_training_is_that_of_the_model_s_own_logits,
    test_the_model_looks_at_every_image,
    test_training_sees_the_prompt_that_generation_starts_from,
)
from tests.support.tiny_torchvision_families import TINY_TORCHVISION_FAMILIES

__all__ = [
    "line",
    "processor",
    "saved",
    "test_a_prompt_holds_every_instruction_and_one_placeholder_per_image",
    "test_an_adapter_learns_answers_and_merges",
    "test_the_loss_of_a_training_is_that_of_the_model_s_own_logits",
    "test_the_model_looks_at_every_image",
    "test_training_sees_the_prompt_that_generation_starts_from",
]


@pytest.fixture(scope="module", params=TINY_TORCHVISION_FAMILIES, ids=str)
def checkpoint(request, saved):
    return saved(request.param)


def test_the_layers_for_sound_are_not_adapted(line, saved):
    model, _ = load_base(saved("Gemma-4"))
    names = adapted_modules(model, line[1].train.model_copy(update={"vision": True}))
    assert any("audio_tower" in name for name, _ in model.named_modules())
    assert {name.split(".")[1] for name in names} == {"vision_tower", "language_model"}


def test_every_family_that_needs_torchvision_is_tested_here():
    tested = {tiny.family for tiny in TINY_TORCHVISION_FAMILIES.values()}
    assert tested == {family.name for family in FAMILIES.values() if family.torchvision}
