"""The learning curve on a tracking server, while a training runs."""

from pinspect.model.live_log import live_log


def test_without_a_server_nothing_is_logged(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with live_log("line") as log:
        assert log is None


def test_a_server_that_does_not_answer_is_a_warning_and_the_training_goes_on(monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with live_log("line") as log:
        log(1, {"step": 1, "loss": 2.5})
    (record,) = caplog.records
    assert "the learning curve is not logged any more" in record.getMessage()
    assert "\n" not in record.getMessage()
