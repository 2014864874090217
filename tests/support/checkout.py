"""A git and DVC repository with the project's code and few captures, and commands that run in it."""

from __future__ import annotations

import compileall
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil

from pinspect.core import environment
from pinspect.core.params import Params, load_params
from tests.support.sample import ROOT, drop, line, set_values

SHAPE = ("CYLN",)
IDENTITY = ("-c", "user.name=line", "-c", "user.email=line@example.com")  # of commits


class Checkout:
    """A checkout in `root`."""

    def __init__(self, root: Path):
        self.root = root

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a process that works in the checkout; the Prefect server is the present one."""
        return (
            {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            | environment.SETTINGS
            | {
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "PWD": str(self.root),
                "DVC_SITE_CACHE_DIR": str(self.root / ".dvc/tmp/site"),
                "OMP_NUM_THREADS": "1",
                "GIT_CONFIG_GLOBAL": os.devnull,
            }
        )

    def run(self, *command: str, **variables: str) -> subprocess.CompletedProcess:
        """Run a command in the checkout and capture its output; any exit code is accepted."""
        return subprocess.run(
            command, cwd=self.root, env=self.environment | variables, capture_output=True, text=True, check=False
        )

    def must(self, *command: str, **variables: str) -> str:
        """Run a command that must exit with 0, and return its output."""
        done = self.run(*command, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start_retrain(self, log: Path, retries: int = 9) -> subprocess.Popen:
        """Start the flow as a process, without delays between tries."""
        code = f"from flows.retrain import retrain; retrain('.', {retries}, 0)"
        with log.open("a") as output:
            return subprocess.Popen(
                [sys.executable, "-c", code], cwd=self.root, env=self.environment, stdout=output, stderr=output
            )

    def copy(self, root: Path) -> Checkout:
        """Copy the project; the copy has its own empty registry."""
        shutil.copytree(self.root, root, symlinks=True, ignore=shutil.ignore_patterns("mlruns", "site", "retrain"))
        return Checkout(root)

    def set_param(self, section: str, **values: object) -> None:
        """Change values in a section of params.yaml or settings.yaml."""
        set_values(self.root, section, **values)

    def commit(self) -> None:
        """Commit all files that git does not ignore."""
        self.must("git", "add", "--all")
        self.must("git", *IDENTITY, "commit", "--quiet", "--allow-empty", "--message", "All files")

    def params(self) -> Params:
        """Read params.yaml."""
        return load_params(self.root / "params.yaml")

    def stale(self) -> str:
        """Return what `dvc status` prints about the stages; empty if all are up to date."""
        output = self.must("dvc", "status")
        return "" if "up to date" in output else output

    def processes(self) -> list[psutil.Process]:
        """Return every process that works in the checkout."""
        return [process for process in psutil.process_iter() if _works_in(process, self.root)]

    def files(self) -> dict[str, int]:
        """Return the modification time of each file."""
        return {str(path): path.stat().st_mtime_ns for path in self.root.rglob("*") if path.is_file()}


def make_checkout(root: Path) -> Checkout:
    """Make a checkout in which nothing has run yet.

    It has 8 inspected captures and 3 references of one shape, a base that was never trained, an adapter of two steps.
    """
    from pinspect.pretraining.base import new_base, save_base
    from tests.support.evaluated_project import write_params

    for name in (".gitignore", "data/.gitignore", "models/.gitignore", "reports/.gitignore", ".dvcignore", "dvc.yaml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    for name in ("src/pinspect", "stages", "flows"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "models/start").mkdir()
    (root / "models/start/.gitkeep").touch()
    write_params(root)
    checkout = Checkout(root)
    checkout.set_param("model", checkpoint="models/base")
    checkout.set_param("answers", shapes=list(SHAPE))
    checkout.set_param("dst", minimum_references=3, stride=3)
    checkout.set_param("chat", views=["RAW"])
    checkout.set_param("evaluate", decodings=["constrained"])
    drop(root / "data/captures", captures()[:11])
    model, processor, words = new_base(checkout.params().layout.layout(), seed=0)
    save_base(model, processor, words, root / "models/base")
    checkout.must("git", "init", "--quiet")
    checkout.must("dvc", "init", "--quiet")
    return checkout


def make_prepared(root: Path) -> None:
    """Make a checkout, run its stages in this process, which is faster than `dvc repro`, and let DVC record them."""
    from tests.support.evaluated_project import STAGES, run_stage

    checkout = make_checkout(root)
    for stage in (*STAGES, "register"):
        run_stage(stage, root)
    for name in ("src", "stages", "flows"):
        compileall.compile_dir(root / name, quiet=1)  # otherwise each copy compiles it again
    checkout.must("dvc", "commit", "--force")
    assert checkout.stale() == ""


def captures() -> list:
    """Return 16 captures of a small line: 3 references, then 13 to inspect."""
    return list(line(seed=8, train=13, references=3, shapes=SHAPE))


def _works_in(process: psutil.Process, root: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(root)
    except psutil.Error:
        return False
