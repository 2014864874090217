"""The evaluated adapter -> a version in the MLflow registry, with the alias challenger.

    python stages/register.py

Reads the base model, models/adapter, reports/eval, reports/answers, data/raw and data/dst; writes
reports/registration.json. The registry is MLFLOW_TRACKING_URI, else register.tracking_uri, else mlruns/mlflow.db.
"""

import json
from pathlib import Path

from pinspect.core import environment
from pinspect.core.errors import run
from pinspect.core.params import load_params
from pinspect.model.families import checkpoint_of
from pinspect.registry.candidate import read_candidate
from pinspect.registry.registration import register_candidate
from pinspect.registry.settings import load_register_settings


def main(root: Path = Path()) -> None:
    params = load_params(root / "params.yaml")
    registration = register_candidate(
        read_candidate(root, checkpoint_of(params.model, root)), params, load_register_settings(root)
    )
    text = json.dumps(registration, indent=2, ensure_ascii=False) + "\n"
    (root / "reports/registration.json").write_text(text, encoding="utf-8")
    print(f"{registration['model_uri']} (adapter {registration['adapter_sha256'][:12]}) in {registration['registry']}")


if __name__ == "__main__":
    environment.apply()
    run(main)
