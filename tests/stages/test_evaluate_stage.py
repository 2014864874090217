"""The stage `evaluate`: from the files of the stage `answer` to reports/eval, without a model and without torch."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from pinspect.core.digests import WEIGHTS, weights_sha256
from pinspect.core.operating_point import write_operating_point
from pinspect.examination.operating_point import choose_operating_point
from pinspect.examination.results import (
    Check,
    ControlResult,
    Evidence,
    EvidenceMap,
    Examination,
    read_examination,
    write_examination,
)
from tests.support.evaluation_examples import (
    ADDRESSES,
    CONTRACT,
    PARAMS,
    answered,
    baseline,
    chat_row,
    escaped,
    messages,
)
from tests.support.sample import ROOT, contents

HEAVY = ("torch", "transformers", "peft", "great_expectations", "mlflow", "prefect", "matplotlib")
RUN = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import stages.evaluate
stages.evaluate.main()
loaded = [name for name in {HEAVY!r} if name in sys.modules]
assert not loaded, loaded
"""


def examination_of(rows):
    weights = np.zeros((4, 10), np.float32)
    weights[-1, -1] = 1
    pin = ADDRESSES[0]
    maps = {str(row["id"]): EvidenceMap(weights, 0.5, ADDRESSES[-1], pin, pin, 0.25, False) for row in rows[:1]}
    table = pd.DataFrame(
        [
            ("a", "a.jpg", "bend", str(pin), str(pin), str(pin), 0.25, True, 0.5),
            ("b", "b.jpg", "passed", "", str(pin), str(pin), None, None, 0.5),
        ],
        columns=Evidence().table.columns,
    )
    chances = answered(rows, chance=lambda row: 0.9 if "defective" in row["answer"] else 0.1)
    return Examination(
        validation=chances,
        test=pd.concat([answered(rows[:1], escaped), chances[1:], baseline(rows)], ignore_index=True),
        controls=(
            ControlResult(
                "blank", 4, (Check("judged passed", 0, 4, bound=0),), pictures=("data:image/jpeg;base64,AA",)
            ),
            ControlResult("swapped", 0, reason="a one-image prompt shows no reference"),
        ),
        other_controls={"RAW": (ControlResult("blank", 4, (Check("judged passed", 1, 4, bound=0),)),)},
        evidence=Evidence(maps, table, table[:1]),
        answer_checks={"rows": 4, "failing_rows": 0, "expectations": []},
        simple_questions=(ControlResult("star", 4, (Check("stars at their address", 4, 4, 3, at_least=True),)),),
    )


def test_an_examination_is_read_as_it_was_written(tmp_path):
    examination = examination_of([chat_row(number) for number in range(4)])
    write_examination(examination, tmp_path / "first")
    read = read_examination(tmp_path / "first", CONTRACT.layout)
    assert read.controls == examination.controls
    assert read.other_controls == examination.other_controls
    assert read.simple_questions == examination.simple_questions
    assert read.controls[0].held is True and read.controls[1].held is None
    assert read.answer_checks == examination.answer_checks
    (evidence_map,), (expected,) = read.evidence.maps.values(), examination.evidence.maps.values()
    assert (evidence_map.weights == expected.weights).all()
    names = ("named", "brightest", "defect", "hit", "agreement", "looked")
    assert [getattr(evidence_map, name) for name in names] == [getattr(expected, name) for name in names]
    assert read.evidence.table["agreement"].isna().tolist() == [False, True]
    write_examination(read, tmp_path / "second")
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


@pytest.fixture
def project(tmp_path):
    """A project with only the files that the stage reads; of the model these are configuration and weights."""
    rows = [chat_row(number) for number in range(4)]
    for name in ("data/chat", "data/composited", "data/raw", "data/dst", "models/adapter", "reports/answers"):
        (tmp_path / name).mkdir(parents=True)
    for row in rows:
        row |= {"images": ["reference.jpg", f"{row['id']}.jpg"], "messages": messages(row)}
        for image in row["images"]:
            Image.new("RGB", (160, 64), (90, 90, 90)).save(tmp_path / "data/composited" / image)
    for split in ("train", "validation", "test"):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"data/chat/{split}.jsonl").write_text(lines)
    manifest = pd.DataFrame({"file": [row["file"] for row in rows], "split": "test", "role": "inspected"})
    manifest.assign(capture=[f"OK_{number}.jpg" for number in range(4)]).to_csv(
        tmp_path / "data/raw/manifest.csv", index=False
    )
    manifest[["file"]].assign(error="").to_csv(tmp_path / "data/dst/manifest.csv", index=False)
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["evaluate"]["view"] = "DST"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    shutil.copy(ROOT / "settings.yaml", tmp_path)
    adapter = tmp_path / "models/adapter"
    (adapter / WEIGHTS[0]).write_text(json.dumps({"r": 16, "lora_alpha": 32}))
    (adapter / WEIGHTS[1]).write_bytes(b"weights")
    training = {"base_sha256": "0" * 64, "trainable_parameters": 1000, "trainable_share": 0.1, "adapter_bytes": 2000}
    training["lora_modules"] = {"visual.blocks.*.attn.qkv": 4, "language_model.layers.*.mlp.up_proj": 5}
    training |= {"steps": 240, "params": {"attention": True, "mlp": True, "vision": True, "language": True}}
    (adapter / "training.json").write_text(json.dumps(training))
    (adapter / "learning_curve.csv").write_text("step,loss,validation_loss\n1,2.0,\n2,1.0,0.5\n")
    examination = examination_of(rows)
    point = choose_operating_point(examination.validation, PARAMS.evaluate, weights_sha256(adapter))
    write_operating_point(point, tmp_path / "models/operating_point.json")
    write_examination(examination, tmp_path / "reports/predictions")
    checks = {"rows": 4, "failing_rows": 0, "expectations": []}
    (tmp_path / "reports/answers/validation.json").write_text(json.dumps(checks))
    return tmp_path


def test_evaluate_writes_its_files_twice_alike_and_loads_no_torch(project):
    made = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", RUN], cwd=project, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made.append(contents(project / "reports/eval"))
        shutil.rmtree(project / "reports/eval")
    assert made[0] == made[1]
    assert set(made[0]) == {
        *("metrics.json", "detail.json", "report.html", "scores.csv", "validation_scores.csv"),
        *("controls.csv", "evidence.csv"),
        *(
            f"plots/{table}_{series}.csv"
            for table in ("confusion", "roc", "reliability")
            for series in ("zero_shot", "one_shot", "baseline", "localizer")
        ),
    }
    assert b"9: visual.blocks.*.attn.qkv (4), language_model.layers.*.mlp.up_proj (5)" in made[0]["report.html"]
    metrics = json.loads(made[0]["metrics.json"])
    assert (metrics["captures"], metrics["zero_shot"]["exact_match"]) == (4, 0.75)
    assert metrics["baseline"]["exact_match"] == 1.0
    assert all(
        isinstance(value, int | float) for block in ("zero_shot", "baseline") for value in metrics[block].values()
    )


def test_no_file_of_an_evaluation_names_this_machine_the_day_or_the_commit(project):
    subprocess.run([sys.executable, "-c", RUN], cwd=project, capture_output=True, check=True)
    texts = [content.decode() for content in contents(project / "reports/eval").values()]
    for text in texts:
        assert str(project) not in text
        assert "git_commit" not in text and "latency" not in text and "seconds" not in text.lower()
