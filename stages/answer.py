"""The adapter answers the validation and test rows: the operating point, the line profile and all that is scored later.

    python -m stages.answer

Reads the base model, models/adapter, data/chat/{validation,test}.jsonl and data/composited; for the baselines and the
line profile data/raw and data/dst. Writes models/operating_point.json (the thresholds of the model and the localizer),
models/line_profile.json and reports/predictions: validation.csv, test.csv (with the baselines' rows), controls.json,
other_controls.json, simple_questions.json, evidence.json and answer_checks.json. Times and the device go to
build/runs/answer.json.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from pinspect.chat.checks import check_model_answers
from pinspect.core.digests import git_commit, weights_sha256
from pinspect.core.operating_point import write_operating_point
from pinspect.core.params import load_params
from pinspect.core.rows import read_chat
from pinspect.core.runs import write_run_facts
from pinspect.core.stage import run_stage
from pinspect.examination.baseline import fit_baseline
from pinspect.examination.examiner import Examiner
from pinspect.examination.localizer import fit_localizer
from pinspect.examination.photographs import Photographs
from pinspect.examination.results import Examination, write_examination
from pinspect.inspection.line_profile import make_profile, write_line_profile
from pinspect.model.families import checkpoint_of
from pinspect.model.loading import load_inspector


def main(root: Path = Path()) -> None:
    """Run the stage in the project folder `root`."""
    began = time.monotonic()
    params = load_params(root / "params.yaml")
    torch.set_num_threads(params.model.threads)
    data, adapter, contract = root / "data", root / "models/adapter", params.contract()
    validation_rows, test_rows = (read_chat(data / f"chat/{split}.jsonl") for split in ("validation", "test"))
    inspector = load_inspector(checkpoint_of(params.model, root), adapter)
    photographs = Photographs(data / "raw", data / "dst", params)
    examiner = Examiner(inspector, data / "composited", contract, params.evaluate, photographs)
    question = examiner.question

    point, validation = examiner.calibrate(validation_rows, weights_sha256(adapter))
    localizer = fit_localizer(data / "dst", data / "raw", contract)
    point = replace(point, localizer_threshold=localizer.production_threshold)
    write_operating_point(point, root / "models/operating_point.json")
    profile = make_profile(data / "raw", data / "dst", validation, params)
    write_line_profile(profile, root / "models/line_profile.json")
    print(point.summary(), profile.summary(), sep="\n")

    test, seconds = examiner.test(test_rows, point.threshold)
    answers = test[test["decoding"] == question.decoding]
    baseline = fit_baseline(data / "dst", data / "raw", contract)
    checks = check_model_answers(answers, contract)
    examination = Examination(
        validation=validation,
        test=pd.concat(
            [test, *(each.answer(question.rows(test_rows), question.decoding) for each in (baseline, localizer))],
            ignore_index=True,
        ),
        controls=examiner.run_controls(test_rows, answers, point.threshold),
        other_controls=examiner.run_other_controls(test_rows, answers, point.threshold),
        evidence=examiner.map_evidence(test_rows, answers, validation_rows),
        answer_checks=json.loads(checks.to_json()),
        simple_questions=examiner.ask_simple_questions(test_rows),
    )
    write_examination(examination, root / "reports/predictions")
    facts = {
        "seconds": round(time.monotonic() - began, 1),
        "seconds_per_answer": {f"p{q}": round(float(np.percentile(seconds, q)), 4) for q in (50, 95) if seconds},
        "device": str(inspector.device),
        "git_commit": git_commit(root),
        "weights_sha256": weights_sha256(adapter),
    }
    write_run_facts(root, "answer", facts)
    print(f"{len(answers)} test answers in {facts['seconds']:.0f} s on {facts['device']}: reports/predictions")


if __name__ == "__main__":
    run_stage("answer", main)
