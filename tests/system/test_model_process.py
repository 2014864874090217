"""The model process: real captures, a real registry, real kills."""

import asyncio
import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from PIL import Image

from pinspect.composites.drawing import composite_size
from pinspect.core.errors import ImageError, ModelError, RegistryError, RegistryUnreachableError
from pinspect.core.params import load_params
from pinspect.inspection.records import Photograph, Task
from pinspect.model.families import composite_cell
from pinspect.registry.connection import open_registry
from pinspect.registry.settings import load_register_settings
from pinspect.registry.versions import load_registered
from pinspect.station.batches import Batches, InspectionRequest
from pinspect.station.champion import Champion
from pinspect.station.messages import ModelTimeoutError, ModelUnavailableError, QueueFullError
from pinspect.station.model_process import ModelProcess
from pinspect.station.results_database import STATION_FOLDER
from pinspect.station.settings import StationSettings
from tests.support.waiting import until

NAME = "pin-inspector"
PATIENCE = 600.0  # seconds, for busy machines
LIMIT = 8


@pytest.fixture(scope="module", autouse=True)
def versions(registered) -> None:
    """A project in which version 1 is challenger, no version is champion, and version 3 lacks a file."""
    with registry(registered) as client:
        client.delete_registered_model_alias(NAME, "champion")
        logged = client.get_logged_model(client.get_model_version(NAME, "3").source.removeprefix("models:/"))
    (Path(urlsplit(logged.artifact_location).path) / "artifacts/adapter/adapter_model.safetensors").unlink()


@pytest.fixture(scope="module")
def settings() -> StationSettings:
    return StationSettings(champion_check_seconds=1.0, queue=LIMIT)


@pytest.fixture(scope="module")
def process(registered, settings):
    """The model process, shared by the tests of this module; each test restores its state."""
    with ModelProcess(registered, settings) as started:
        yield started


@pytest.fixture(scope="module")
def loaded(registered, tmp_path_factory) -> Champion:
    """The registered version, loaded in this process."""
    champion = champion_of(registered, tmp_path_factory.mktemp("loaded"))
    champion.check()
    return champion


def champion_of(project: Path, state: Path) -> Champion:
    return Champion(project, load_register_settings(project), state)


def registry(project):
    return open_registry(project, load_register_settings(project))


def captures(project) -> list[Photograph]:
    return [Photograph(path.name, path.read_bytes()) for path in sorted((project / "data/captures/images").iterdir())]


def ask_all(process, photographs, timeout: float = PATIENCE) -> list[dict | Exception]:
    """Send all photographs at the same time; return an answer or an error for each."""

    async def ask():
        questions = [process.inspect(each.name, each.content, None, timeout) for each in photographs]
        return await asyncio.gather(*questions, return_exceptions=True)

    return asyncio.run(ask())


def ask(process, photograph, shape: str | None = None, timeout: float = PATIENCE) -> dict:
    return asyncio.run(process.inspect(photograph.name, photograph.content, shape, timeout))


def health(process):
    return asyncio.run(process.health(PATIENCE))


def wait_until(condition) -> None:
    """Wait until `condition()` is true; retry while the process restarts."""

    def state() -> bool:
        with contextlib.suppress(ModelUnavailableError):
            return bool(condition())
        return False

    until(state, "a state of the model process", PATIENCE)


def test_concurrent_captures_share_forward_passes_and_each_gets_its_own_answer(registered, process, loaded):
    photographs = captures(registered)[:LIMIT]
    before = health(process)
    records = ask_all(process, photographs)
    after = health(process)
    assert [record["file"] for record in records] == [each.name for each in photographs]
    assert (after.captures - before.captures) / (after.batches - before.batches) > 1
    for record, photograph in list(zip(records, photographs, strict=True))[::3]:
        (alone,) = loaded.version.inspector.inspect([Task(photograph)])
        assert record.pop("model_version") == "1"
        assert record.pop("seconds") > 0
        assert list(record) == list(alone)
        for name in ("p_defective", "address_entropy", "address_probabilities", "pin_map"):
            assert record.pop(name) == pytest.approx(alone.pop(name), abs=1e-4)
        assert record == alone


def test_health_reports_the_version_and_its_line_profile(registered, process):
    status = health(process)
    assert (status.version, status.alias, status.last_error, status.queue) == ("1", "challenger", None, 0)
    assert status.profile == json.loads((registered / "models/line_profile.json").read_text())


def test_only_the_capture_that_cannot_be_inspected_gets_an_error(registered, process):
    good = captures(registered)[0]
    flat = io.BytesIO()
    Image.new("RGB", (640, 260), "grey").save(flat, "PNG")
    records = ask_all(process, [good, Photograph("flat.png", flat.getvalue()), Photograph("text.jpg", b"no picture")])
    assert isinstance(records[2], ImageError)
    assert str(records[2]).startswith("text.jpg: not an image file")
    assert [bool(record["error"]) for record in records[:2]] == [False, True]
    assert records[1]["error"].startswith("flat.png: ") and "flat" in records[1]["error"]
    assert {record["model_version"] for record in records[:2]} == {"1"}


def test_the_process_that_prepares_and_the_one_that_answers_end_together(registered):
    photograph = captures(registered)[0]
    for victim_answers in (True, False):
        inspector = load_registered(registered, load_register_settings(registered), "1")
        prepared = inspector.prepare(Task(photograph))
        assert inspector.answer([prepared])[0]["file"] == photograph.name
        answering = psutil.Process(inspector._process.pid)
        (preparing,) = answering.children()
        victim, other = (answering, preparing) if victim_answers else (preparing, answering)
        victim.kill()
        until(lambda other=other: not is_running(other), "the end of the other process", PATIENCE)
        with pytest.raises(ModelError, match="has ended"):
            inspector.prepare(Task(photograph))


def is_running(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_specified_shape_is_used_and_an_unknown_shape_is_an_error(registered, process):
    photograph = captures(registered)[0]
    record = ask(process, photograph, "HEXA")
    assert "expected a shape of ['CYLN', 'SQUR'], found 'HEXA'" in record["error"]


def test_both_views_of_a_capture_are_shown_as_the_model_sees_them(registered, process, loaded):
    params = load_params(registered / "params.yaml")
    photograph = captures(registered)[0]
    seen = asyncio.run(process.pictures(photograph.name, photograph.content, None))
    assert list(seen) == ["RAW", "DST"]
    size = composite_size(params.layout.layout(), composite_cell(params))
    assert {Image.open(io.BytesIO(content)).size for content in seen.values()} == {size}
    prepared = loaded.version.inspector.prepare(Task(photograph))
    assert seen[params.evaluate.view] == prepared.pictures["inspected"]
    assert asyncio.run(process.pictures("text.jpg", b"no picture", None)) == {}


def test_captures_beyond_the_queue_are_refused_and_the_others_answered(registered, process):
    photographs = captures(registered)[:1] * 4 * LIMIT
    os.kill(process.pid, signal.SIGSTOP)  # all requests are queued before the first is processed
    try:
        futures = [process._ask("inspect", each.name, each.content, None, PATIENCE) for each in photographs]
    finally:
        os.kill(process.pid, signal.SIGCONT)
    errors = [future.exception(PATIENCE) for future in futures]
    refused = [error for error in errors if error]
    assert refused and {type(error) for error in refused} == {QueueFullError}
    assert errors.count(None) >= LIMIT
    assert "the queue is full (" in str(refused[0])


def test_a_late_answer_times_out_and_the_model_skips_its_capture(registered, process):
    photograph = captures(registered)[0]
    before = health(process).captures
    for error in ask_all(process, [photograph] * 4, timeout=0.001):
        assert isinstance(error, ModelTimeoutError)
    with pytest.raises(ModelTimeoutError):
        ask(process, photograph, timeout=0.001)
    ask(process, photograph)
    assert health(process).captures == before + 1


def test_a_failing_capture_does_not_affect_the_others_of_its_batch(registered, loaded, monkeypatch):
    """The composite of one capture is lost on its way to the model, as with a full disk."""
    inspector, photographs = loaded.version.inspector, captures(registered)[:3]
    prepare = inspector.prepare

    def prepare_and_spoil(task):
        prepared = prepare(task)
        if task.inspected.name == photographs[1].name:
            prepared.pictures["inspected"] = b"cut short"
        return prepared

    monkeypatch.setattr(inspector, "prepare", prepare_and_spoil)
    batches = Batches(loaded, 16, LIMIT)
    records: dict[str, dict] = {}
    for each in photographs:
        batches.submit(
            InspectionRequest(
                each, None, time.monotonic() + PATIENCE, lambda record, n=each.name: records.update({n: record})
            )
        )
    for _ in photographs:
        batches.prepare_next()
    batches.answer_next()
    errors = [records[each.name]["error"] for each in photographs]
    assert errors[0] is None and errors[2] is None
    assert errors[1].startswith(f"{photographs[1].name}: inspection failed (UnidentifiedImageError: ")
    assert batches.waiting == 0


def test_waiting_captures_fail_when_the_process_is_killed_and_it_restarts(registered, process, capfd):
    photograph, pid = captures(registered)[0], process.pid
    os.kill(pid, signal.SIGSTOP)
    waiting = [process._ask("inspect", photograph.name, photograph.content, None, PATIENCE) for _ in range(3)]
    os.kill(pid, signal.SIGKILL)
    for future in waiting:
        assert isinstance(future.exception(PATIENCE), ModelUnavailableError)
    with pytest.raises(ModelUnavailableError, match="try again"):
        ask(process, photograph)
    wait_until(lambda: health(process).version)
    assert process.pid != pid
    assert ask(process, photograph)["error"] is None
    assert "the model process has ended; it is started again" in capfd.readouterr().err


def test_a_process_that_hangs_is_killed_and_started_again(registered, capfd):
    with ModelProcess(registered, StationSettings(timeout_seconds=8)) as hanging:
        pid = hanging.pid
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: hanging.pid != pid)
    assert "the model process hangs" in capfd.readouterr().err


def test_a_champion_promoted_under_load_takes_over_between_batches(registered, process):
    photographs = captures(registered)[:4]
    versions = []
    first = asyncio.Event()

    async def keep_asking(photograph):
        while versions[-1:] != ["2"]:
            record = await process.inspect(photograph.name, photograph.content, None, PATIENCE)
            assert record["error"] is None
            versions.append(record["model_version"])
            first.set()

    async def load():
        asking = [asyncio.create_task(keep_asking(each)) for each in photographs]
        await first.wait()
        with registry(registered) as opened:
            opened.set_registered_model_alias(NAME, "champion", "2")
        await asyncio.wait_for(asyncio.gather(*asking), PATIENCE)

    asyncio.run(load())
    assert set(versions) == {"1", "2"}
    assert (health(process).version, health(process).alias) == ("2", "champion")


def test_a_broken_champion_is_reported_and_the_last_good_version_stays(registered, process):
    with registry(registered) as opened:
        opened.set_registered_model_alias(NAME, "champion", "3")
    wait_until(lambda: health(process).last_error)
    status = health(process)
    assert status.last_error.startswith(f"{NAME} version 3, the champion, cannot be loaded: ")
    assert "was changed or is incomplete" in status.last_error and "\n" not in status.last_error
    assert status.version == "2"
    photograph = captures(registered)[0]
    assert ask(process, photograph)["model_version"] == "2"


def test_a_process_that_starts_with_a_broken_champion_loads_the_last_good_version(registered, process, tmp_path):
    assert health(process).last_error  # the champion is still broken
    champion = champion_of(registered, registered / STATION_FOLDER)
    champion.check()
    assert champion.version.number == "2"
    assert "version 3" in str(champion.failure)
    nothing_known = champion_of(registered, tmp_path)
    nothing_known.check()
    assert nothing_known.version is None and "version 3" in str(nothing_known.failure)


def test_a_repaired_champion_is_loaded(registered, process):
    with registry(registered) as opened:
        opened.set_registered_model_alias(NAME, "champion", "1")
    wait_until(lambda: health(process).version == "1")
    assert health(process).last_error is None


def test_the_last_good_version_stays_while_the_registry_is_down(loaded, monkeypatch):
    version = loaded.version
    with monkeypatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        loaded.check()
        assert loaded.version.number == version.number
        assert isinstance(loaded.failure, RegistryUnreachableError)
    loaded.check()
    assert loaded.failure is None


def test_an_error_about_a_missing_version_shows_what_to_do(registered, settings, tmp_path):
    (tmp_path / "settings.yaml").write_bytes((registered / "settings.yaml").read_bytes())
    process = ModelProcess(tmp_path, settings)
    with pytest.raises(RegistryError, match="no version of pin-inspector has the alias challenger; run dvc repro"):
        process.start()
    assert not psutil.pid_exists(process.pid)


SCRIPT = """
import signal, sys, time
from pathlib import Path
from pinspect.station.model_process import ModelProcess
from pinspect.station.settings import StationSettings

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background commands without it
    try:
        with ModelProcess(Path(sys.argv[1]), StationSettings()) as process:
            print(process.pid, flush=True)
            time.sleep(1000)
    except KeyboardInterrupt:
        sys.exit(0)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_the_process_ends_with_its_parent_without_output(registered, tmp_path, number):
    script = tmp_path / "parent.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(registered)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    pid = int(parent.stdout.readline())
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)  # like Ctrl-C
    else:
        parent.kill()
    _, errors = parent.communicate(timeout=PATIENCE)  # the pipe closes once both processes have ended
    assert errors == ""
    wait_until(lambda: not psutil.pid_exists(pid))
