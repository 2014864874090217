"""The process of `inspector_process`: loads a packed model and inspects for the process that started this one.

A second process prepares captures for the first: Python runs one thread of a process at a time, and the model's threads
would wait for those that prepare. It is forked before PyTorch is imported, and loads the line at the first question.

Everything that both processes import of pinspect is the packed code of the model.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import multiprocessing.process
import os
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from functools import lru_cache, wraps
from multiprocessing.managers import BaseManager, Server
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

import cv2

from pinspect.core.environment import keep_freed_memory, tune_garbage_collector
from pinspect.core.errors import PinspectError
from pinspect.inspection.photograph_inspector import PhotographInspector

if TYPE_CHECKING:
    from pinspect.inspection.inspector import CaptureInspector

# What pandas, transformers and accelerate import where it is installed, and what no inspection uses: a sixth of the
# start, and 118 MB. `main` hides these packages, so what would import them is imported after that, by functions.
_UNUSED = ("boto3", "pyarrow", "scipy", "sklearn")
_METHODS = sorted(
    name for name in PhotographInspector.__abstractmethods__ if name != "max_pixels"
)  # what the other process may call
_WITHOUT_MODEL = ("pictures", "prepare")


class _Manager(BaseManager):
    """Serves the inspector; each connection has a thread of its own."""


def main() -> None:
    """Load the model, report so in one line of JSON on standard output, and serve until standard input closes."""
    folder, address, version = Path(sys.argv[1]), sys.argv[2], sys.argv[3] or None
    output = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not be taken for the report
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other process, which ends this one
    key = sys.stdin.readline().strip()
    tune_garbage_collector()
    keep_freed_memory()
    cv2.setNumThreads(1)  # more threads do not help with images this small
    cast(dict[str, object], sys.modules).update(dict.fromkeys(_UNUSED))  # as if they were not installed
    # Before the thread that reads standard input: a fork would copy the lock that the thread holds, and hang.
    preparing = _start_preparing(folder, f"{address}-preparing", key, output)  # while it lives, its socket has a file
    threading.Thread(target=_end_with_parent, args=(Path(address).parent,), daemon=True).start()
    try:
        report = _load(folder, version) | {"preparing": preparing.address}
        server = _Manager(address, key.encode()).get_server()
    except ModuleNotFoundError as error:
        report, server = {"error": type(error).__name__, "reason": str(error), "package": error.name}, None
    except Exception as error:  # damaged weights can make their loaders raise anything
        report, server = {"error": type(error).__name__, "reason": " ".join(str(error).split())}, None
    print(json.dumps(report), file=output, flush=True)
    if server:
        server.serve_forever()


def _load(folder: Path, version: str | None) -> dict[str, Any]:
    from pinspect.inspection.package import load_package, package_artifacts

    artifacts = package_artifacts(folder)
    inspector = _with_tracebacks(load_package(artifacts, version))
    _Manager.register("inspector", callable=lambda: inspector, exposed=_METHODS)
    profile = artifacts.get("line_profile")
    return {
        "max_pixels": inspector.max_pixels,
        "profile": json.loads(profile.read_text(encoding="utf-8")) if profile else None,
    }


def _start_preparing(folder: Path, address: str, key: str, output: TextIO) -> Server:
    """Start the process that prepares captures; each of the two processes ends when the other one has ended."""
    from pinspect.inspection.package import load_package, package_artifacts

    @lru_cache
    def load() -> PhotographInspector:
        return _with_tracebacks(load_package(package_artifacts(folder), with_model=False))

    _Manager.register("preparer", callable=load, exposed=_WITHOUT_MODEL)
    server = _Manager(address, key.encode()).get_server()
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_serve_preparing, args=(server, output), name="pinspect-preparing", daemon=True)
    gc.freeze()  # so that a search for garbage in one process copies no memory of the other
    process.start()
    threading.Thread(target=_end_with, args=(process,), daemon=True).start()
    return server


def _serve_preparing(server: Server, output: TextIO) -> None:
    output.close()  # its reader waits until nobody can write
    parent = multiprocessing.process.parent_process()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    server.serve_forever()


def _end_with(process: multiprocessing.process.BaseProcess) -> None:
    process.join()
    os._exit(1)


def _with_tracebacks(inspector: CaptureInspector) -> CaptureInspector:
    for name in _METHODS:
        setattr(inspector, name, _with_traceback(getattr(inspector, name)))
    return inspector


def _with_traceback(method: Callable[..., Any]) -> Callable[..., Any]:
    """Add the traceback to an unexpected error: tracebacks do not pass between processes, notes do."""

    @wraps(method)
    def call(*arguments: object) -> object:
        try:
            return method(*arguments)
        except PinspectError:
            raise
        except Exception as error:
            error.add_note(traceback.format_exc())
            raise

    return call


def _end_with_parent(scratch: Path) -> None:
    sys.stdin.read()
    shutil.rmtree(scratch, ignore_errors=True)  # the other process was killed, or did not wait for its finalizers
    os._exit(0)


if __name__ == "__main__":
    main()
