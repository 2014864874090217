"""The MLflow registry: one registered model, one version per adapter and what is packed with it, its scores as tags.

A version is made in one step, with all its tags, after everything that it points to is stored: a run that is killed on
the way leaves at most an unfinished MLflow run behind, never half a version. What a version has packed never changes
afterwards: the same adapter with another view, reference or operating point becomes another version, since else the
champion would change without having been promoted. A new evaluation of the same package renews the version's scores.
"""

from __future__ import annotations

import contextlib
import hashlib
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

from pinspect.core import digests as provenance
from pinspect.core import predictions
from pinspect.core.errors import RegistryError, RegistryUnreachableError, StageInputError
from pinspect.core.params import Params, RegisterParams
from pinspect.core.prompts import ZERO_SHOT
from pinspect.inspection import registered_model as pyfunc_model
from pinspect.inspection.inspector import pack_line
from pinspect.inspection.line_profile import read_line_profile
from pinspect.model.families import Checkpoint

CHALLENGER = "challenger"
CHAMPION = "champion"
PREVIOUS = "previous"
ADAPTER_TAG = "adapter_sha256"
PACKAGE_TAG = "package_sha256"
EVALUATION_TAG = "evaluation_sha256"
TEST_SET_TAG = "test_set_digest"
DECISION_TAG = "promotion"  # JSON: the last decision on a version, see serving.promotion
ROLLBACK_TAG = "rolled_back"  # JSON: why a version is champion no longer
ASKED = ("view", "kind", "decoding")  # how an evaluation's headline, and production, puts its question
PREDICTIONS = "predictions.csv"
_REPORTS = "reports"  # the folder of a run's artifacts that holds the evaluation
_URI_VARIABLE = "MLFLOW_TRACKING_URI"
_DEFAULT_STORE = Path("mlruns")
_PROBE_SECONDS = 10
_METRICS_A_BATCH = 500


@dataclass(frozen=True)
class Candidate:
    """An evaluated adapter, ready to be registered.

    root: the project folder. base: the base model. digests: adapter_sha256, base_sha256, dataset_digest,
    git_commit, evaluation_sha256, test_set_digest. facts: what else metrics.json and detail.json tell in words:
    `headline.view`, `controls.blank` and so on -> text. scores: `zero_shot.exact_match` and so on -> value.
    """

    root: Path
    base: Checkpoint
    digests: Mapping[str, str]
    facts: Mapping[str, str]
    scores: Mapping[str, float]

    @property
    def adapter(self) -> Path:
        return self.root / "models/adapter"

    @property
    def operating_point(self) -> Path:
        return self.root / "models/operating_point.json"

    @property
    def line_profile(self) -> Path:
        return self.root / "models/line_profile.json"

    @property
    def reports(self) -> list[Path]:
        """Report, figures, predictions and validation result: what a version is judged and compared by."""
        files = [f"eval/{name}" for name in ("report.html", "metrics.json", "detail.json", "scores.csv", PREDICTIONS)]
        files += ["answers/validation.json", "eval/answer_checks.json"]
        return [path for path in (self.root / "reports" / name for name in files) if path.is_file()]

    @property
    def tags(self) -> dict[str, str]:
        """All that a version is compared and traced by."""
        return {**self.digests, **self.facts, **{name: f"{value:g}" for name, value in self.scores.items()}}


@dataclass(frozen=True)
class Package:
    """Everything that a version has packed: artifacts (name -> path) and the hash that names them together."""

    artifacts: Mapping[str, str]
    sha256: str


def read_candidate(root: Path, base: Checkpoint) -> Candidate:
    """Gather the adapter of the project in `root` and its evaluation.

    Raises StageInputError when a file is missing, or when the evaluation is of another adapter.
    """
    detail = _read_json(root / "reports/eval/detail.json")
    told = _flat(_read_json(root / "reports/eval/metrics.json"))
    answered = root / "reports/eval" / PREDICTIONS
    found = provenance.adapter_sha256(root / "models/adapter")
    if detail[ADAPTER_TAG] != found:
        raise StageInputError(
            f"reports/eval/detail.json: scores adapter {detail[ADAPTER_TAG][:12]}, but models/adapter is {found[:12]}; "
            "run dvc repro evaluate"
        )
    names = (ADAPTER_TAG, "base_sha256", "dataset_digest", "git_commit")
    digests = {name: detail[name] for name in names}
    digests[EVALUATION_TAG] = provenance.file_sha256(answered)
    digests[TEST_SET_TAG] = provenance.digest_of_test_set(headline(predictions.read(answered), detail["headline"]))
    scores = {name: float(value) for name, value in told.items() if _is_number(value)}
    facts = {name: _word(value) for name, value in told.items() if name not in scores}
    facts |= {f"headline.{name}": str(value) for name, value in detail["headline"].items()}
    return Candidate(root, base, digests, facts, scores)


def headline(answered: pd.DataFrame, asked: Mapping[str, str]) -> pd.DataFrame:
    """The rows of a predictions table that count for production: the adapter's zero-shot answers to the question that
    `asked` (view, kind, decoding) puts, on the camera's captures; where there is none, on the virtual line's."""
    from pinspect.evaluation.evaluate import MODEL

    rows = answered[(answered["model"] == MODEL) & (answered["shot"] == ZERO_SHOT)]
    for column in ASKED:
        rows = rows[rows[column] == asked[column]]
    camera = rows[rows["source"] == "camera"]
    return camera if len(camera) else rows


def tracking_uri(root: Path, params: RegisterParams) -> str:
    """Where to register: MLFLOW_TRACKING_URI, else `register.tracking_uri`, else sqlite in `mlruns/` of the project."""
    chosen = os.environ.get(_URI_VARIABLE) or params.tracking_uri
    return chosen or f"sqlite:///{(root / _DEFAULT_STORE / 'mlflow.db').resolve()}"


def register_candidate(candidate: Candidate, params: Params) -> dict:
    """Register an adapter and give it the alias `challenger`, unless it is the champion already.

    A package (see `pack`) that has a version keeps it; a new evaluation renews its tags and is added to its run.
    Returns what `reports/registration.json` says. Raises RegistryError when the registry refuses, and its child
    RegistryUnreachableError when it does not answer.
    """
    name = params.register_.model_name
    with (
        pack(candidate, params) as package,
        open_registry(candidate.root, params.register_) as client,
        one_at_a_time(candidate.root),
    ):
        version = find_version(client, name, package.sha256)
        if version is None:
            version = _create_version(client, candidate, package, params)
        elif version.tags.get(EVALUATION_TAG) != candidate.digests[EVALUATION_TAG]:
            _renew_scores(client, version, candidate)
        if CHAMPION not in client.get_model_version(name, version.version).aliases:
            client.set_registered_model_alias(name, CHALLENGER, version.version)
    uri = tracking_uri(candidate.root, params.register_)
    return {
        "name": name,
        "version": int(version.version),
        ADAPTER_TAG: candidate.digests[ADAPTER_TAG],
        PACKAGE_TAG: package.sha256,
        "model_uri": f"models:/{name}/{version.version}",
        "registry": _relative(uri, candidate.root) if uri.startswith("sqlite:") else uri,
        "base_sha256": candidate.digests["base_sha256"],
        "dataset_digest": candidate.digests["dataset_digest"],
        TEST_SET_TAG: candidate.digests[TEST_SET_TAG],
        "scores": dict(candidate.scores),
    }


@contextlib.contextmanager
def pack(candidate: Candidate, params: Params) -> Iterator[Package]:
    """What a version packs, for as long as the context lasts: adapter, base, operating point, line, its profile and
    parameters.

    A base that is no folder of this machine stays where it is: the parameters name it, with its revision. Of the
    parameters only those count for the hash that an answer hangs on: other ones make no other inspector. Raises
    StageInputError when the line's profile is missing, as after an evaluation from before there was one, or broken.
    """
    read_line_profile(candidate.line_profile)  # a station must not be the first to find it broken
    with tempfile.TemporaryDirectory(prefix="pinspect-") as folder:
        line = Path(folder) / "line"
        pack_line(candidate.root, params.answers.shapes, line)
        artifacts = {
            "adapter": candidate.adapter,
            "base": candidate.base.folder and candidate.base.folder.resolve(),  # MLflow packs no linked folder
            "line": line,
            "line_profile": candidate.line_profile,
            "operating_point": candidate.operating_point,
            "params": candidate.root / "params.yaml",
        }
        hashed = {
            "adapter": candidate.digests[ADAPTER_TAG],  # the operating point is part of it
            "base": candidate.digests["base_sha256"],
            "line": provenance.dvc_directory_hash(line),
            "line_profile": provenance.file_sha256(candidate.line_profile),
            "params": _served(params),
        }
        sha256 = hashlib.sha256(json.dumps(hashed, sort_keys=True).encode()).hexdigest()
        yield Package({name: str(path) for name, path in artifacts.items() if path}, sha256)


def _served(params: Params) -> dict:
    """The parameters that an inspection hangs on."""
    everything = params.model_dump(mode="json", by_alias=True)
    return {name: everything[name] for name in ("layout", "answers", "dst", "composite")} | {
        "family": params.model.family,
        "max_pixels": params.raw.max_pixels,
        "asked": [params.evaluate.view, params.evaluate.kind, params.evaluate.decodings[0]],
    }


def load_registered(root: Path, params: RegisterParams, alias: str = "") -> tuple[mlflow.pyfunc.PyFuncModel, str]:
    """The registered model that has `alias` (see `serving.pyfunc_model` for what it takes and gives), and its version.

    Without an alias it is the champion, and the challenger as long as there is no champion. Raises RegistryError when
    no version has the alias.
    """
    with open_registry(root, params) as client:
        if not alias:
            alias = CHAMPION if version_of(client, params.model_name, CHAMPION) else CHALLENGER
        version = require_version(client, params.model_name, alias).version
        return mlflow.pyfunc.load_model(f"models:/{params.model_name}/{version}"), str(version)


def find_version(client: MlflowClient, name: str, package_sha256: str) -> ModelVersion | None:
    """The version of a package, by its hash; the oldest, should there be several. None where it has none."""
    found = client.search_model_versions(f"name = '{name}' and tags.{PACKAGE_TAG} = '{package_sha256}'")
    return min(found, key=lambda version: int(version.version), default=None)


def version_of(client: MlflowClient, name: str, reference: str) -> ModelVersion | None:
    """The version that `reference`, a number or an alias, means, with all its aliases; None where there is none."""
    try:
        if not reference.isdecimal():
            reference = client.get_model_version_by_alias(name, reference).version
        return client.get_model_version(name, reference)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def number_of(version: ModelVersion) -> str:
    """A version's number as text: some registries give it as text, sqlite as a number."""
    return str(version.version)


def require_version(client: MlflowClient, name: str, reference: str) -> ModelVersion:
    """As `version_of`. Raises RegistryError, with what to do, where there is none."""
    found = version_of(client, name, reference)
    if found is None:
        what = f"no version {reference} of {name}; see pinspect models"
        if not reference.isdecimal():
            what = f"no version of {name} has the alias {reference}; run dvc repro, which registers one as {CHALLENGER}"
        raise RegistryError(f"{client.tracking_uri}: {what}")
    return found


def stored_report(version: ModelVersion, name: str, folder: Path) -> Path | None:
    """A file of the evaluation that is stored with a version, such as `predictions.csv`, on this machine: itself, or a
    copy in `folder`. None where the version has none."""
    try:
        found = mlflow.artifacts.download_artifacts(
            run_id=version.run_id, artifact_path=f"{_REPORTS}/{name}", dst_path=str(folder)
        )
    except (MlflowException, OSError):
        return None
    return Path(found)


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
    named = os.environ.get(_URI_VARIABLE)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        with one_at_a_time(root):  # two processes must not make the tables of a new database
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
    finally:
        # MLflow has put its URI into the environment, where the next project would take it for the user's choice.
        if named is None:
            os.environ.pop(_URI_VARIABLE, None)
        else:
            os.environ[_URI_VARIABLE] = named


def _create_version(client: MlflowClient, candidate: Candidate, package: Package, params: Params) -> ModelVersion:
    name, sha256 = params.register_.model_name, candidate.digests[ADAPTER_TAG]
    with contextlib.suppress(MlflowException):  # it exists already, or the next call says what is wrong
        client.create_registered_model(name, description="Visual inspection of connector pins: LoRA adapters.")
    experiment_id = _experiment_id(client, candidate.root, params.register_)
    tags = {**candidate.tags, PACKAGE_TAG: package.sha256}
    with mlflow.start_run(experiment_id=experiment_id, run_name=f"adapter-{sha256[:8]}", tags=tags) as run:
        _log_run(client, run, candidate, params)
        model = mlflow.pyfunc.log_model(
            name="inspector",
            python_model=pyfunc_model.__file__,
            artifacts=dict(package.artifacts),
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
        tags=tags,
        description=f"Adapter {sha256[:12]} on base {candidate.digests['base_sha256'][:12]}.",
        model_id=model.model_id,
    )
    return _only_one(client, version, package)


def _only_one(client: MlflowClient, version: ModelVersion, package: Package) -> ModelVersion:
    """Where another machine registered the same package meanwhile, its older version stays and ours goes."""
    first = find_version(client, version.name, package.sha256)
    if first is None or first.version == version.version:
        return version
    client.delete_model_version(version.name, version.version)
    return first


def _renew_scores(client: MlflowClient, version: ModelVersion, candidate: Candidate) -> None:
    for metric, value in candidate.scores.items():
        client.log_metric(version.run_id, metric, value)
    for report in candidate.reports:
        client.log_artifact(version.run_id, str(report), _REPORTS)
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
        mlflow.log_artifact(str(report), _REPORTS)


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
def one_at_a_time(root: Path) -> Iterator[None]:
    """Processes of one checkout take turns; a process that is killed loses its turn. Those of other machines meet at
    the server, see `_only_one`."""
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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _word(value: object) -> str:
    """A value that is no number, as a tag tells it: `true` and `false` as JSON writes them."""
    return value if isinstance(value, str) else json.dumps(value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
