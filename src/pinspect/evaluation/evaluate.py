"""Evaluation of an adapter: what it answered to the test rows, scored and told.

The headline is what production does: the view, kind of prompt and first decoding of `params.evaluate`, on the
camera's test split.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import pandas as pd

from pinspect.core import digests as provenance
from pinspect.core import predictions as tables
from pinspect.core.answers import AnswerContract
from pinspect.core.errors import StageInputError
from pinspect.core.manifests import read_manifest
from pinspect.core.operating_point import OperatingPoint
from pinspect.core.params import EvaluateParams
from pinspect.core.predictions import BASELINE, MODEL
from pinspect.core.prompts import SHOTS, ZERO_SHOT
from pinspect.evaluation import metrics, plots
from pinspect.evaluation.metrics import ALL, HEADLINE, McNemar
from pinspect.evaluation.report import ReportInput, render_report
from pinspect.evaluation.settings import ReportSettings
from pinspect.examination.controls import checks_table
from pinspect.examination.examination import Examination

ABLATIONS = Path("benchmarks/results/ablations.csv")
Row = Mapping[str, object]


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    facts, provenance: label -> text, for people. digests: name -> text, for machines. params: params.yaml as it stands.
    set_aside: test captures that could not be asked about -> reason. names: file of the raw folder -> the user's name.
    ablations: what changes when parts are left out, where that was measured.
    """

    title: str
    learning_curve: pd.DataFrame
    facts: Mapping[str, str]
    provenance: Mapping[str, str]
    digests: Mapping[str, str]
    params: str = ""
    set_aside: Mapping[str, str] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    ablations: pd.DataFrame | None = None


def own_predictions(predictions: pd.DataFrame, params: EvaluateParams) -> pd.DataFrame:
    """What the adapter answered by its first decoding."""
    return predictions[(predictions["model"] == MODEL) & (predictions["decoding"] == params.decodings[0])]


def write_evaluation(
    predictions: pd.DataFrame,
    rows: Sequence[Row],
    images: Path,
    contract: AnswerContract,
    params: EvaluateParams,
    settings: ReportSettings,
    subject: Subject,
    out: Path,
    point: OperatingPoint | None = None,
    examination: Examination | None = None,
) -> dict:
    """Score `predictions` and write all that stands in `reports/eval`; metrics.json, which is returned, last.

    Files: predictions.csv, scores.csv (`metrics.score_table`), controls.csv, evidence.csv, detail.json, plots/*.csv,
    report.html, metrics.json. point, examination: what was found before; nothing is told of what is None.
    """
    out.mkdir(parents=True, exist_ok=True)
    examination = examination or Examination()
    scores = metrics.score_table(
        predictions,
        confidence=settings.confidence,
        bootstrap_samples=settings.bootstrap_samples,
        seed=settings.seed,
    )
    comparisons = compare_with_baseline(predictions, params)
    tables.write(predictions, out / "predictions.csv")
    metrics.write_scores(scores, out / "scores.csv")
    _write_csv(checks_table(examination.controls, settings.confidence), out / "controls.csv")
    _write_csv(examination.evidence_table, out / "evidence.csv")
    plotted = _plotted(predictions, params)
    plots.write_plot_tables(plotted, out / "plots")
    for name, asked in plotted.items():
        _write_csv(metrics.reliability(asked), out / "plots" / f"reliability_{name}.csv")
    headline = headline_metrics(scores, params) | _told(point, examination)
    _write_json(_detail(predictions, comparisons, params, settings, subject, point, examination), out / "detail.json")
    report = render_report(
        ReportInput(
            title=subject.title,
            date=f"{date.today():%-d %B %Y}",
            predictions=predictions,
            scores=scores,
            contract=contract,
            model=MODEL,
            baseline=BASELINE,
            decoding=params.decodings[0],
            view=params.view,
            kind=params.kind,
            confidence=settings.confidence,
            images={str(row["id"]): row["images"] for row in rows},
            images_folder=images,
            learning_curve=subject.learning_curve,
            comparisons=comparisons,
            facts=subject.facts,
            provenance=subject.provenance,
            params=subject.params,
            set_aside=subject.set_aside,
            names=subject.names,
            messages={str(row["id"]): row["messages"] for row in rows if "messages" in row},
            bounds=settings.bounds,
            operating_point=point,
            reliability=metrics.reliability(plotted[ZERO_SHOT]),
            controls=examination.controls,
            evidence=examination.evidence,
            evidence_summary=examination.evidence_summary,
            ablations=subject.ablations,
        )
    )
    (out / "report.html").write_text(report, encoding="utf-8")
    _write_json(headline, out / "metrics.json")
    return headline


def headline_metrics(scores: pd.DataFrame, params: EvaluateParams) -> dict:
    """The scores that `dvc metrics show` prints: zero_shot, one_shot and baseline on the camera's test split, then
    virtual.

    A score that nothing was there for, such as the overkill rate without passed captures, is left out.
    """
    asked = (scores["kind"] == params.kind) & (scores["view"] == params.view) & (scores["image_type"] == ALL)
    told = (*HEADLINE, "ece")
    found = scores[asked & (scores["metric"].isin(told)) & scores["value"].notna()]
    found = found[(found["decoding"] == params.decodings[0]) | (found["model"] == BASELINE)]

    def of(source: str, model: str, shot: str) -> dict:
        chosen = found[(found["source"] == source) & (found["model"] == model) & (found["shot"] == shot)]
        values = chosen.set_index("metric")["value"]
        counted = {"captures": int(chosen["captures"].max())} if len(chosen) else {}
        return {name: round(float(values[name]), 4) for name in told if name in values} | counted

    def by_source(source: str) -> dict:
        blocks = {shot: of(source, MODEL, shot) for shot in SHOTS} | {"baseline": of(source, BASELINE, ZERO_SHOT)}
        return {name: block for name, block in blocks.items() if block}

    virtual = by_source("virtual")
    return by_source("camera") | ({"virtual": virtual} if virtual else {})


def compare_with_baseline(predictions: pd.DataFrame, params: EvaluateParams) -> dict[str, McNemar]:
    """McNemar's test of the zero-shot answers against the baseline, on the camera's captures: by exact match and by
    judgement. Empty where the baseline was not run."""
    ours = _headline(predictions, params, MODEL, ZERO_SHOT)
    theirs = _headline(predictions, params, BASELINE, ZERO_SHOT)
    if ours.empty or theirs.empty:
        return {}
    return {outcome: metrics.mcnemar(ours, theirs, outcome, on=("file",)) for outcome in ("exact_match", "judgement")}


def read_subject(root: Path, base: str, params_file: Path) -> Subject:
    """Gather what the report says about the adapter in `root`: models/adapter, the manifests and the commit.

    Raises StageInputError when one of them is missing or incomplete.
    """
    adapter = root / "models/adapter"
    captures = read_manifest(root / "data/raw/manifest.csv", ("file", "capture", "split", "role"))
    sha256 = provenance.adapter_sha256(adapter)
    training = _read_json(adapter / "training.json")
    config = _read_json(adapter / "adapter_config.json")
    chosen = training["params"]
    digests = {
        "adapter_sha256": sha256,
        "base_sha256": training["base_sha256"],
        "dataset_digest": provenance.dvc_directory_hash(root / "data/chat"),
        "git_commit": provenance.git_commit(root),
    }
    return Subject(
        title=f"Evaluation of adapter {sha256[:8]}",
        learning_curve=pd.read_csv(adapter / "learning_curve.csv"),
        facts={
            "Adapter": f"LoRA, rank {config['r']}, alpha {config['lora_alpha']}",
            "Adapts": _adapted_parts(chosen),
            "Trainable": f"{training['trainable_parameters']:,} parameters, {training['trainable_share']:.1%}",
            "File size": f"{training['adapter_bytes'] / 1e6:.2f} MB",
            "Training": f"{training['steps']} steps in {training['seconds']:.0f} s",
        },
        provenance={
            "Adapter sha256": sha256,
            "Base": f"{base} · {digests['base_sha256']}",
            "Dataset": digests["dataset_digest"],
            "Commit": digests["git_commit"] or "not under version control",
        },
        digests=digests,
        params=params_file.read_text(encoding="utf-8"),
        set_aside=_set_aside(captures, root / "data/dst/manifest.csv"),
        names=dict(zip(captures["file"], captures["capture"], strict=True)),
        ablations=pd.read_csv(ablations) if (ablations := root / ABLATIONS).is_file() else None,
    )


def _adapted_parts(chosen: Mapping[str, object]) -> str:
    layers = [label for name, label in (("attention", "attention"), ("mlp", "MLP")) if chosen[name]]
    parts = [name for name in ("vision", "language") if chosen[name]]
    return f"{' and '.join(layers)} of {' and '.join(parts)}"


def _set_aside(captures: pd.DataFrame, dst: Path) -> dict[str, str]:
    """Inspected test captures that the dst stage could not lay over the unit space: the user's name -> the reason."""
    tested = captures[(captures["split"] == "test") & (captures["role"] == "inspected")]
    joined = tested.merge(read_manifest(dst, ("file", "error")), on="file")
    return dict(joined.loc[joined["error"] != "", ["capture", "error"]].itertuples(index=False))


def _headline(predictions: pd.DataFrame, params: EvaluateParams, model: str, shot: str, source: str = "camera"):
    wanted = {"model": model, "shot": shot, "source": source, "view": params.view, "kind": params.kind}
    if model == MODEL:
        wanted["decoding"] = params.decodings[0]
    rows = predictions
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    return rows


def _plotted(predictions: pd.DataFrame, params: EvaluateParams) -> dict[str, pd.DataFrame]:
    source = "camera" if (predictions["source"] == "camera").any() else "virtual"
    series = {shot: _headline(predictions, params, MODEL, shot, source) for shot in SHOTS}
    return series | {"baseline": _headline(predictions, params, BASELINE, ZERO_SHOT, source)}


def _detail(
    predictions: pd.DataFrame,
    comparisons: Mapping[str, McNemar],
    params: EvaluateParams,
    settings: ReportSettings,
    subject: Subject,
    point: OperatingPoint | None,
    examination: Examination,
) -> dict:
    latency = _headline(predictions, params, MODEL, ZERO_SHOT)["latency_s"].dropna()
    return {
        **subject.digests,
        "headline": {"view": params.view, "kind": params.kind, "decoding": params.decodings[0]},
        "operating_point": asdict(point) if point else None,
        "confidence": settings.confidence,
        "against_baseline": {outcome: asdict(test) for outcome, test in comparisons.items()},
        "controls": [
            {
                "name": result.name,
                "held": result.held,
                "captures": result.captures,
                "expected": result.expected,
                "found": result.found,
                "checks": [asdict(check) | {"held": check.held} for check in result.checks],
            }
            for result in examination.controls
        ],
        "evidence": examination.evidence_summary,
        "seconds_per_answer": {f"p{q}": round(float(latency.quantile(q / 100)), 4) for q in (50, 95) if len(latency)},
        "set_aside": dict(subject.set_aside),
    }


def _told(point: OperatingPoint | None, examination: Examination) -> dict:
    """The blocks of metrics.json that are no scores; a control that could not be made has not been held or broken."""
    held = {result.name: result.held for result in examination.controls if result.held is not None}
    facts = {} if point is None else {name: value for name, value in asdict(point).items() if value is not None}
    facts.pop("weights_sha256", None)
    return ({"operating_point": facts} if facts else {}) | ({"controls": held} if held else {})


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StageInputError(f"{path}: not found; run the train stage first (dvc repro train)") from None
    except json.JSONDecodeError as error:
        raise StageInputError(f"{path}: no JSON ({error}); run dvc repro --force train") from None


def _write_json(content: Mapping, path: Path) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False, lineterminator="\n")
