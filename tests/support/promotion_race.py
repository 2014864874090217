"""Two checkouts that promote at the same moment: long-lived processes of `pinspect.registry.promotion.promote`.

python -m tests.support.promotion_race PROJECT NAME     # promotes once for each line on standard input
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlflow import MlflowClient

from pinspect.core import environment
from pinspect.core.errors import PinspectError
from pinspect.core.params import load_params
from pinspect.registry.promotion import promote
from pinspect.registry.settings import load_registry_settings
from pinspect.registry.versions import DECISION_TAG
from tests.support.evaluated_project import run_stage
from tests.support.evaluation_examples import answered
from tests.support.promotion_examples import BETTER, FAIR, evaluate_as, rows
from tests.support.sample import set_values

NAME = "pin-inspector"
OLD, NEW = "1", "2"
NAMES = ("A. Abe", "B. Baba")


def register_two(project: Path, folder: Path, **register: str) -> list[Path]:
    """Set values of the section `register` of a project, register versions 1 and 2, and return two copies of it."""
    set_values(project, "register", **register)
    for number, answer in enumerate((FAIR, BETTER), start=1):
        evaluate_as(project, number, answered(rows(), answer))
        run_stage("register", project)
    return [shutil.copytree(project, folder / f"checkout-{number}") for number in (1, 2)]


@contextmanager
def promoters(roots: list[Path]) -> Iterator[list[subprocess.Popen]]:
    """Run a process in each checkout during the context."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(root), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for root, name in zip(roots, NAMES, strict=True)
    ]
    try:
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def race(client: MlflowClient, processes: list[subprocess.Popen]) -> tuple[list[dict], list[str]]:
    """Let all processes promote version 2 over version 1 at the same moment.

    Returns:
        What each process answered: `promoted_by`, or `error`. And what is inconsistent afterwards, in words.
    """
    for alias in ("previous", "champion", "challenger"):
        client.delete_registered_model_alias(NAME, alias)
    if DECISION_TAG in client.get_model_version(NAME, NEW).tags:
        client.delete_model_version_tag(NAME, NEW, DECISION_TAG)
    client.set_registered_model_alias(NAME, "champion", OLD)
    client.set_registered_model_alias(NAME, "challenger", NEW)
    for process in processes:
        assert process.stdin
        process.stdin.write("promote\n")
        process.stdin.flush()
    answers = [json.loads(process.stdout.readline()) for process in processes if process.stdout]
    return answers, _faults(client, answers)


def _faults(client: MlflowClient, answers: list[dict]) -> list[str]:
    aliases = {alias: str(number) for alias, number in client.get_registered_model(NAME).aliases.items()}
    winners = [answer["promoted_by"] for answer in answers if "promoted_by" in answer]
    version = client.get_model_version(NAME, NEW)
    recorded = json.loads(version.tags[DECISION_TAG])["approved_by"]
    faults = []
    if aliases != {"champion": NEW, "previous": OLD}:
        faults.append(f"aliases {aliases}")
    if len(winners) != 1:
        faults.append(f"promoted by {winners}")
    if [recorded] != winners or f"approved by {recorded}" not in version.description:
        faults.append(f"promoted by {winners}, recorded: {recorded}, {version.description.splitlines()[2]}")
    return faults


def main(root: str, name: str) -> None:
    """Promote once for each line on standard input."""
    environment.apply()
    project = Path(root)
    params, settings = load_params(project / "params.yaml"), load_registry_settings(project)
    print("ready", flush=True)
    for _ in sys.stdin:
        try:
            decision = promote(project, params, settings, approve_by=name)
            decision.require()
            answer = {"promoted_by": decision.approved_by}
        except PinspectError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
