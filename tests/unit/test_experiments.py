"""Experiments of DVC are recognized, so that none of them registers an adapter."""

import pytest

from pinspect.registry.registration import experiment_name


@pytest.fixture(autouse=True)
def no_experiment(monkeypatch):
    for name in ("DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(name, raising=False)


def test_a_run_of_the_pipeline_is_no_experiment():
    assert experiment_name() == ""


@pytest.mark.parametrize("variable", ["DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"])
def test_an_experiment_is_known_by_its_name_or_its_baseline(monkeypatch, variable):
    monkeypatch.setenv(variable, "narrow")
    assert experiment_name() == "narrow"
