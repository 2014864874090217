"""Notices of events: one webhook, which never fails what it is about."""

import logging
import shutil

import pytest

from pinspect.core.errors import ParamsError
from pinspect.registry.notices import notify
from pinspect.registry.settings import load_notify_settings
from tests.support.mlflow_server import free_port
from tests.support.receivers import http_receiver
from tests.support.sample import ROOT, set_values


@pytest.fixture
def project(tmp_path):
    shutil.copyfile(ROOT / "settings.yaml", tmp_path / "settings.yaml")
    return tmp_path


def send(project) -> bool:
    return notify(project, "failed", "failed-1", "retrain: failed", {"stage": "raw"}, pauses=(0.01, 0.01))


def test_a_notice_is_sent_to_the_webhook_of_the_settings(project):
    with http_receiver() as receiver:
        set_values(project, "notify", webhook=receiver.url)
        assert send(project)
    document = receiver.documents[0]
    assert document.pop("time").endswith("+00:00")
    assert document == {
        **{"event": "failed", "id": "failed-1", "project": "pin-inspector", "text": "retrain: failed"},
        **{"details": {"stage": "raw"}},
    }
    assert receiver.keys == ["failed-1"]
    assert receiver.tokens == [None]


def test_an_id_with_any_letter_is_sent(project, monkeypatch):
    with http_receiver() as receiver:
        monkeypatch.setenv("PINSPECT_NOTIFY_WEBHOOK", receiver.url)
        assert notify(project, "promoted", "promoted-ライン", "promoted", {})
    assert receiver.documents[0]["id"] == "promoted-ライン"
    assert receiver.keys[0].isascii()


def test_an_address_and_a_token_of_the_environment_take_precedence(project, monkeypatch):
    with http_receiver() as receiver:
        set_values(project, "notify", webhook="http://127.0.0.1:9/")
        monkeypatch.setenv("PINSPECT_NOTIFY_WEBHOOK", receiver.url)
        monkeypatch.setenv("PINSPECT_NOTIFY_TOKEN", "secret")
        assert send(project)
    assert receiver.tokens == ["Bearer secret"]


def test_a_refused_notice_is_sent_again_with_the_same_id(project, monkeypatch):
    with http_receiver() as receiver:
        monkeypatch.setenv("PINSPECT_NOTIFY_WEBHOOK", receiver.url)
        receiver.statuses = [500, 500]
        assert send(project)
    assert receiver.keys == ["failed-1"] * 3


def test_without_a_webhook_nothing_is_sent(project):
    assert not send(project)


def test_a_notice_that_nobody_takes_is_logged_and_raises_nothing(project, monkeypatch, caplog):
    monkeypatch.setenv("PINSPECT_NOTIFY_WEBHOOK", f"http://127.0.0.1:{free_port()}/path-with-a-secret")
    with caplog.at_level(logging.WARNING):
        assert not send(project)
    assert "no notice of the event 'failed' was sent: http://127.0.0.1:" in caplog.text
    assert "path-with-a-secret" not in caplog.messages[0]


def test_an_address_that_is_none_is_a_mistake_in_the_settings(project):
    set_values(project, "notify", webhook="chat")
    with pytest.raises(ParamsError, match=r"notify.webhook: string should match pattern"):
        load_notify_settings(project)
