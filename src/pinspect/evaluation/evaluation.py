"""Everything that an evaluation scores and reports, as one value: from the model's answers to the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pandas as pd

from pinspect.core import digests
from pinspect.core.answers import AnswerContract
from pinspect.core.errors import StageInputError
from pinspect.core.manifests import read_manifest
from pinspect.core.operating_point import OperatingPoint, read_operating_point
from pinspect.core.params import EvaluateParams, load_params
from pinspect.core.predictions import BASELINE, MODEL
from pinspect.core.prompts import ZERO_SHOT
from pinspect.core.question import CAMERA, Question, preferred_source
from pinspect.core.rows import Row, read_chat
from pinspect.evaluation import comparing, metrics
from pinspect.evaluation.comparing import McNemar
from pinspect.evaluation.settings import ReportSettings, load_report_settings
from pinspect.examination.results import ControlResult, Examination, read_examination


@dataclass(frozen=True)
class Evaluation:
    """The answers of one model, and what the report shows beside them.

    Fields with a default may be missing; the report then shows "not measured".

    Attributes:
        examination: What stage `answer` wrote: predictions, controls, evidence maps, answer checks.
        contract: The answer contract.
        params: Section `evaluate` of `params.yaml`.
        settings: Section `report` of `settings.yaml`.
        rows: Test rows of the chat dataset.
        images: Folder of their pictures.
        title: Heading of the report.
        operating_point: The threshold on P(defective).
        learning_curve: Columns step, loss, validation_loss.
        digests: Name -> hash, of the adapter, its base and its dataset.
        facts: Label -> text about the adapter.
        params_text: `params.yaml` as text.
        set_aside: Name of a test capture that could not be asked about -> reason.
        names: File of the raw folder -> the name that its user gave it.
        dataset_checks: Result of the answer checks on the chat dataset (`reports/answers/validation.json`).
    """

    examination: Examination
    contract: AnswerContract
    params: EvaluateParams
    settings: ReportSettings
    rows: Sequence[Row]
    images: Path
    title: str = "Evaluation"
    operating_point: OperatingPoint | None = None
    learning_curve: pd.DataFrame = field(default_factory=lambda: pd.DataFrame({"step": [], "loss": []}))
    digests: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    params_text: str = ""
    set_aside: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    dataset_checks: Mapping[str, object] | None = None

    @cached_property
    def question(self) -> Question:
        """Return what production asks."""
        return Question.of(self.params)

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """Return the predictions table of the test rows, those of the baselines included."""
        return self.examination.test

    @cached_property
    def model_answers(self) -> pd.DataFrame:
        """Return the model's answers to every prompt by production's decoding."""
        table = self.predictions
        return table[(table["model"] == MODEL) & (table["decoding"] == self.question.decoding)]

    @cached_property
    def source(self) -> str:
        """Return the line that the scores are about: `camera`, or `virtual` where no camera capture was tested."""
        return preferred_source(set(self.question.answers(self.predictions)["source"])) or CAMERA

    @cached_property
    def sources(self) -> list[str]:
        """Return the lines that the model was asked about."""
        return sorted(self.model_answers["source"].unique())

    @property
    def controls(self) -> dict[str, Sequence[ControlResult]]:
        """Return the controls by view, the view that production asks about first."""
        return {self.question.view: self.examination.controls, **self.examination.other_controls}

    def answers(self, shot: str = ZERO_SHOT, *, model: str = MODEL, source: str = "") -> pd.DataFrame:
        """Return the answers to production's question.

        Args:
            shot: `zero_shot` or `one_shot`.
            model: `MODEL`, `BASELINE` or `LOCALIZER`.
            source: `camera` or `virtual`; empty for `self.source`.
        """
        answers = self.question.answers(self.predictions, model=model, shot=shot)
        return answers[answers["source"] == (source or self.source)]

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Return the scores of the test answers."""
        return self.score(self.predictions)

    def score(self, predictions: pd.DataFrame) -> pd.DataFrame:
        """Return the scores of a predictions table by `self.settings`, see `metrics.score_table`."""
        settings = self.settings
        return metrics.score_table(
            predictions,
            confidence=settings.confidence,
            bootstrap_samples=settings.bootstrap_samples,
            seed=settings.seed,
        )

    @cached_property
    def comparisons(self) -> dict[str, McNemar]:
        """Return McNemar's test of the zero-shot answers against the baseline, by outcome; {} without a baseline."""
        first, second = self.answers(), self.answers(model=BASELINE)
        if first.empty or second.empty:
            return {}
        outcomes = ("exact_match", "judgement")
        return {outcome: comparing.mcnemar(first, second, outcome, on=("file",)) for outcome in outcomes}

    @cached_property
    def reliability(self) -> pd.DataFrame:
        """Return the reliability of P(defective) of the zero-shot answers, see `metrics.reliability`."""
        return metrics.reliability(self.answers())


def read_evaluation(root: Path) -> Evaluation:
    """Read the evaluation of the project in `root`.

    Raises:
        StageInputError: A file of an earlier stage is missing or not readable.
        ParamsError: `params.yaml` or `settings.yaml` is wrong.
    """
    params, settings = load_params(root / "params.yaml"), load_report_settings(root)
    adapter, contract = root / "models/adapter", params.contract()
    captures = read_manifest(root / "data/raw/manifest.csv", ("file", "capture", "split", "role"))
    training, config = _read_json(adapter / "training.json"), _read_json(adapter / "adapter_config.json")
    sha256 = digests.adapter_sha256(adapter)
    return Evaluation(
        examination=read_examination(root / "reports/predictions", contract.layout),
        contract=contract,
        params=params.evaluate,
        settings=settings,
        rows=read_chat(root / "data/chat/test.jsonl"),
        images=root / "data/composited",
        title=f"Evaluation of adapter {sha256[:8]}",
        operating_point=read_operating_point(root / "models/operating_point.json", adapter),
        learning_curve=pd.read_csv(adapter / "learning_curve.csv"),
        digests={
            "adapter_sha256": sha256,
            "base_sha256": training["base_sha256"],
            "dataset_digest": digests.dvc_directory_hash(root / "data/chat"),
        },
        facts={
            "Adapter": f"LoRA, rank {config['r']}, alpha {config['lora_alpha']}",
            "Adapted layers": _adapted_parts(training["params"]),
            "Matched modules": _matched_modules(training["lora_modules"]),
            "Trainable parameters": f"{training['trainable_parameters']:,} ({training['trainable_share']:.1%})",
            "File size": f"{training['adapter_bytes'] / 1e6:.2f} MB",
            "Training steps": f"{training['steps']:,}",
            "Base model": params.model.checkpoint or params.model.family,
        },
        params_text=(root / "params.yaml").read_text(encoding="utf-8"),
        set_aside=_set_aside(captures, root / "data/dst/manifest.csv"),
        names=dict(zip(captures["file"], captures["capture"], strict=True)),
        dataset_checks=_read_json(root / "reports/answers/validation.json"),
    )


def _adapted_parts(params: Mapping[str, object]) -> str:
    layers = [label for name, label in (("attention", "attention"), ("mlp", "MLP")) if params[name]]
    parts = [name for name in ("vision", "language") if params[name]]
    return f"{' and '.join(layers)} of {' and '.join(parts)}"


def _matched_modules(modules: Mapping[str, int]) -> str:
    """Return the modules with a LoRA pair, such as `visual.blocks.*.attn.qkv (4)`."""
    names = ", ".join(f"{name} ({count})" for name, count in modules.items())
    return f"{sum(modules.values())}: {names}"


def _set_aside(captures: pd.DataFrame, dst: Path) -> dict[str, str]:
    """Return the inspected test captures that the dst stage could not align: the user's name -> the reason."""
    tested = captures[(captures["split"] == "test") & (captures["role"] == "inspected")]
    joined = tested.merge(read_manifest(dst, ("file", "error")), on="file")
    return dict(joined.loc[joined["error"] != "", ["capture", "error"]].itertuples(index=False))


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageInputError(f"{path}: not found; run dvc repro, which makes it") from None
    except json.JSONDecodeError as error:
        raise StageInputError(f"{path}: not JSON ({error}); run dvc repro --force") from None
