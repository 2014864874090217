"""An inspector in a process of its own, which runs the code that was packed with the model.

A version answers with the code that it was registered and examined with, whatever code its caller has. What passes
between the two processes are the values of `inspection.records`, so they have to stay readable for older versions.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from functools import cached_property
from multiprocessing.managers import BaseManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pinspect.core import errors
from pinspect.core.errors import ModelError
from pinspect.inspection.package import CODE
from pinspect.inspection.photograph_inspector import PhotographInspector
from pinspect.inspection.records import Inspection, Photograph, Prepared, Record, Task

_SERVER = "pinspect.inspection.inspector_server"
_LONGEST_ADDRESS = 103  # bytes of a Unix socket's path on macOS; Linux has 107
_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",  # the products of an alignment are so small that a second thread only waits
    "MALLOC_ARENA_MAX": "2",  # heaps of glibc, each of which keeps freed memory: by default one a thread
}


class _Manager(BaseManager):
    """Reaches the inspector of the other process; see the standard library's `multiprocessing.managers`."""


_Manager.register("inspector")
_Manager.register("preparer")


class InspectorProcess(PhotographInspector):
    """Inspects photographs in a process that runs the code of a packed model.

    The process ends with this object, and with the process that made it, even if that one is killed.

    Attributes:
        version: Number of the registered version; None for a model from a folder.
        profile: The content of line_profile.json; None if the model has none.
    """

    profile: Mapping[str, Any] | None

    def __init__(
        self,
        folder: Path,
        version: str | None = None,
        scratch: tempfile.TemporaryDirectory[str] | None = None,
    ) -> None:
        """Start the process and wait until its model is loaded.

        Args:
            folder: The folder of the packed model, with its code (`package.CODE`).
            version: Number of the registered version.
            scratch: A temporary folder to take over, such as one with `folder` in it; it is removed with the process.

        Raises:
            PinspectError: The model cannot be loaded, with the reason.
            ModuleNotFoundError: A package that the model needs is not installed.
        """
        self.version = version
        scratch = scratch or tempfile.TemporaryDirectory(prefix="pinspect-")
        key, address = secrets.token_hex(32), f"{scratch.name}/socket"
        if len(os.fsencode(f"{address}-preparing")) > _LONGEST_ADDRESS:  # the longer one of two
            scratch.cleanup()
            raise ModelError(
                f"{scratch.name}: too long for the path of a socket; set TMPDIR to a folder with a shorter path"
            )
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", _SERVER, str(folder.resolve()), address, version or ""],
            env=_ENVIRONMENT
            | os.environ
            | {"PYTHONPATH": os.pathsep.join([str(folder.resolve() / CODE), os.environ.get("PYTHONPATH", "")])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._finalizer = weakref.finalize(self, _end, self._process, scratch)
        reply = self._start(key)
        if error := reply.get("error"):
            self.close()
            raise _error(folder, error, reply)
        self.profile = reply["profile"]
        self._max_pixels = int(reply["max_pixels"])
        self._remote = _connect(address, key).inspector()
        self._preparing = reply.get("preparing"), key

    @property
    def max_pixels(self) -> int:
        """The largest photograph that is accepted, in px."""
        return self._max_pixels

    @property
    def ended(self) -> bool:
        """Whether the process has ended, because it was killed or ran out of memory."""
        return self._process.poll() is not None

    def close(self) -> None:
        """End the process."""
        self._finalizer()

    def inspect_photograph(self, photograph: Photograph, shape: str | None = None) -> Inspection:
        """See `PhotographInspector`."""
        return self._call("inspect_photograph", photograph, shape)

    def inspect_photographs(self, photographs: Sequence[Photograph], shape: str | None = None) -> list[Inspection]:
        """See `PhotographInspector`."""
        return self._call("inspect_photographs", photographs, shape)

    def inspect(self, tasks: Sequence[Task]) -> list[Record]:
        """See `PhotographInspector`."""
        return self._call("inspect", tasks)

    def prepare(self, task: Task) -> Prepared:
        """See `PhotographInspector`."""
        return self._call("prepare", task, remote=self._preparer)

    def answer(self, prepared: Sequence[Prepared]) -> list[Record]:
        """See `PhotographInspector`."""
        return self._call("answer", prepared)

    def pictures(self, photograph: Photograph, shape: str | None = None) -> dict[str, bytes]:
        """See `PhotographInspector`."""
        return self._call("pictures", photograph, shape, remote=self._preparer)

    def locate_pin(self, photograph: Photograph, address: str, shape: str | None = None) -> npt.NDArray[np.float64]:
        """See `PhotographInspector`."""
        return self._call("locate_pin", photograph, address, shape)

    def try_out(self) -> None:
        """See `PhotographInspector`."""
        self._call("try_out")
        _ = self._preparer

    @cached_property
    def _preparer(self) -> Any:
        """The inspector that prepares; versions of older code prepare where they answer."""
        address, key = self._preparing
        return _connect(address, key).preparer() if address else self._remote

    def _start(self, key: str) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        try:
            self._process.stdin.write(f"{key}\n")
            self._process.stdin.flush()  # it stays open: when this process ends it closes, and the other one ends, too
            return json.loads(self._process.stdout.readline())
        except (OSError, ValueError):  # the process has ended, or was never able to start
            return {"error": "ModelError", "reason": f"the process that loads it has ended ({self._process.wait()})"}

    def _call(self, method: str, *arguments: object, remote: Any = None) -> Any:
        try:
            return getattr(remote or self._remote, method)(*arguments)
        except (EOFError, ConnectionError):
            raise ModelError(
                f"the process of the model has ended (exit code {self._process.wait()}); load the model again"
            ) from None


def _connect(address: str, key: str) -> Any:
    manager = _Manager(address, key.encode())
    manager.connect()
    return manager  # with the methods that `register` has made


def _end(process: subprocess.Popen[str], scratch: tempfile.TemporaryDirectory[str]) -> None:
    process.kill()
    process.communicate()
    scratch.cleanup()


def _error(folder: Path, name: str, reply: Mapping[str, str]) -> Exception:
    if name == ModuleNotFoundError.__name__:
        return ModuleNotFoundError(reply["reason"], name=reply["package"])
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, errors.PinspectError):
        return kind(reply["reason"])
    return ModelError(f"{folder}: cannot be loaded ({name}: {reply['reason']})")
