"""A project of `pinspect new` for tests: a git and DVC repository, with this checkout's pinspect installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from pinspect.cli.choices import read_choices
from pinspect.cli.new import make_project
from tests.support.checkout import Checkout
from tests.support.sample import ROOT

ANSWERS = {"--rows": "U,C,D", "--columns": "9", "--shapes": "CYLN", "--mode": "bend,retract,missing"}
PINSPECT = (sys.executable, "-c", "from pinspect.cli.main import main; main()")


class LineProject(Checkout):
    """A project of `pinspect new` in `root`."""

    @property
    def environment(self) -> dict[str, str]:
        """As that of a checkout, with this checkout's pinspect."""
        return super().environment | {"PYTHONPATH": str(ROOT / "src")}

    @property
    def captures(self) -> Path:
        """The folder of the captures."""
        return self.root / "data/captures"

    def add(self, source: Path) -> str:
        """Run `pinspect add` and return its output."""
        return self.must(*PINSPECT, "add", str(source))

    def start_add(self, source: Path, log: Path) -> subprocess.Popen:
        """Start `pinspect add`, with its errors in a file."""
        with log.open("w") as errors:
            return subprocess.Popen(
                [*PINSPECT, "add", str(source)], cwd=self.root, env=self.environment, stderr=errors, stdout=errors
            )

    def changes(self) -> set[str]:
        """Return what `git status` shows, a line for each file."""
        return set(self.must("git", "status", "--porcelain", "--untracked-files=all").splitlines())


def make_line_project(root: Path) -> LineProject:
    """Make a project without captures, and commit it."""
    make_project(root, read_choices(root, ANSWERS))
    project = LineProject(root)
    project.commit()
    return project
