"""Families whose processors need torchvision keep the contract of tests/stages/test_families.py."""

import pytest

from pinspect.model.families import FAMILIES
from tests.stages.test_families import (
    line,
    processor,
    saved,
    test_a_prompt_holds_every_instruction_and_one_placeholder_per_image,
    test_an_adapter_learns_answers_and_merges,
    test_the_model_looks_at_every_image,
    test_training_sees_the_prompt_that_generation_starts_from,
)
from tests.support.tiny_families import TINY_TORCHVISION_FAMILIES

__all__ = [
    "line",
    "processor",
    "saved",
    "test_a_prompt_holds_every_instruction_and_one_placeholder_per_image",
    "test_an_adapter_learns_answers_and_merges",
    "test_the_model_looks_at_every_image",
    "test_training_sees_the_prompt_that_generation_starts_from",
]


@pytest.fixture(scope="module", params=TINY_TORCHVISION_FAMILIES, ids=str)
def checkpoint(request, saved):
    return saved(request.param)


def test_every_family_that_needs_torchvision_is_tested_here():
    tested = {tiny.family for tiny in TINY_TORCHVISION_FAMILIES.values()}
    assert tested == {family.name for family in FAMILIES.values() if family.torchvision}
