"""The stages of the pipeline, one module each; `python -m stages.train` runs one in the project's folder.

A stage runs the code of the checkout that it lies in, whatever version of pinspect is installed: an experiment of DVC
(`dvc exp run --temp`) is a checkout of its own. So this package puts its own `src` first on the import path, and then
sets what libraries read from the environment while they are imported. A project of `pinspect new` has no `src`: its
stages run the installed pinspect.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from pinspect.core import environment

environment.apply()
