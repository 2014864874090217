"""Reads Dockerfile, .dockerignore and compose.yaml, and does what they say on this machine, without an engine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml
from docker.utils.build import exclude_paths

from tests.support.sample import ROOT

PODMAN_COMPOSE = Path(sys.executable).with_name("podman-compose")


@dataclass(frozen=True)
class Stage:
    """A stage of the Dockerfile: its name, the stage or image that it starts from, its other instructions in order."""

    name: str
    base: str
    instructions: tuple[tuple[str, str], ...]

    def last(self, keyword: str) -> str:
        """Return the text of the last instruction with `keyword`."""
        return [text for found, text in self.instructions if found == keyword][-1]


@cache
def stages() -> dict[str, Stage]:
    """Return the stages of the Dockerfile by name."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    instructions = [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line]
    starts = [number for number, (keyword, _) in enumerate(instructions) if keyword == "FROM"]
    found = {}
    for start, end in zip(starts, [*starts[1:], None], strict=True):
        base, _, name = instructions[start][1].split()
        found[name] = Stage(name, base, tuple(instructions[start + 1 : end]))
    return found


def build_order(target: str) -> list[Stage]:
    """Return the stages that a target is built from, each after those that it needs."""
    stage = stages()[target]
    needed = [stage.base] if stage.base in stages() else []
    needed += [
        text.split()[0].removeprefix("--from=") for keyword, text in stage.instructions if _is_from_stage(keyword, text)
    ]
    order: list[Stage] = []
    for name in needed:
        order += [earlier for earlier in build_order(name) if earlier not in order]
    return [*order, stage]


def context_files(root: Path = ROOT) -> set[str]:
    """Return the files below `root` that .dockerignore lets into the build, by the code of Docker's Python client."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    return {path for path in exclude_paths(str(root), patterns) if (root / path).is_file()}


class Image:
    """What the stages of a target leave in `/opt/pinspect`, made by their RUN and COPY lines in a folder.

    Absolute paths of the image lie below `root`. All stages share them, because each copies to where it copies from.

    Args:
        root: An empty folder.
        target: A stage.

    Attributes:
        skipped: The commands that were not run, because they need root or another machine.
    """

    def __init__(self, root: Path, target: str):
        self.root = root
        self.skipped: list[str] = []
        self._arguments: dict[str, str] = {}
        for stage in build_order(target):
            self._build(stage)

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a process in the image; `python` is the one that this environment was made with."""
        inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        folders = [self.root / "opt/pinspect/bin", Path(sys.base_prefix, "bin"), "/usr/bin", "/bin"]
        return inherited | {"PATH": os.pathsep.join(map(str, folders)), "PYTHONUNBUFFERED": "1"}

    def _build(self, stage: Stage) -> None:
        folder = self.root
        for keyword, text in stage.instructions:
            if keyword == "ARG":
                name, _, value = text.partition("=")
                self._arguments.setdefault(name, value)
            elif keyword == "WORKDIR":
                folder = self.root / text.removeprefix("/")
                folder.mkdir(parents=True, exist_ok=True)
            elif keyword == "COPY" and _is_from_stage(keyword, text):
                _, source, target = text.split()
                assert source == target
            elif keyword == "COPY":
                self._copy(text.split()[:-1], folder)
            elif keyword == "RUN" and text.startswith("useradd"):
                self.skipped.append(text)
            elif keyword == "RUN":
                self._run(text, folder)

    def _copy(self, names: list[str], folder: Path) -> None:
        for path in sorted(context_files()):
            if names == ["."] or path in names:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / path, folder / path)

    def _run(self, command: str, folder: Path) -> None:
        here = re.sub(r"(?<=\s)/(opt|wheel)\b", rf"{self.root}/\1", command)
        # Where PyTorch's index cannot be reached, pip needs another source of its CPU build (PIP_FIND_LINKS).
        variables = self.environment | self._arguments | {"PIP_RETRIES": "0"}
        done = subprocess.run(
            ["sh", "-c", here], cwd=folder, env=variables, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{(done.stdout + done.stderr)[-3000:]}"


def command_of(stage: Stage) -> list[str]:
    """Return the command of the containers of a stage."""
    return json.loads(stage.last("CMD"))


def health_check_of(stage: Stage) -> list[str]:
    """Return the command that checks a container of a stage."""
    return json.loads(stage.last("HEALTHCHECK").split("CMD", maxsplit=1)[1])


def composed(environment: Path, *files: str) -> subprocess.CompletedProcess:
    """Let podman-compose read compose.yaml with an .env file; its output is YAML with all variables in place."""
    options = [option for file in ("compose.yaml", *files) for option in ("--file", file)]
    command = [PODMAN_COMPOSE, "--dry-run", *options, "--env-file", environment, "config"]
    return subprocess.run(command, cwd=ROOT, env=_plain(), capture_output=True, text=True, check=False)


def services(environment: Path, *files: str) -> dict[str, dict]:
    """Return the services of compose.yaml with an .env file, with all variables in place."""
    done = composed(environment, *files)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)["services"]


def env_file(path: Path, values: Mapping[str, str]) -> Path:
    """Write .env.example with these values to `path`."""
    text = (ROOT / ".env.example").read_text()
    for name, value in values.items():
        text, found = re.subn(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
        assert found == 1, name
    path.write_text(text)
    return path


def read_env(path: Path) -> dict[str, str]:
    """Return the variables of a file of NAME=VALUE lines, such as systemd and compose read."""
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", maxsplit=1) for line in lines)


def _is_from_stage(keyword: str, text: str) -> bool:
    return keyword == "COPY" and text.startswith("--from=")


def _plain() -> dict[str, str]:
    """Return this environment without variables that would take precedence over an .env file."""
    names = read_env(ROOT / ".env.example")
    return {name: value for name, value in os.environ.items() if name not in names}
