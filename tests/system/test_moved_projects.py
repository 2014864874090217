"""A project folder that was renamed or copied: inspect, register and promote work there and only there."""

import contextlib
import shutil
import sqlite3
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest
from mlflow.artifacts import download_artifacts

from pinspect.core.errors import RegistryUnreachableError
from pinspect.registry.addresses import bring_home
from pinspect.registry.connection import open_registry, project_database
from pinspect.registry.settings import load_register_settings
from pinspect.registry.versions import load_registered
from tests.support.evaluated_project import run_stage
from tests.support.sample import contents, line, set_values
from tests.support.station_stack import PINSPECT

TABLES = {
    "experiments": "artifact_location",
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}


@pytest.fixture
def renamed(three_versions, tmp_path):
    """A project whose folder has a new name; the old one is gone."""
    first = shutil.copytree(three_versions, tmp_path / "first name")
    with open_registry(first, load_register_settings(first)):
        pass
    return first.rename(tmp_path / "second name 100%")


@pytest.fixture
def copied(three_versions, tmp_path):
    """An original, a copy, and the original's files before the copy works."""
    original = shutil.copytree(three_versions, tmp_path / "original")
    with open_registry(original, load_register_settings(original)):
        pass
    copy = shutil.copytree(original, tmp_path / "copy")
    return original, copy, contents(original)


def addresses(project) -> list[str]:
    with contextlib.closing(sqlite3.connect(project_database(project))) as database:
        return [row[0] for table, column in TABLES.items() for row in database.execute(f"SELECT {column} FROM {table}")]


def registers(project) -> None:
    """Register another version, load it, and read a stored report."""
    set_values(project, "dst", maximum_shift=43)
    set_values(project, "station", results="postgresql://station:hunter2@host/results")
    run_stage("register", project)
    settings = load_register_settings(project)
    with open_registry(project, settings) as client:
        version = client.get_model_version_by_alias(settings.model_name, "challenger")
        assert str(version.version) == "4"
        assert download_artifacts(run_id=version.run_id, artifact_path="reports/metrics.json")
    load_registered(project, settings, "challenger")
    assert not [path for path, content in contents(project / "mlruns").items() if b"hunter2" in content]
    assert [address for address in addresses(project) if f"{project}/mlruns/" not in unquote(address)] == []


def inspects(project) -> None:
    """Inspect a photograph with the champion."""
    photograph = project / "photo.jpg"
    photograph.write_bytes(line(seed=3, train=8, references=2)[-1].jpeg)
    done = subprocess.run([PINSPECT, "inspect", photograph], cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    photograph.unlink()


def test_a_renamed_project_inspects_registers_and_promotes(renamed, tmp_path):
    inspects(renamed)
    registers(renamed)
    promoted = subprocess.run([PINSPECT, "promote"], cwd=renamed, capture_output=True, text=True, check=False)
    assert promoted.returncode in (0, 3), promoted.stderr
    assert not (tmp_path / "first name").exists()


def test_a_copy_registers_in_the_copy_only(copied):
    original, copy, before = copied
    registers(copy)
    assert contents(original) == before
    assert all("/original/mlruns/" in address for address in addresses(original))


@pytest.mark.parametrize("way", ["moved", "copied"])
def test_a_shared_registry_that_was_moved_or_copied_inspects_from_its_new_folder(three_versions, tmp_path, way):
    project = shutil.copytree(three_versions, tmp_path / "project")
    with open_registry(project, load_register_settings(project)):
        pass
    shared = (project / "mlruns").rename(tmp_path / "shared")
    new = tmp_path / "new"
    for folder in (shared, new):
        set_values(project, "register", tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
        if folder == new:
            before = contents(shared)
            shared.rename(new) if way == "moved" else shutil.copytree(shared, new)
        with open_registry(project, load_register_settings(project)) as client:
            version = client.get_model_version_by_alias("pin-inspector", "champion")
            assert Path(download_artifacts(f"models:/pin-inspector/{version.version}")).is_relative_to(folder)
    inspects(project)
    assert way == "moved" or contents(shared) == before


def test_addresses_of_servers_and_of_other_stores_stay(tmp_path):
    database = tmp_path / "mlruns/mlflow.db"
    database.parent.mkdir()
    others = ["mlflow-artifacts:/1", "s3://bucket/mlruns/artifacts", "file:///mnt/large/artifacts"]
    old = "file:///somewhere/mlruns/artifacts"
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for table, column in TABLES.items():
            connection.execute(f"CREATE TABLE {table} ({column} TEXT)")
            rows = [(text,) for text in (*others, old, f"{old}/7/artifacts", f"{old}-other/7", None)]
            connection.executemany(f"INSERT INTO {table} VALUES (?)", rows[: 4 if table == "experiments" else None])
    bring_home(database)
    new = database.with_name("artifacts").as_uri()
    assert addresses(tmp_path)[:4] == [*others, new]
    assert addresses(tmp_path)[4:] == [*others, new, f"{new}/7/artifacts", f"{old}-other/7", None] * 3


def test_a_shared_registry_that_was_moved_is_read_where_it_lies(tmp_path):
    database = tmp_path / "renamed/mlflow.db"
    database.parent.mkdir()
    old, elsewhere = (tmp_path / "first/artifacts").as_uri(), (tmp_path / "other").as_uri()
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        for table, column in TABLES.items():
            connection.execute(f"CREATE TABLE {table} ({column} TEXT)")
            connection.executemany(f"INSERT INTO {table} VALUES (?)", [(old,), (elsewhere,)])
    (tmp_path / "first/artifacts").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "renamed/other").mkdir()
    stored = [old, elsewhere] * len(TABLES)

    def read() -> list[str]:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            return [
                row[0]
                for table, column in TABLES.items()
                for row in connection.execute(f"SELECT {column} FROM {table}")
            ]

    bring_home(database, shared=True)
    assert read() == stored, "the first place still has its artifacts"
    (tmp_path / "first").rename(tmp_path / "gone")
    bring_home(database, shared=True)
    assert read() == stored, "no artifacts lie beside the database"
    (tmp_path / "renamed/artifacts").mkdir()
    bring_home(database, shared=True)
    assert read() == [(tmp_path / "renamed/artifacts").as_uri(), elsewhere] * len(TABLES)


def test_a_locked_database_asks_to_try_again_later(three_versions, tmp_path):
    project = shutil.copytree(three_versions, tmp_path / "project")
    with contextlib.closing(sqlite3.connect(project_database(project), isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with (
            pytest.raises(RegistryUnreachableError, match=r"locked.*try again later"),
            open_registry(project, load_register_settings(project)),
        ):
            pass
