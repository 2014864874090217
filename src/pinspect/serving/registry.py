"""The MLflow registry: one registered model, one version per adapter hash, its scores as tags.

A version is made in one step, with all its tags, after everything that it points to is stored: a run that is killed on
the way leaves at most an unfinished MLflow run behind, never half a version.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path

import mlflow
import pandas as pd
import requests
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.data.code_dataset_source import CodeDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from pinspect.errors import RegistryError, RegistryUnreachableError, StageInputError
from pinspect.evaluation import provenance
from pinspect.params import Params, RegisterParams
from pinspect.serving import pyfunc_model
from pinspect.serving.inspection import pack_line

CHALLENGER = "challenger"
CHAMPION = "champion"
ADAPTER_TAG = "adapter_sha256"
EVALUATION_TAG = "evaluation_sha256"
_DEFAULT_STORE = Path("mlruns")
_PROBE_SECONDS = 10
_METRICS_A_BATCH = 500


@dataclass(frozen=True)
class Candidate:
    """An evaluated adapter, ready to be registered.

    root: the project folder. base: the base model's folder. digests: adapter_sha256, base_sha256, dataset_digest,
    git_commit, evaluation_sha256. scores: `zero_shot.exact_match` and so on -> value.
    """

    root: Path
    base: Path
    digests: Mapping[str, str]
    scores: Mapping[str, float]

    @property
    def adapter(self) -> Path:
        return self.root / "models/adapter"

    @property
    def reports(self) -> list[Path]:
        """Report, figures and validation result: what people want to see beside a version."""
        files = ["eval/report.html", "eval/metrics.json", "eval/scores.csv", "answers/validation.json"]
        return [path for path in (self.root / "reports" / name for name in files) if path.is_file()]

    @property
    def tags(self) -> dict[str, str]:
        """All that a version is compared and traced by."""
        return {**self.digests, **{name: f"{value:g}" for name, value in self.scores.items()}}


def read_candidate(root: Path, base: str) -> Candidate:
    """Gather the adapter of the project in `root` and its evaluation.

    Raises StageInputError when a file is missing, or when the evaluation is of another adapter.
    """
    detail = _read_json(root / "reports/eval/detail.json")
    scores = _flat(_read_json(root / "reports/eval/metrics.json"))
    found = provenance.adapter_sha256(root / "models/adapter")
    if detail[ADAPTER_TAG] != found:
        raise StageInputError(
            f"reports/eval/detail.json: scores adapter {detail[ADAPTER_TAG][:12]}, but models/adapter is {found[:12]}; "
            "run dvc repro evaluate"
        )
    names = (ADAPTER_TAG, "base_sha256", "dataset_digest", "git_commit")
    digests = {name: detail[name] for name in names}
    digests[EVALUATION_TAG] = provenance.file_sha256(root / "reports/eval/predictions.csv")
    return Candidate(root, root / base, digests, scores)


def tracking_uri(root: Path, params: RegisterParams) -> str:
    """Where to register: MLFLOW_TRACKING_URI, else `register.tracking_uri`, else sqlite in `mlruns/` of the project."""
    chosen = os.environ.get("MLFLOW_TRACKING_URI") or params.tracking_uri
    return chosen or f"sqlite:///{(root / _DEFAULT_STORE / 'mlflow.db').resolve()}"


def register_candidate(candidate: Candidate, params: Params) -> dict:
    """Register an adapter and give it the alias `challenger`, unless it is the champion already.

    An adapter that has a version keeps it; a new evaluation renews its tags and is added to its run. Returns what
    `reports/registration.json` says. Raises RegistryError when the registry refuses, and its child
    RegistryUnreachableError when it does not answer.
    """
    name = params.register_.model_name
    with open_registry(candidate.root, params.register_) as client, _one_at_a_time(candidate.root):
        version = find_version(client, name, candidate.digests[ADAPTER_TAG])
        if version is None:
            version = _create_version(client, candidate, params)
        elif version.tags.get(EVALUATION_TAG) != candidate.digests[EVALUATION_TAG]:
            _renew_scores(client, version, candidate)
        if CHAMPION not in client.get_model_version(name, version.version).aliases:
            client.set_registered_model_alias(name, CHALLENGER, version.version)
    uri = tracking_uri(candidate.root, params.register_)
    return {
        "name": name,
        "version": int(version.version),
        ADAPTER_TAG: candidate.digests[ADAPTER_TAG],
        "model_uri": f"models:/{name}/{version.version}",
        "registry": _relative(uri, candidate.root) if uri.startswith("sqlite:") else uri,
        "base_sha256": candidate.digests["base_sha256"],
        "dataset_digest": candidate.digests["dataset_digest"],
        "scores": dict(candidate.scores),
    }


def load_registered(
    root: Path, params: RegisterParams, alias: str = CHALLENGER
) -> tuple[mlflow.pyfunc.PyFuncModel, str]:
    """The registered model that has `alias` (see `serving.pyfunc_model` for what it takes and gives), and its version.

    Raises RegistryError when no version has the alias.
    """
    name = params.model_name
    with open_registry(root, params) as client:
        try:
            version = client.get_model_version_by_alias(name, alias).version
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise RegistryError(
                f"{tracking_uri(root, params)}: no version of {name} has the alias {alias}; run dvc repro, which "
                f"registers one as {CHALLENGER}"
            ) from None
        return mlflow.pyfunc.load_model(f"models:/{name}/{version}"), str(version)


def find_version(client: MlflowClient, name: str, adapter_sha256: str) -> ModelVersion | None:
    """The version of an adapter, by its hash; the oldest, should there be several. None where it has none."""
    try:
        found = client.search_model_versions(f"name = '{name}' and tags.{ADAPTER_TAG} = '{adapter_sha256}'")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return min(found, key=lambda version: int(version.version), default=None)


@contextlib.contextmanager
def open_registry(root: Path, params: RegisterParams) -> Iterator[MlflowClient]:
    """A client of the registry, which also is the current one of `mlflow`; its own errors become RegistryError.

    Raises RegistryUnreachableError at once when a server does not answer.
    """
    uri = tracking_uri(root, params)
    if uri.startswith(("http://", "https://")):
        _probe(uri)
    elif uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    _hush()
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        with _one_at_a_time(root):  # two processes must not make the tables of a new database
            client = MlflowClient(uri, uri)
            _experiment_id(client, root, params)
        yield client
    except MlflowException as error:
        raise RegistryError(
            f"{uri}: {_one_line(error)}; see that the MLflow server and its version are right"
        ) from error
    except requests.RequestException as error:
        raise _unreachable(uri, error) from error
    except SQLAlchemyError as error:
        raise RegistryError(f"{uri}: not usable as MLflow's database ({_one_line(error)}); move it away") from error


def _create_version(client: MlflowClient, candidate: Candidate, params: Params) -> ModelVersion:
    name, sha256 = params.register_.model_name, candidate.digests[ADAPTER_TAG]
    with contextlib.suppress(MlflowException):  # it exists already, or the next call says what is wrong
        client.create_registered_model(name, description="Visual inspection of connector pins: LoRA adapters.")
    experiment_id = _experiment_id(client, candidate.root, params.register_)
    with (
        mlflow.start_run(experiment_id=experiment_id, run_name=f"adapter-{sha256[:8]}", tags=candidate.tags) as run,
        tempfile.TemporaryDirectory(prefix="pinspect-") as folder,
    ):
        _log_run(client, run, candidate, params)
        line = Path(folder) / "line"
        pack_line(candidate.root, params.answers.shapes, line)
        model = mlflow.pyfunc.log_model(
            name="inspector",
            python_model=pyfunc_model.__file__,
            artifacts={
                "adapter": str(candidate.adapter),
                "base": str(candidate.base),
                "line": str(line),
                "params": str(candidate.root / "params.yaml"),
            },
            signature=pyfunc_model.signature(),
            code_paths=[str(Path(pyfunc_model.__file__).parents[1])],
            pip_requirements=[need for need in requires("pinspect") or [] if "extra ==" not in need],
        )
        for metric, value in candidate.scores.items():
            mlflow.log_metric(metric, value, model_id=model.model_id)
    version = client.create_model_version(
        name,
        source=model.model_uri,
        run_id=run.info.run_id,
        tags=candidate.tags,
        description=f"Adapter {sha256[:12]} on base {candidate.digests['base_sha256'][:12]}.",
        model_id=model.model_id,
    )
    return _only_one(client, version, sha256)


def _only_one(client: MlflowClient, version: ModelVersion, sha256: str) -> ModelVersion:
    """Where another machine registered the same adapter meanwhile, its older version stays and ours goes."""
    first = find_version(client, version.name, sha256)
    if first is None or first.version == version.version:
        return version
    client.delete_model_version(version.name, version.version)
    return first


def _renew_scores(client: MlflowClient, version: ModelVersion, candidate: Candidate) -> None:
    for metric, value in candidate.scores.items():
        client.log_metric(version.run_id, metric, value)
    for report in candidate.reports:
        client.log_artifact(version.run_id, str(report), "reports")
    # The evaluation's hash comes last: it tells that everything before it was renewed.
    for tag, text in sorted(candidate.tags.items(), key=lambda item: item[0] == EVALUATION_TAG):
        client.set_model_version_tag(version.name, version.version, tag, text)


def _log_run(client: MlflowClient, run: Run, candidate: Candidate, params: Params) -> None:
    mlflow.log_params(_flat(params.model_dump(by_alias=True)))
    digest = candidate.digests["dataset_digest"]
    dataset = MetaDataset(CodeDatasetSource({"path": "data/chat", "dvc": digest}), name="chat", digest=digest)
    mlflow.log_input(dataset, context="training")
    points = _learning_curve(candidate.adapter / "learning_curve.csv")
    for start in range(0, len(points), _METRICS_A_BATCH):
        client.log_batch(run.info.run_id, metrics=points[start : start + _METRICS_A_BATCH])
    for report in candidate.reports:
        mlflow.log_artifact(str(report), "reports")


def _learning_curve(path: Path) -> list[Metric]:
    if not path.is_file():
        return []
    curve = pd.read_csv(path)
    shown = [name for name in ("loss", "validation_loss", "learning_rate") if name in curve]
    return [
        Metric(f"train.{name}", float(value), timestamp=0, step=int(step))
        for name in shown
        for step, value in curve[["step", name]].dropna().itertuples(index=False)
    ]


def _experiment_id(client: MlflowClient, root: Path, params: RegisterParams) -> str:
    found = client.get_experiment_by_name(params.experiment)
    if found:
        return found.experiment_id
    is_ours = tracking_uri(root, params).startswith("sqlite:")  # a server keeps its artifacts where it is told to
    location = (root / _DEFAULT_STORE / "artifacts").resolve().as_uri() if is_ours else None
    return client.create_experiment(params.experiment, artifact_location=location)


@contextlib.contextmanager
def _one_at_a_time(root: Path) -> Iterator[None]:
    """Processes of one checkout take turns. Those of other machines meet at the server, see `_only_one`."""
    lock = root / _DEFAULT_STORE / "register.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        yield


def _probe(uri: str) -> None:
    """Ask the server for a sign of life; MLflow itself would try for minutes before it gave up."""
    try:
        requests.get(f"{uri.rstrip('/')}/health", timeout=_PROBE_SECONDS)  # any answer, be it an error, is one
    except requests.RequestException as error:
        raise _unreachable(uri, error) from None


def _unreachable(uri: str, error: Exception) -> RegistryUnreachableError:
    return RegistryUnreachableError(
        f"{uri}: no MLflow server answers ({type(error).__name__}); start it or correct MLFLOW_TRACKING_URI, then run "
        "dvc repro again: only this stage is left"
    )


def _hush() -> None:
    """MLflow and its database migrations tell a page of what they do; only what goes wrong is for the user."""
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*(type hints|input example).*")  # the signature is given


def _relative(uri: str, root: Path) -> str:
    """A sqlite URI without this machine's folders, where the file lies in the project."""
    path = Path(uri.removeprefix("sqlite:///"))
    inside = path.is_relative_to(root.resolve())
    return f"sqlite:///{path.relative_to(root.resolve()).as_posix()}" if inside else uri


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageInputError(f"{path}: not found; run dvc repro evaluate") from None
    except json.JSONDecodeError as error:
        raise StageInputError(f"{path}: no JSON ({error}); run dvc repro --force evaluate") from None


def _flat(nested: Mapping, prefix: str = "") -> dict:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    found: dict = {}
    for name, value in nested.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
