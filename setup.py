"""Puts what a project is made of (`pinspect.cli.shipped`) into the wheel, as the folder `pinspect/shipped`."""

import runpy
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = runpy.run_path("src/pinspect/cli/shipped.py")


class BuildWithProject(build_py):
    """Builds the package; an editable installation uses the repository's own files."""

    def run(self) -> None:
        """Build, then add the files of a project."""
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "pinspect", SHIPPED["FOLDER"])
            shutil.rmtree(folder, ignore_errors=True)  # of an earlier build
            SHIPPED["copy_shipped"](Path(), folder, SHIPPED["ENTRIES"])


setup(cmdclass={"build_py": BuildWithProject})
