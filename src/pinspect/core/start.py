"""The adapter that a training starts from, in place of untrained LoRA pairs: `train.start` in params.yaml.

models/start holds the adapter of a registered version, as `pinspect start` has copied it, with start.json: the
reference by which it was chosen.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from pinspect.core.errors import ModelError

START = Path("models/start")
ORIGIN = "start.json"
WEIGHTS, CONFIG, TRAINING = FILES = ("adapter_model.safetensors", "adapter_config.json", "training.json")


def start_folder(root: Path, reference: str) -> Path | None:
    """Return the folder of the adapter that training starts from; None to start from the base.

    Args:
        root: The project's folder.
        reference: `train.start`: the alias or number of a registered version, or empty.

    Raises:
        ModelError: models/start holds no adapter that was chosen by this reference.
    """
    if not reference:
        return None
    origin: dict[str, str] = {}
    with suppress(OSError, ValueError):
        origin = json.loads((root / START / ORIGIN).read_text(encoding="utf-8"))
    if origin.get("reference") != reference:
        raise ModelError(
            f"{root / START}: found {origin.get('reference') or 'no adapter'}, train.start in params.yaml is "
            f"{reference}; run pinspect start"
        )
    return root / START
