"""The evaluated adapter -> a version in the MLflow registry, with the alias challenger.

    python -m stages.register

Reads the base model, models/adapter, reports/eval, reports/answers, data/raw and data/dst. Writes
reports/registration.json: what was registered. Where, and as which version, goes to build/runs/register.json, because
registries number their versions differently. The registry is MLFLOW_TRACKING_URI, else register.tracking_uri, else
mlruns/mlflow.db. An experiment of DVC registers nothing, so that no experiment can move an alias.
"""

import json
from pathlib import Path

from pinspect.core.files import write_file
from pinspect.core.params import load_params
from pinspect.core.runs import write_run_facts
from pinspect.core.stage import run_stage
from pinspect.model.families import checkpoint_of
from pinspect.registry.candidate import read_candidate
from pinspect.registry.registration import describe_experiment, experiment_name, register_candidate
from pinspect.registry.settings import load_register_settings


def main(root: Path = Path()) -> None:
    """Run the stage in the project folder `root`."""
    params = load_params(root / "params.yaml")
    candidate = read_candidate(root, checkpoint_of(params.model, root))
    experiment = experiment_name()
    if experiment:
        registration = describe_experiment(candidate, experiment)
        print(
            f"not registered, since this is experiment {experiment}; to register its adapter: dvc exp apply "
            f"{experiment} && dvc repro --force --single-item register"
        )
    else:
        registration, place = register_candidate(candidate, params, load_register_settings(root))
        write_run_facts(root, "register", place)
        print(f"{place['model_uri']} (adapter {registration['adapter_sha256'][:12]}) in {place['registry']}")
    content = json.dumps(registration, indent=2, ensure_ascii=False) + "\n"
    write_file(root / "reports/registration.json", content)


if __name__ == "__main__":
    run_stage("register", main)
