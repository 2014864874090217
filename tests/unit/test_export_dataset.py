"""The chat dataset as Parquet files with pictures."""

import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from pinspect.cli.export_dataset import export_dataset
from pinspect.cli.main import app
from pinspect.core.errors import StageInputError
from tests.support.chat_rows import write_rows


def test_each_row_has_its_pictures_and_prompt_and_completion_join_to_its_messages(tmp_path, monkeypatch):
    rows = write_rows(tmp_path, 4)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["export-dataset", "out"])
    assert (done.exit_code, done.output.splitlines()[0]) == (0, "4 train rows, 4 validation rows, 4 test rows in out")
    for split, of_split in rows.items():
        table = pq.read_table(tmp_path / f"out/{split}.parquet").to_pylist()
        for exported, row in zip(table, of_split, strict=True):
            assert exported["answer"] == row["answer"]
            names = [picture["path"] for picture in exported["images"]]
            contents = [picture["bytes"] for picture in exported["images"]]
            assert names == row["images"]
            assert contents == [(tmp_path / "data/composited" / name).read_bytes() for name in names]
            assert exported["prompt"] + exported["completion"] == exported["messages"]
            assert exported["completion"][0]["content"] == [{"type": "text", "text": row["answer"]}]


def test_an_export_is_the_same_each_time_and_its_card_has_two_forms(tmp_path):
    write_rows(tmp_path)
    for name in ("first", "second"):
        export_dataset(tmp_path, tmp_path / name)
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("first", "second")]
    assert contents[0] == contents[1]
    head = yaml.safe_load(contents[0]["README.md"].decode().split("---")[1])
    columns = {each["config_name"]: set(each["columns"]) for each in head["configs"]}
    assert {"prompt", "completion", "images"} <= columns["default"] and "messages" not in columns["default"]
    assert {"messages", "images"} <= columns["messages"] and "prompt" not in columns["messages"]


def test_a_missing_picture_and_a_folder_in_use_are_errors(tmp_path):
    write_rows(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(StageInputError, match="the folder is not empty"):
        export_dataset(tmp_path, tmp_path / "out")
    (tmp_path / "data/composited/images/reference.png").unlink()
    with pytest.raises(StageInputError, match=r"reference\.png: not found, but row train-0 shows it"):
        export_dataset(tmp_path, tmp_path / "new")
