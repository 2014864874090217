import json
import subprocess
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from pinspect.chat import dataset as chat
from pinspect.core import prompts
from pinspect.core.answers import VIEWS, AnswerKind
from pinspect.core.errors import StageInputError
from pinspect.core.params import load_params
from pinspect.core.rows import read_chat
from tests.support import chat_line
from tests.support.sample import stage_process


def build(root: Path, **changes: object) -> chat.ChatDataset:
    params, data = load_params(root / "params.yaml"), root / "data"
    changed = params.chat.model_copy(update=changes)
    return chat.build_chat(data / "raw", data / "dst", data / "composited", params.contract(), changed)


def all_rows(dataset: chat.ChatDataset) -> list[dict]:
    return [row for rows in dataset.rows.values() for row in rows]


def run_stage(root: Path) -> subprocess.CompletedProcess:
    return stage_process("chat", root)


@pytest.fixture
def line(tmp_path: Path) -> Path:
    chat_line.make_line(tmp_path)
    return tmp_path


def test_every_answer_matches_its_label(line):
    contract = load_params(line / "params.yaml").contract()
    labels = {row["file"]: row for row in chat_line.manifest(line, "raw")}
    rows = all_rows(build(line, kinds={"two_image": 3, "one_image": 3}))
    assert {row["answer_kind"] for row in rows} == {AnswerKind.COMPARISON, AnswerKind.DISCRIMINATION}
    for row in rows:
        values = contract.parse(row["answer"], AnswerKind(row["answer_kind"])).values()
        label = labels[row["file"]]
        assert values["image_type"] == f"{label['shape']}_{row['view']}"
        for field in ("judgement", "defect_mode", "defect_position"):
            assert values[field] == label[field]
        assert row["messages"][-1]["content"][0]["text"] == row["answer"]


def test_rows_show_the_inspected_capture_last_and_a_passed_reference_before_it(line):
    raw_files = {row["file"]: row["raw_file"] for row in chat_line.manifest(line, "composited")}
    references = {shape: chat_line.files(line, role="reference", shape=shape) for shape in ("CYLN", "SQUR")}
    for row in all_rows(build(line)):
        assert raw_files[row["images"][-1]] == row["file"]
        assert raw_files[row["images"][-2]] in references[row["shape"]]
        assert all(f"-{row['view']}" in image for image in row["images"])
        assert len(row["images"]) == prompts.image_count(row["messages"])


def test_one_shot_rows_begin_with_a_star_of_the_same_shape_and_view_and_its_true_answer(line):
    contract = load_params(line / "params.yaml").contract()
    stars = {row["file"]: row for row in chat_line.manifest(line, "composited") if row["kind"] == "star"}
    rows = [row for row in all_rows(build(line)) if row["shot"] == prompts.ONE_SHOT]
    assert rows
    for row in rows:
        star = contract.parse(row["messages"][1]["content"][0]["text"], AnswerKind.STAR)
        assert str(star.defect_position) == stars[row["images"][0]]["star_position"]
        assert star.image_type == f"{row['shape']}_{row['view']}"


def test_training_rows_of_a_capture_show_a_different_reference_each(line):
    shown = defaultdict(list)
    for row in build(line, kinds={"two_image": 4}).rows["train"]:
        shown[row["file"], row["view"]].append(row["images"][-2])
    assert len(shown) == len(VIEWS) * 16
    assert all(len(references) == len(set(references)) == 4 for references in shown.values())


def test_more_training_rows_than_references_are_not_made_by_repetition(line):
    rows = build(line, kinds={"two_image": 50}).rows["train"]
    assert set(Counter((row["file"], row["view"]) for row in rows).values()) == {5}


@pytest.mark.parametrize("share", [0.0, 1 / 3, 0.5, 1.0])
def test_the_one_shot_share_of_the_training_rows_is_kept(line, share):
    shots = Counter(row["shot"] for row in build(line, one_shot_share=share).rows["train"])
    assert shots[prompts.ONE_SHOT] / shots.total() == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_capture_has_one_evaluation_row_per_view_kind_and_shot(line, split):
    rows = build(line, kinds={"two_image": 3, "one_image": 3}).rows[split]
    counts = Counter((row["file"], row["view"], row["kind"], row["shot"]) for row in rows)
    captures = [file for shape in ("CYLN", "SQUR") for file in chat_line.files(line, shape=shape, split=split)]
    prompted = [("two_image", "zero_shot"), ("two_image", "one_shot"), ("one_image", "zero_shot")]
    assert counts == Counter((file, view, *prompt) for file in captures for view in VIEWS for prompt in prompted)
    references = defaultdict(set)
    for row in rows:
        if row["kind"] == "two_image":
            references[row["shape"], row["view"]].add(row["images"][-2])
    assert all(len(shown) == 1 for shown in references.values())


def test_evaluation_shows_the_reference_nearest_the_mean_of_the_unit_space(line):
    nearest = chat_line.files(line, role="reference", shape="CYLN")[2]
    chat_line.change_row(line, "dst", nearest, alignment_score="0.9999")
    shown = {row["images"][-2] for row in build(line).rows["test"] if row["shape"] == "CYLN"}
    assert shown == {f"{nearest.removesuffix('.jpg')}-{view}.jpg" for view in VIEWS}


def test_adding_captures_leaves_the_rows_of_the_old_ones_as_they_are(tmp_path):
    chat_line.make_line(tmp_path / "before", inspected=16)
    chat_line.make_line(tmp_path / "after", inspected=24)
    before, after = (
        {row["id"]: row for row in all_rows(build(tmp_path / name, kinds={"two_image": 3, "one_image": 3}))}
        for name in ("before", "after")
    )
    assert len(after) == len(before) * 3 / 2
    assert before.items() <= after.items()


def test_no_training_row_shows_a_validation_or_test_capture(line):
    chat_line.add_stacked(line)
    raw_files = {row["file"]: row["raw_file"] for row in chat_line.manifest(line, "composited")}
    splits = {row["file"]: row["split"] for row in chat_line.manifest(line, "raw")}
    rows = build(line, kinds={"two_image": 3, "one_image": 3, "stacked": 3}, one_shot_share=0.5).rows["train"]
    assert {splits[raw_files[image]] for row in rows for image in row["images"]} == {"train"}


def test_a_star_drawn_on_a_test_capture_is_never_a_worked_example(line):
    tested = chat_line.files(line, split="test")[0]
    composited = chat_line.manifest(line, "composited")
    stars = [row for row in composited if row["kind"] == "star"]
    for star in stars:
        star["raw_file"] = tested
    chat_line.write_manifest(line, "composited", composited)
    with pytest.raises(StageInputError, match="no RAW star composite of camera"):
        build(line)


def test_a_reference_outside_the_training_split_is_refused(line):
    reference = chat_line.files(line, role="reference")[0]
    chat_line.change_row(line, "raw", reference, split="test")
    with pytest.raises(StageInputError, match=f"reference {reference} is in split 'test', expected 'train'"):
        build(line)


def test_captures_set_aside_by_dst_have_no_rows_and_are_counted_with_the_reason(line):
    file = chat_line.files(line, split="train")[0]
    chat_line.change_row(line, "dst", file, alignment_score="", error="lies 55 px off the unit space")
    dataset = build(line)
    assert dataset.set_aside == {file: "lies 55 px off the unit space"}
    assert file not in {row["file"] for row in all_rows(dataset)}


def test_a_line_with_references_only_gives_an_empty_dataset(tmp_path):
    chat_line.make_line(tmp_path, inspected=0)
    assert run_stage(tmp_path).returncode == 0
    assert read_chat(tmp_path / "data/chat/train.jsonl") == []


def test_a_reference_set_aside_by_dst_is_shown_nowhere(line):
    reference = chat_line.files(line, role="reference")[0]
    chat_line.change_row(line, "dst", reference, alignment_score="", error="lies 55 px off the unit space")
    shown = {image for row in all_rows(build(line, kinds={"two_image": 9})) for image in row["images"]}
    assert not any(image.startswith(reference.removesuffix(".jpg")) for image in shown)


def test_a_line_without_a_usable_reference_is_named(line):
    for reference in chat_line.files(line, role="reference", shape="SQUR"):
        chat_line.change_row(line, "dst", reference, error="unreadable")
    with pytest.raises(StageInputError, match="no usable reference of camera SQUR"):
        build(line)


def test_a_stacked_row_shows_one_composite_after_an_example_if_one_shot(line):
    chat_line.add_stacked(line)
    composited = {row["file"]: row for row in chat_line.manifest(line, "composited")}
    labels = {row["file"]: row for row in chat_line.manifest(line, "raw")}
    contract = load_params(line / "params.yaml").contract()
    rows = all_rows(build(line, kinds={"stacked": 3}))
    for row in rows:
        assert composited[row["images"][-1]]["raw_file"] == row["file"]
        assert len(row["images"]) == (2 if row["shot"] == "one_shot" else 1)
        if row["shot"] == "one_shot":
            worked = composited[row["images"][0]]["raw_file"]
            example = contract.parse(row["messages"][1]["content"][0]["text"])
            assert worked != row["file"]
            assert example.values()["defect_position"] == labels[worked]["defect_position"]
    assert {row["shot"] for row in rows} == {"zero_shot", "one_shot"}


def test_without_a_defective_training_capture_stacked_prompts_have_no_example(line):
    chat_line.add_stacked(line)
    for row in chat_line.manifest(line, "raw"):
        if (row["split"], row["judgement"]) == ("train", "defective"):
            passed = {"judgement": "passed", "defect_mode": "passed", "defect_position": "passed"}
            chat_line.change_row(line, "raw", row["file"], **passed)
    rows = all_rows(build(line, kinds={"two_image": 3, "stacked": 3}))
    assert {row["shot"] for row in rows if row["kind"] == "stacked"} == {"zero_shot"}
    assert {row["shot"] for row in rows if row["kind"] == "two_image"} == {"zero_shot", "one_shot"}


def test_stacked_prompts_without_stacked_composites_are_refused(line):
    with pytest.raises(StageInputError, match=r"no stacked RAW composite of images/.*run `dvc repro -f composite`"):
        build(line, kinds={"stacked": 3})


def test_the_stage_writes_the_same_bytes_again_and_prints_rows_per_mode(line):
    first = run_stage(line)
    assert first.returncode == 0, first.stderr
    written = {path.name: path.read_bytes() for path in (line / "data/chat").iterdir()}
    assert sorted(written) == ["test.jsonl", "train.jsonl", "validation.jsonl"]
    assert run_stage(line).returncode == 0
    assert {path.name: path.read_bytes() for path in (line / "data/chat").iterdir()} == written
    assert first.stdout.splitlines()[0].split() == ["mode", "passed", "bend", "retract", "missing", "rows"]
    rows = read_chat(line / "data/chat/train.jsonl")
    assert len(rows) == len({row["id"] for row in rows}) == 16 * 2 * 3


def test_a_missing_composite_is_named_and_the_old_dataset_stays(line):
    assert run_stage(line).returncode == 0
    before = (line / "data/chat/train.jsonl").read_bytes()
    missing = chat_line.files(line, split="test")[0].replace(".jpg", "-DST.jpg")
    (line / "data/composited" / missing).unlink()
    failed = run_stage(line)
    assert failed.returncode == StageInputError.exit_code
    assert failed.stderr.startswith(f"data/composited/{missing}: not found")
    assert "Traceback" not in failed.stderr
    assert (line / "data/chat/train.jsonl").read_bytes() == before


def test_an_error_about_a_missing_input_names_the_file(line):
    (line / "data/dst/manifest.csv").unlink()
    failed = run_stage(line)
    assert failed.returncode == StageInputError.exit_code
    assert failed.stderr == "data/dst/manifest.csv: not found; run `dvc repro`, which makes it\n"


def test_a_manifest_without_a_column_is_refused_with_its_name(line):
    rows = [{name: row[name] for name in ("file", "error")} for row in chat_line.manifest(line, "dst")]
    chat_line.write_manifest(line, "dst", rows)
    with pytest.raises(StageInputError, match=r"columns \['alignment_score'\] are missing"):
        build(line)


def test_a_damaged_chat_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"id": "a"}) + "\n{broken\n")
    with pytest.raises(StageInputError, match=r"train\.jsonl:2: not JSON"):
        read_chat(path)
    path.write_text("[1, 2]\n")
    with pytest.raises(StageInputError, match=r"train\.jsonl:1: expected a JSON object, found '\[1, 2\]'"):
        read_chat(path)
    with pytest.raises(StageInputError, match=r"test\.jsonl: not found"):
        read_chat(tmp_path / "test.jsonl")
