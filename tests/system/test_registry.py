"""An adapter becomes a registered version: on a real project, a real MLflow sqlite store, and real processes."""

import base64
import io
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import yaml
from PIL import Image

from pinspect.cli.choices import Choices, read_choices
from pinspect.cli.new import ProjectError, make_project
from pinspect.core import digests as provenance
from pinspect.core import predictions
from pinspect.core.answers import FIELDS
from pinspect.core.errors import ModelError, RegistryError, StageInputError
from pinspect.core.params import load_params
from pinspect.core.runs import read_run_facts
from pinspect.core.start import start_folder
from pinspect.inspection.stream import exit_code, inspect_files
from pinspect.model.families import checkpoint_of
from pinspect.model.live_log import live_log
from pinspect.model.start import start_digest
from pinspect.registry.candidate import read_candidate
from pinspect.registry.connection import open_registry
from pinspect.registry.loading import load_inspector
from pinspect.registry.settings import RegisterSettings, load_register_settings
from pinspect.registry.start import fetch_start
from pinspect.registry.versions import find_version, load_registered
from tests.support.evaluated_project import run_stage
from tests.support.sample import ROOT, stage_environment, stage_process

NAME = "pin-inspector"


@pytest.fixture(scope="module")
def registered(project):
    """The project, registered by two processes at the same moment."""
    command = [sys.executable, "-m", "stages.register"]
    racing = [
        subprocess.Popen(command, cwd=project, env=stage_environment(), stdout=-1, stderr=-1, text=True)
        for _ in range(2)
    ]
    ends = [(*process.communicate(), process.returncode) for process in racing]
    return project, ends


@pytest.fixture
def client(registered):
    with open_registry(registered[0], load_register_settings(registered[0])) as opened:
        yield opened


def registration(project) -> dict:
    return json.loads((project / "reports/registration.json").read_text()) | read_run_facts(project, "register")


def test_an_evaluation_answers_every_test_row_and_so_does_the_baseline(project):
    table = predictions.read(project / "reports/predictions/test.csv")
    rows = [json.loads(line) for line in (project / "data/chat/test.jsonl").open()]
    for decoding in ("constrained", "free"):
        answered = table[(table["model"] == "adapter") & (table["decoding"] == decoding)]
        assert sorted(answered["id"]) == sorted(row["id"] for row in rows)
    assert table.loc[table["decoding"] == "constrained", "parses"].all()
    assert set(table.loc[table["model"] == "per-pin baseline", "file"]) == {row["file"] for row in rows}


def test_the_headline_scores_productions_prompt_on_the_cameras_test_split(project):
    metrics = json.loads((project / "reports/eval/metrics.json").read_text())
    assert list(metrics)[:3] == ["zero_shot", "one_shot", "baseline"]
    table = predictions.read(project / "reports/predictions/test.csv")
    view = load_params(project / "params.yaml").evaluate.view
    chosen = table[(table["model"] == "adapter") & (table["view"] == view) & (table["shot"] == "zero_shot")]
    chosen = chosen[chosen["decoding"] == "constrained"]
    exact = (chosen["answer"] == chosen["expected"]).mean()
    assert metrics["zero_shot"]["exact_match"] == pytest.approx(exact, abs=1e-4)
    assert metrics["captures"] == chosen["file"].nunique()


def test_dvc_shows_the_metrics_of_an_evaluation(project):
    run = [sys.executable, "-m", "dvc"]
    subprocess.run([*run, "init", "--quiet", "--no-scm", "--force"], cwd=project, check=True)
    shown = [*run, "metrics", "show", "--json", "reports/eval/metrics.json"]
    output = json.loads(subprocess.run(shown, cwd=project, check=True, capture_output=True).stdout)
    metrics = json.loads((project / "reports/eval/metrics.json").read_text())
    assert next(iter(output.values()))["data"]["reports/eval/metrics.json"]["data"] == metrics


def test_the_dataset_digest_is_the_hash_that_dvc_knows(project):
    run = [sys.executable, "-m", "dvc"]
    subprocess.run([*run, "init", "--quiet", "--no-scm", "--force"], cwd=project, check=True)
    copied = project / "other"
    (copied / "b/deep").mkdir(parents=True)
    for name in ("b.csv", "b/a.txt", "b/deep/ä.txt", "a b.txt"):
        (copied / name).write_text(name)
    subprocess.run([*run, "add", "--quiet", "other"], cwd=project, check=True)
    assert f"md5: {provenance.dvc_directory_hash(copied)}" in (project / "other.dvc").read_text()


def test_two_registrations_of_one_adapter_at_the_same_moment_make_one_version(registered, client):
    _, ends = registered
    assert [code for *_, code in ends] == [0, 0], ends
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 1
    waits = "waiting for another run of the stage register\n"  # if the other takes longer than three seconds
    assert [stderr.replace(waits, "") for _, stderr, _ in ends] == ["", ""]


def test_the_next_training_starts_from_the_version_that_is_fetched(registered):
    project, _ = registered
    settings = load_register_settings(project)
    for reference in ("challenger", f"{NAME}/1"):
        assert fetch_start(project, settings, reference) == f"{NAME}/1"
        start = start_folder(project, reference)
        assert start_digest(start) == provenance.file_sha256(project / "models/adapter/adapter_model.safetensors")
    with pytest.raises(RegistryError, match="no version 7 of"):
        fetch_start(project, settings, "7")
    assert start_folder(project, f"{NAME}/1")  # a failed fetch leaves the start as it was
    assert fetch_start(project, settings, "") == ""
    with pytest.raises(ModelError, match="found no adapter"):
        start_folder(project, "challenger")


def test_registering_again_changes_nothing(registered, client):
    project, _ = registered
    before = (project / "reports/registration.json").read_bytes()
    run_stage("register", project)
    assert (project / "reports/registration.json").read_bytes() == before
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 1
    assert str(project) not in before.decode()


def test_a_version_carries_its_scores_and_where_it_comes_from(registered, client):
    project, _ = registered
    content = registration(project)
    version = client.get_model_version_by_alias(NAME, "challenger")
    assert int(version.version) == content["version"]
    assert version.tags["adapter_sha256"] == provenance.adapter_sha256(project / "models/adapter")
    assert version.tags["dataset_digest"] == provenance.dvc_directory_hash(project / "data/chat")
    assert len(version.tags["base_sha256"]) == 64
    scores = json.loads((project / "reports/eval/metrics.json").read_text())
    for shot in ("zero_shot", "one_shot"):
        assert float(version.tags[f"{shot}.exact_match"]) == scores[shot]["exact_match"]


def test_the_run_of_a_version_holds_parameters_curve_report_and_dataset(registered, client):
    project, _ = registered
    run = client.get_run(client.get_model_version_by_alias(NAME, "challenger").run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["train.rank"] == str(load_params(project / "params.yaml").train.rank)
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train.loss")] == [1, 2]
    assert run.data.metrics["run.train.seconds"] > 0
    assert run.data.metrics["run.answer.seconds"] > 0
    assert run.data.tags["run.train.device"]
    stored = {file.path for file in client.list_artifacts(run.info.run_id, "reports")}
    assert {"reports/report.html", "reports/validation.json"} <= stored
    contexts = {entry.tags[0].value: entry.dataset.digest for entry in run.inputs.dataset_inputs}
    content = registration(project)
    assert contexts == {"training": content["dataset_digest"], "test": content["test_set_digest"][:36]}


def test_the_points_of_the_curve_have_the_times_of_their_steps(registered, client):
    project, _ = registered
    run_id = client.get_model_version_by_alias(NAME, "challenger").run_id
    times = read_run_facts(project, "train")["step_times"]
    points = client.get_metric_history(run_id, "train.loss")
    assert [point.timestamp for point in points] == [int(seconds * 1000) for seconds in times]
    assert all(seconds > 1.7e9 for seconds in times)  # not 1970


def test_scores_belong_to_the_test_set_and_the_answers_are_a_table(registered, client):
    project, _ = registered
    version = client.get_model_version_by_alias(NAME, "challenger")
    digest = registration(project)["test_set_digest"][:36]
    run = client.get_run(version.run_id)
    metrics = client.get_logged_model(run.outputs.model_outputs[0].model_id).metrics
    of_test_set = {metric.key: metric.dataset_digest for metric in metrics if metric.dataset_name == "test"}
    assert set(of_test_set.values()) == {digest}
    assert {"zero_shot.exact_match", "one_shot.escape_rate"} <= of_test_set.keys()
    table = client.load_table(run.info.experiment_id, "answers.json", run_ids=[version.run_id])
    scores = json.loads((project / "reports/eval/metrics.json").read_text())
    assert (table["answer"] == table["expected"]).mean() == pytest.approx(scores["zero_shot"]["exact_match"], abs=1e-4)
    assert table["file"].nunique() == scores["captures"]


def test_a_version_has_a_request_as_example_and_pins_what_inspecting_needs(registered, client):
    version = client.get_model_version_by_alias(NAME, "challenger")
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/{version.version}"))
    requirements = (folder / "requirements.txt").read_text().split()
    installed = {name: metadata.version(name).partition("+")[0] for name in ("torch", "peft", "mlflow-skinny")}
    assert {f"{name}=={number}" for name, number in installed.items()} <= set(requirements)
    assert all("==" in requirement for requirement in requirements)
    assert not {requirement.partition("==")[0] for requirement in requirements} & {"mlflow", "typer", "tqdm", "dvc"}
    example = json.loads((folder / "serving_input_example.json").read_text())["dataframe_split"]
    picture = example["data"][0][example["columns"].index("inspected")]
    assert Image.open(io.BytesIO(base64.b64decode(picture))).width > 100


def test_a_registry_without_its_artifacts_says_what_to_move(registered, tmp_path):
    project, _ = registered
    artifacts = project / "mlruns/artifacts"
    artifacts.rename(tmp_path / "artifacts")
    try:
        with pytest.raises(ModelError, match=r"files are missing.*move the folder artifacts/ with mlflow\.db"):
            load_registered(project, load_register_settings(project), "challenger")
    finally:
        (tmp_path / "artifacts").rename(artifacts)


def test_a_curve_is_logged_while_it_grows(client, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", client.tracking_uri)
    with live_log("line") as log:
        log(1, {"step": 1, "loss": 2.5, "validation_loss": None})
        log(2, {"step": 2, "loss": 1.5, "validation_loss": 1.25})
    experiment = client.get_experiment_by_name("pinspect training")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("line", "FINISHED")
    assert run.data.metrics == {"train.loss": 1.5, "train.validation_loss": 1.25}
    assert [point.step for point in client.get_metric_history(run.info.run_id, "train.loss")] == [1, 2]


def test_the_registered_model_inspects_photographs_without_the_project(registered, client, monkeypatch):
    project, _ = registered
    monkeypatch.setattr(sys, "path", [*sys.path])  # MLflow puts the packed code first, which lacks most rooms
    images = sorted((project / "data/captures/images").iterdir())
    tasks = pd.DataFrame(
        {
            "inspected": [str(images[0]), base64.b64encode(images[0].read_bytes()).decode(), "no/such/file.jpg"],
            "reference": [str(images[1]), None, None],
        }
    )
    model = mlflow.pyfunc.load_model(f"models:/{NAME}/{registration(project)['version']}")
    from_path, from_bytes, nowhere = model.predict(tasks).to_dict("records")
    contract = load_params(project / "params.yaml").contract()
    for record in (from_path, from_bytes):
        assert record["error"] is None
        assert contract.parse(record["answer"]).values() == {name: record[name] for name in FIELDS}
        assert 0 <= record["p_defective"] <= 1
    assert nowhere["answer"] is None
    assert "no/such/file.jpg" in nowhere["error"]


def test_the_challenger_inspects_files_and_names_those_it_cannot(registered, tmp_path):
    project, _ = registered
    good = sorted((project / "data/captures/images").glob("*.jpg"))[:2]
    (tmp_path / "text.jpg").write_text("no picture")
    files = [good[0], tmp_path / "gone.jpg", tmp_path / "text.jpg", good[1]]
    records = list(inspect_files(load_inspector("challenger", project), files))
    assert [record["file"] for record in records] == [str(path) for path in files]
    assert [bool(record["error"]) for record in records] == [False, True, True, False]
    assert "gone.jpg: not found" in records[1]["error"]
    assert "text.jpg" in records[2]["error"]
    assert {record["model_version"] for record in records} == {str(registration(project)["version"])}
    assert all(records[0][name] for name in ("image_type", "judgement", "answer"))


@pytest.mark.parametrize(("judgements", "errors", "code"), [("pp", "", 0), ("pd", "", 1), ("pd", "x", 2), ("", "x", 2)])
def test_the_exit_code_is_the_worst_of_all_captures(judgements, errors, code):
    words = {"p": "passed", "d": "defective"}
    records = [{"judgement": words[letter], "error": None} for letter in judgements]
    assert exit_code(records + [{"judgement": None, "error": error} for error in errors]) == code


def test_a_new_evaluation_updates_the_scores_of_its_version(registered, client):
    project, _ = registered
    reports = project / "reports"
    files = {"metrics.json": reports / "eval/metrics.json", "test.csv": reports / "predictions/test.csv"}
    kept = {path: path.read_bytes() for path in files.values()}
    metrics = json.loads(files["metrics.json"].read_text())
    metrics["zero_shot"]["exact_match"] = 0.875
    files["metrics.json"].write_text(json.dumps(metrics))
    files["test.csv"].write_text(files["test.csv"].read_text() + "\n")
    try:
        run_stage("register", project)
    finally:
        for path, content in kept.items():
            path.write_bytes(content)
    versions = client.search_model_versions(f"name = '{NAME}'")
    assert [version.tags["zero_shot.exact_match"] for version in versions] == ["0.875"]
    assert client.get_run(versions[0].run_id).data.metrics["zero_shot.exact_match"] == 0.875


def test_another_view_of_the_same_adapter_is_a_new_version_and_the_first_stays_unchanged(registered, client):
    project, _ = registered
    results = ("reports/eval/detail.json", "reports/registration.json", "build/runs/register.json")
    files = [project / name for name in ("params.yaml", *results)]
    kept = [path.read_text() for path in files]
    other = {"RAW": "DST", "DST": "RAW"}[load_params(files[0]).evaluate.view]
    content = yaml.safe_load(kept[0])
    content["evaluate"] |= {"view": other}
    detail = json.loads(kept[1])
    detail["headline"]["view"] = other
    before = len(client.search_model_versions(f"name = '{NAME}'"))
    try:
        files[0].write_text(yaml.safe_dump(content, sort_keys=False))
        files[1].write_text(json.dumps(detail))
        run_stage("register", project)
        version = str(registration(project)["version"])
    finally:
        for path, text in zip(files, kept, strict=True):
            path.write_text(text)
    first = str(registration(project)["version"])
    assert len(client.search_model_versions(f"name = '{NAME}'")) == before + 1
    versions = {number: client.get_model_version(NAME, number) for number in (first, version)}
    assert versions[first].tags["adapter_sha256"] == versions[version].tags["adapter_sha256"]
    assert versions[version].tags["headline.view"] == other
    views = {
        number: load_params(
            mlflow.artifacts.download_artifacts(f"models:/{NAME}/{number}/artifacts/params.yaml")
        ).evaluate.view
        for number in versions
    }
    assert views == {first: load_params(files[0]).evaluate.view, version: other}
    client.delete_model_version(NAME, version)
    client.set_registered_model_alias(NAME, "challenger", first)


def test_the_champion_does_not_become_a_challenger_again(registered, client):
    project, _ = registered
    version = find_version(client, NAME, registration(project)["package_sha256"])
    client.delete_registered_model_alias(NAME, "challenger")
    client.set_registered_model_alias(NAME, "champion", version.version)
    run_stage("register", project)
    assert client.get_model_version(NAME, version.version).aliases == ["champion"]


def test_an_alias_that_no_version_has_is_reported_with_what_to_do(registered):
    project, _ = registered
    with pytest.raises(RegistryError, match="no version of pin-inspector has the alias retired; run dvc repro"):
        load_registered(project, load_register_settings(project), "retired")


def test_a_server_that_does_not_answer_is_reported_in_one_line(registered):
    project, _ = registered
    before = (project / "reports/registration.json").read_bytes()
    done = stage_process("register", project, MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    assert done.returncode == 75
    assert done.stderr.count("\n") == 1
    assert "http://127.0.0.1:9: no MLflow server answers" in done.stderr
    assert (project / "reports/registration.json").read_bytes() == before


def test_an_invalid_registry_is_a_registry_error(registered, tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").write_text("this is no database")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(RegistryError), open_registry(registered[0], load_register_settings(ROOT)):
        pass


def test_an_evaluation_of_another_adapter_is_never_registered(registered):
    project, _ = registered
    config = project / "models/adapter/adapter_config.json"
    kept = config.read_text()
    config.write_text(kept + " ")
    try:
        with pytest.raises(StageInputError, match="run dvc repro evaluate"):
            read_candidate(project, checkpoint_of(load_params(project / "params.yaml").model, project))
    finally:
        config.write_text(kept)


def choose(folder: Path, registry: str) -> Choices:
    answers = {"--rows": "U,C,D", "--columns": "9", "--shapes": "CYLN", "--mode": "bend"}
    return read_choices(folder, answers, registry=registry)


def test_projects_share_a_registry_only_if_their_settings_name_one(registered, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    settings = load_register_settings(registered[0])
    with open_registry(registered[0], settings):
        pass
    with open_registry(tmp_path, settings) as other:
        assert other.tracking_uri == f"sqlite:///{tmp_path / 'mlruns/mlflow.db'}"

    shared = {name: choose(tmp_path / name, registry=str(tmp_path / "mlruns")) for name in ("line-1", "line-2")}
    for name, choices in shared.items():
        line = RegisterSettings(model_name=name, experiment=name, tracking_uri=choices.registry)
        with open_registry(tmp_path / name, line) as client:
            client.create_registered_model(name)
            place = client.get_experiment_by_name(name).artifact_location
        assert place == (tmp_path / "mlruns/artifacts").as_uri()
        assert not (tmp_path / name).exists()  # the lock and the artifacts lie beside the database
    with pytest.raises(ProjectError, match="another line is named line-1; choose a name with --name"):
        make_project(tmp_path / "line-1", shared["line-1"])
    assert not (tmp_path / "line-1").exists()
