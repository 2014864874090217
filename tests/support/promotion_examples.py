"""Evaluations of versions that promotion weighs, without a registry."""

from dataclasses import replace

from pinspect.registry.settings import RegistrySettings, load_registry_settings
from tests.support.evaluation_examples import chat_row, right
from tests.support.sample import ROOT

CAPTURES = 40  # odd captures are passed
HELD = dict.fromkeys(("blank", "swapped", "other_shape", "shuffled_letters", "lighting"), True)


def rows(captures: int = CAPTURES, view: str = "RAW") -> list[dict]:
    return [chat_row(number, view=view) for number in range(captures)]


def first_wrong(count: int, wrong):
    """Answer `wrong` to the first `count` defective captures (even numbers) and right to all others."""
    chosen = {chat_row(number, view="RAW")["file"] for number in range(0, 2 * count, 2)}
    return lambda row: wrong(row) if row["file"] in chosen else right(row)


def settings_with(root=ROOT, **promotion) -> RegistrySettings:
    settings = load_registry_settings(root)
    return replace(settings, promote=settings.promote.model_copy(update=promotion))
