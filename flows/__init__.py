"""Prefect flows over the DVC stages: retrain, ingest, drift, promote, rollback.

A flow runs the code of the checkout that it lies in, wherever pinspect is installed from (a project of `pinspect new`
has no `src`: there it runs the installed code), and with the quiet, offline settings of `pinspect.core.environment`.
Libraries read those settings at their import, so this package sets them first. So does Prefect with `prefect.toml`,
which this package creates if the checkout lacks it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from flows.access import ensure_access
from pinspect.core import environment

environment.apply()
ensure_access(Path(__file__).resolve().parents[1])
