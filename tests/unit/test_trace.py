"""Serial number and lot: in file names, with the history, and in its exports."""

import contextlib
import csv
import io
import json
from datetime import UTC, datetime, timedelta

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pinspect.cli.main import app
from pinspect.core.errors import ParamsError
from pinspect.station import export, results
from pinspect.station.export import COLUMNS, ExportError, write_csv, write_file
from pinspect.station.results import ResultsTable
from pinspect.station.results_database import ResultsError
from pinspect.station.settings import StationSettings
from pinspect.station.trace import trace_of_name

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
NAMES = r"(?P<lot>L\d+)/.*?(?P<serial>SN\d+)"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with three results, of two connectors of one lot and of an unknown one."""
    (tmp_path / "settings.yaml").write_text("station: {}\n")
    monkeypatch.chdir(tmp_path)
    with contextlib.closing(ResultsTable.of_project(tmp_path, StationSettings())) as table:
        for number, name in enumerate(("L7/a-SN1.jpg", "L7/b-SN2.jpg", "=1+1.jpg")):
            record = {"file": name, "judgement": "passed", "answer": "- image type->CYLN_RAW\n", "pin_map": [0.25, 1.0]}
            record |= {"localizer_disagrees": False, "p_defective": 0.125, "model_version": "3"}
            moment = NOON + timedelta(hours=number)
            record |= trace_of_name(name, NAMES)
            table.record(record, id=str(number), sha256="0" * 64, source="watch", received=moment)
        verdict = {"judgement": "defective", "defect_mode": "bend", "defect_position": "X:3, Y:U"}
        table.correct("1", **verdict, by="Sato", at=NOON, capture="c.jpg")
        yield table


def command(*words: str) -> str:
    result = CliRunner().invoke(app, ["results", *words], catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


@pytest.mark.parametrize(
    ("file", "names", "serial", "lot"),
    [
        ("L7/a-SN12.jpg", NAMES, "SN12", "L7"),
        ("other.jpg", NAMES, None, None),
        ("L7/a-SN12.jpg", "", None, None),
        ("SN5_x.jpg", r"(?P<serial>SN\d+)", "SN5", None),
        ("L1.jpg", r"(?P<lot>L\d+)(?P<serial>S\d*)?", None, "L1"),
        ("x" * 300, r"(?P<serial>x+)", "x" * 255, None),
    ],
)
def test_a_file_name_reveals_serial_number_and_lot(file, names, serial, lot):
    assert trace_of_name(file, names) == {"serial": serial, "lot": lot}


def test_results_are_found_by_serial_number_and_lot(project):
    assert [i.id for i in project.list(lot="L7")] == ["1", "0"]
    assert [i.id for i in project.list(serial="SN2")] == ["1"]
    assert [i.id for i in project.each(lot="L7", corrected=False)] == ["0"]
    assert project.list(serial="SN") == []


def test_any_number_of_results_is_read_in_parts_without_loss_the_oldest_first(project, monkeypatch):
    monkeypatch.setattr(results, "_ROWS_PER_QUERY", 4)
    for number in range(9):
        project.record({"file": "x"}, id=f"x{number}", sha256="", source="watch", received=NOON)
    ids = [inspection.id for inspection in project.each()]
    assert len(ids) == len(set(ids)) == 12
    assert ids[-2:] == ["1", "2"]


def test_the_history_is_printed_as_csv_with_the_filters_of_the_page(project):
    rows = list(csv.DictReader(io.StringIO(command("--lot", "L7", "--since", "2026-03-01T13:00:00Z"))))
    assert list(rows[0]) == COLUMNS
    assert [(row["id"], row["serial"], row["lot"], row["correction_by"]) for row in rows] == [
        ("1", "SN2", "L7", "Sato")
    ]
    assert rows[0]["received"] == "2026-03-01T13:00:00+00:00"
    assert json.loads(rows[0]["pin_map"]) == [0.25, 1.0]
    assert len(command("--judged").splitlines()) == 3  # an answer has a line end
    assert [json.loads(line)["id"] for line in command("--until", "2026-03-01T14:00", "--json").splitlines()] == [
        "0",
        "1",
    ]


def test_a_spreadsheet_computes_no_cell(project):
    file = io.StringIO()
    assert write_csv(project.each(), file) == 3
    row = list(csv.DictReader(io.StringIO(file.getvalue())))[2]
    assert (row["file"], row["answer"]) == ("'=1+1.jpg", "'- image type->CYLN_RAW\n")


def test_the_history_is_exported_as_parquet_with_types(project, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_ROWS_AT_ONCE", 2)
    assert command("--out", "all.parquet") == "3 results written to all.parquet\n"
    table = pq.read_table(tmp_path / "all.parquet")
    assert table.column_names == COLUMNS
    rows = table.to_pylist()
    assert [row["received"] for row in rows] == [NOON + timedelta(hours=hours) for hours in range(3)]
    assert rows[0] | {"received": None} == {
        **dict.fromkeys(COLUMNS),
        **{"id": "0", "sequence": 1, "source": "watch", "file": "L7/a-SN1.jpg", "sha256": "0" * 64, "serial": "SN1"},
        **{"lot": "L7", "judgement": "passed", "answer": "- image type->CYLN_RAW\n", "p_defective": 0.125},
        **{"localizer_disagrees": False, "pin_map": [0.25, 1.0], "model_version": "3"},
    }
    command("--lot", "none", "--out", "empty.parquet")
    assert pq.read_schema(tmp_path / "empty.parquet") == table.schema


def test_a_csv_file_opens_in_a_spreadsheet(project, tmp_path):
    command("--out", "all.csv")
    assert (tmp_path / "all.csv").read_bytes().startswith(b"\xef\xbb\xbfid,sequence,received,")


def test_an_export_that_cannot_be_made_is_reported_in_one_line(project, tmp_path):
    with pytest.raises(ExportError, match=r"all.xlsx: expected a file name that ends with .csv or .parquet"):
        write_file(project.each(), tmp_path / "all.xlsx")
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"file/all.csv: cannot be written: "):
        write_file(project.each(), tmp_path / "file/all.csv")
    with pytest.raises(ParamsError, match="--since: expected a time such as 2026-01-31"):
        command("--since", "yesterday")
    (tmp_path / "data/station/results.db").unlink()
    with pytest.raises(ResultsError, match="no results yet"):
        command()
