"""Settings of a whole process: quiet and offline third-party libraries, the garbage collector, freed memory.

Only entry points call `apply`: the command line, stages, flows and benchmarks. Importing pinspect, loading an inspector
or loading a registered model changes nothing in the caller's process.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import gc
import os

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # of mallopt
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_CLOUD_ENABLE_ORCHESTRATION_TELEMETRY": "false",
}


def apply() -> None:
    """Set each variable of `SETTINGS` that the environment does not define yet, and tune the garbage collector.

    Most libraries read these variables when they are imported, so an entry point calls this function first.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    tune_garbage_collector()


def tune_garbage_collector() -> None:
    """Make the collector search less often, and not at the end of the process.

    Imports make hundreds of thousands of objects that stay. Searching them for garbage takes a third of the time of a
    process that imports PyTorch and transformers, half of that at its end: docs/LOG.md, "Start-up".
    """
    gc.set_threshold(10_000)
    atexit.register(gc.freeze)


@functools.cache
def keep_freed_memory() -> None:
    """Make the C library keep some freed memory for the next image, where it is glibc.

    Otherwise glibc returns the arrays of each image to the system, which clears them again for the next image: a
    quarter of the time of aligning (docs/LOG.md, "Faster answers"). A process that works with large tables instead of
    images takes more memory with it.
    """
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, 16 << 20)
        libc.mallopt(_TRIM_THRESHOLD, 32 << 20)
