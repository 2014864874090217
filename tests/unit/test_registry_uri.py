"""Passwords in the registry's address stay out of files and messages."""

import pytest

from pinspect.core.errors import RegistryUnreachableError
from pinspect.registry.connection import open_registry, portable_uri, without_password
from pinspect.registry.settings import load_register_settings
from tests.support.sample import ROOT

SERVER = "http://team:hunter2@127.0.0.1:9"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (SERVER, "http://team:***@127.0.0.1:9"),
        ("postgresql+psycopg://team:hunter2@host/mlflow", "postgresql+psycopg://team:***@host/mlflow"),
        ("sqlite:////srv/mlflow.db", "sqlite:////srv/mlflow.db"),
        ("https://host:5000", "https://host:5000"),
    ],
)
def test_a_uri_is_shown_without_its_password(uri, shown):
    assert without_password(uri) == shown


def test_the_password_is_neither_in_the_registration_nor_in_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    settings = load_register_settings(ROOT)
    assert "hunter2" not in portable_uri(tmp_path, settings)
    with pytest.raises(RegistryUnreachableError) as caught, open_registry(tmp_path, settings):
        pass
    assert "hunter2" not in str(caught.value)
    assert "team" in str(caught.value)
