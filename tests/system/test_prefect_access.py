"""Nobody but the project's user gets a command run by `make server` and `make worker`, tried with a real browser."""

import json
import signal
import stat
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest
import requests
from playwright.sync_api import sync_playwright
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from flows.access import ensure_access
from tests.support.browser import CHROMIUM
from tests.support.checkout import make_checkout
from tests.support.flow_stack import auth_string, deploy, working
from tests.support.mlflow_server import free_port
from tests.support.sample import ROOT
from tests.support.waiting import SECONDS, until

ATTACK = """async ([api, marker]) => {
    const get = async path => (await fetch(api + path)).json();
    const post = async (path, body, headers) =>
        (await fetch(api + path, {method: "POST", body: JSON.stringify(body), headers})).json();
    const json = {"Content-Type": "application/json"};
    const attempts = [];
    for (const headers of [json, {}]) {
        try {
            const token = await get("/csrf-token?client=page").catch(() => ({}));
            const extra = {...headers, "Prefect-Csrf-Token": token.token || "", "Prefect-Csrf-Client": "page"};
            const target = await get("/deployments/name/promote/promote");
            const run = {name: "attack", state: {type: "SCHEDULED"}, job_variables: {command: "touch " + marker}};
            attempts.push((await post(`/deployments/${target.id}/create_flow_run`, run, extra)).name);
        } catch (error) { attempts.push(String(error)); }
    }
    return attempts;
}"""
RUN = "from prefect.deployments import run_deployment; print(run_deployment('promote/promote', timeout=900).state.name)"


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return make_checkout(tmp_path_factory.mktemp("guarded") / "line")


@pytest.fixture(scope="module")
def password_of_the_file():
    """Only `prefect.toml` names the password, even if an earlier test has set a variable for its own server."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PREFECT_API_AUTH_STRING", raising=False)
        yield


@pytest.fixture(scope="module")
def ports() -> dict[str, str]:
    return {"PREFECT_PORT": str(free_port()), "MLFLOW_PORT": str(free_port())}


@pytest.fixture(scope="module")
def servers(checkout, ports, password_of_the_file, tmp_path_factory):
    """A running `make server`."""
    folder = tmp_path_factory.mktemp("servers")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.servers"],
            cwd=checkout.root,
            env=checkout.environment | ports | {"PREFECT_HOME": str(folder / "home")},
            stdout=log,
            stderr=log,
        )
    try:
        for port, path in ((ports["PREFECT_PORT"], "/api/health"), (ports["MLFLOW_PORT"], "/health")):
            until(lambda address=f"http://127.0.0.1:{port}{path}": _answers(address), f"the server on port {port}")
        yield process
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def variables(checkout, ports, servers, tmp_path_factory):
    """The variables of a client of the servers, with a `make worker` beside them."""
    folder = tmp_path_factory.mktemp("client")
    client = {
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_API_URL": f"http://127.0.0.1:{ports['PREFECT_PORT']}/api",
    }
    deploy(checkout, {}, **client)
    with working(checkout, folder / "worker.log", **client):
        yield client


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page of another origin on the same machine, as a tab that the user has open."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "index.html").write_text("<!doctype html><title>Elsewhere</title>")
    elsewhere = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=folder))
    threading.Thread(target=elsewhere.serve_forever, daemon=True).start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        opened = browser.new_page()
        opened.goto(f"http://127.0.0.1:{elsewhere.server_port}/")
        yield opened
        browser.close()
    elsewhere.shutdown()


def test_a_page_of_another_origin_runs_no_command_and_the_worker_still_runs_deployments(
    checkout, variables, page, tmp_path
):
    marker = tmp_path / "executed"
    attempts = page.evaluate(ATTACK, [variables["PREFECT_API_URL"], str(marker)])
    # The worker takes runs in turn: once it has run a later one, it has taken all earlier ones.
    state = checkout.must(sys.executable, "-c", RUN, **variables).split()[-1]
    assert not marker.exists()
    assert all("Failed to fetch" in attempt for attempt in attempts), attempts
    assert state in ("Refused", "Failed")  # `promote` in a project without versions


def test_not_even_the_user_can_give_a_run_a_command(checkout, variables, tmp_path):
    marker = tmp_path / "executed"
    code = f"""
from prefect.deployments import run_deployment
run = run_deployment("promote/promote", timeout=900, job_variables={{"command": "touch {marker}"}})
print(run.state.name)
"""
    checkout.run(sys.executable, "-c", code, **variables)
    assert not marker.exists()


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Basic cGluc3BlY3Q6Z3Vlc3M="}, {"Host": "attacker.example:4200"}, {"Origin": "http://a.b"}],
    ids=["no password", "a wrong password", "another host name", "another origin"],
)
def test_the_api_refuses_strangers(variables, headers):
    answer = requests.post(f"{variables['PREFECT_API_URL']}/deployments/filter", json={}, headers=headers, timeout=60)
    assert answer.status_code in (401, 403)


def test_the_password_is_not_enough_for_a_page_of_another_origin_or_host(checkout, variables):
    user, password = auth_string(checkout.root).split(":")
    ask = partial(requests.get, f"{variables['PREFECT_API_URL']}/admin/version", auth=(user, password), timeout=60)
    assert ask().status_code == 200
    for header in ({"Host": "attacker.example"}, {"Origin": "http://127.0.0.1:9"}, {"Origin": "null"}):
        assert ask(headers=header).status_code == 403


def test_a_web_socket_of_another_origin_is_refused(variables):
    address = variables["PREFECT_API_URL"].replace("http:", "ws:") + "/events/in"
    with (
        pytest.raises(InvalidStatus, match="403"),
        connect(address, additional_headers={"Origin": "http://attacker.example"}),
    ):
        pass


def test_the_password_is_made_once_and_only_its_owner_can_read_it(tmp_path):
    path = ensure_access(tmp_path)
    content = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert ensure_access(tmp_path).read_text() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in tmp_path.iterdir()] == ["prefect.toml"]
    assert auth_string(tmp_path).startswith("pinspect:")


def test_the_password_is_not_committed(checkout):
    ensure_access(checkout.root)
    assert "prefect.toml" not in checkout.must("git", "status", "--porcelain", "--untracked-files=all")


def test_the_job_template_has_no_command_no_folder_and_no_variables():
    template = json.loads((ROOT / "flows/job_template.json").read_text())
    assert template["variables"]["properties"] == {}
    assert not {"command", "working_dir"} & set(template["job_configuration"])


def test_one_signal_ends_both_servers(servers):
    processes = psutil.Process(servers.pid).children(recursive=True)
    servers.send_signal(signal.SIGINT)
    assert servers.wait(SECONDS) == 0
    assert not [process for process in processes if process.is_running()]


def _answers(address: str) -> bool:
    try:
        return requests.get(address, timeout=5).ok
    except requests.RequestException:
        return False
