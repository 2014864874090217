"""Evaluations of versions that promotion weighs."""

import json
from dataclasses import replace
from pathlib import Path

from pinspect.core import digests as provenance
from pinspect.core import predictions
from pinspect.evaluation import metrics
from pinspect.registry.settings import RegistrySettings, load_registry_settings
from tests.support.evaluation_examples import chat_row, escaped, moved, right
from tests.support.sample import ROOT

CAPTURES = 40  # odd captures are passed
HELD = dict.fromkeys(("blank", "swapped", "other_shape", "shuffled_letters", "lighting"), True)


def rows(captures: int = CAPTURES, view: str = "RAW") -> list[dict]:
    return [chat_row(number, view=view) for number in range(captures)]


def first_wrong(count: int, wrong):
    """Answer `wrong` to the first `count` defective captures (even numbers) and right to all others."""
    chosen = {chat_row(number, view="RAW")["file"] for number in range(0, 2 * count, 2)}
    return lambda row: wrong(row) if row["file"] in chosen else right(row)


FAIR = first_wrong(8, moved)
BETTER = right
WORSE = first_wrong(8, escaped)


def evaluate_as(root: Path, number: int, table) -> None:
    """Create adapter `number` of the project in `root`, evaluated as in `table`.

    Blanks at the end of its configuration make it another adapter with the same answers.
    """
    config, out = root / "models/adapter/adapter_config.json", root / "reports/eval"
    config.write_text(config.read_text().rstrip() + " " * number)
    point = json.loads((root / "models/operating_point.json").read_text())
    point["weights_sha256"] = provenance.weights_sha256(root / "models/adapter")
    (root / "models/operating_point.json").write_text(json.dumps(point))
    predictions.write(table, root / "reports/predictions/test.csv")
    detail = json.loads((out / "detail.json").read_text())
    detail["adapter_sha256"] = provenance.adapter_sha256(root / "models/adapter")
    detail["controls"] = [{"name": name, "held": True} for name in HELD]
    (out / "detail.json").write_text(json.dumps(detail))
    content = json.loads((out / "metrics.json").read_text())
    scores = metrics.score(table, bootstrap_samples=100)
    content["zero_shot"] = {name: round(score.value, 4) for name, score in scores.items() if score.value is not None}
    (out / "metrics.json").write_text(json.dumps(content))


def settings_with(root=ROOT, **promotion) -> RegistrySettings:
    settings = load_registry_settings(root)
    return replace(settings, promote=settings.promote.model_copy(update=promotion))
