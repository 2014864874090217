"""Model cards in the form of the Hugging Face hub: of an adapter, and of an export with its scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from pinspect.core.files import write_file

CARD = "README.md"
_TAGS = ["visual-inspection", "pinspect"]
_TASK = "image-text-to-text"


def write_adapter_card(adapter: Path, dataset_digest: str, base: str | None) -> None:
    """Write the card of a trained adapter, in place of peft's template; equal trainings write equal bytes.

    Args:
        adapter: Folder of the adapter, with training.json.
        dataset_digest: The hash under which DVC caches data/chat.
        base: The base's repository on the hub; None if the base is a folder, whose path means nothing elsewhere.
    """
    training = json.loads((adapter / "training.json").read_text(encoding="utf-8"))
    params = training["params"]
    pinned = f"{base}@{training['revision']}" if training["revision"] else base
    facts = {
        "family": training["family"],
        "base": pinned if base else "a folder of the project",
        "sha256 of the base": training["base_sha256"],
        "hash of data/chat (DVC)": dataset_digest,
        "sha256 of the adapter it started from": training["start_sha256"] or "none",
        "training rows": training["rows"],
        "steps": f"{training['steps']}, weights of step {training['kept_step']}",
        "rank, alpha": f"{params['rank']}, {params['alpha']}",
        "learning rate": params["learning_rate"],
        "batch": params["batch_size"],
        "trainable parameters": training["trainable_parameters"],
        "validation loss": training["validation_loss"],
        "seed": params["seed"],
    }
    data = ModelCardData(base_model=base, library_name="peft", pipeline_tag=_TASK, tags=[*_TAGS, "lora"])
    write_file(adapter / CARD, _render(data, _INTRODUCTION + _table({"training": "value"} | facts)))


def scored_card(card: str, name: str, scores: Mapping[str, float], digests: Mapping[str, str]) -> str:
    """Return the card of a merged checkpoint: the card of its adapter, with the scores of the registered version.

    Args:
        card: The card of the adapter; "" if it has none.
        name: Name of the model.
        scores: `zero_shot.exact_match` and so on -> value on the test captures.
        digests: Names and values of the digests that identify data and evaluation.
    """
    text = ModelCard(card).text.strip("\n") + "\n" if card else _INTRODUCTION
    base = ModelCard(card).data.to_dict().get("base_model") if card else None
    results = [
        EvalResult(
            task_type=_TASK,
            dataset_type="pinspect",
            dataset_name="test captures of the line",
            dataset_config=shot,
            dataset_split="test",
            dataset_revision=digests.get("test_set_digest"),
            metric_type=metric,
            metric_value=value,
            verified=False,
        )
        for shot, metric, value in ((*score.split(".", 1), value) for score, value in scores.items())
    ]
    data = ModelCardData(
        base_model=base,
        library_name="transformers",
        pipeline_tag=_TASK,
        tags=[*_TAGS, "merged"],
        model_name=name,
        eval_results=results or None,
    )
    scored = _table({"score on the test captures": "value"} | {name: f"{value:g}" for name, value in scores.items()})
    return _render(data, f"{text}\n## Scores\n\n{scored}\n{_table({'digest': 'value'} | dict(digests))}")


_INTRODUCTION = """# Inspector of connector pins

Reads pictures of a wire-harness connector and answers in five lines: image type, number of pins, judgement, defect
mode and defect position. Trained by pinspect for one line. The pictures are composites that pinspect draws: the pins
with an address grid around them, so photographs go through `pinspect inspect`. A grammar holds answers to the form.

"""


def _render(data: ModelCardData, text: str) -> str:
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}"))


def _table(rows: Mapping[str, object]) -> str:
    (head, value), *others = rows.items()
    lines = [f"| {head} | {value} |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in others)]
    return "\n".join(lines) + "\n"
