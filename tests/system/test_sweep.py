"""A sweep of the training: experiments of DVC, each with its own parameters, adapter and scores."""

import json

IDENTITY = ("-c", "user.name=sweep", "-c", "user.email=sweep@example.com")


def test_an_experiment_trains_evaluates_and_registers_an_adapter_with_its_own_parameters(prepared, tmp_path):
    checkout = prepared.copy(tmp_path / "line")
    checkout.must("git", "add", ".")
    checkout.must("git", *IDENTITY, "commit", "--quiet", "--message", "Start of the sweep")
    asked = ("-S", "train.rank=4", "-S", "train.learning_rate=0.002")
    told = checkout.must("dvc", "exp", "run", "--name", "narrow", *asked)
    ran = [line.split("'")[1] for line in told.splitlines() if line.startswith("Running stage")]
    assert ran == ["train", "calibrate", "evaluate", "register"]
    config = json.loads((checkout.root / "models/adapter/adapter_config.json").read_text())
    assert config["r"] == 4
    shown = json.loads(checkout.must("dvc", "exp", "show", "--json"))
    (experiment,) = (found for revision in shown for found in revision["experiments"] or [])
    (revision,) = experiment["revs"]
    assert experiment["name"] == "narrow"
    assert revision["data"]["params"]["params.yaml"]["data"]["train"]["rank"] == 4
    assert "zero_shot" in revision["data"]["metrics"]["reports/eval/metrics.json"]["data"]
