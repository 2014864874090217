"""Runs a stage of the pipeline, and fails it if one of its inputs changes meanwhile.

DVC records what a stage depends on after the stage has ended. Without this check, a capture that arrives while `raw`
runs would count as learned, and a parameter edited while `train` runs would be recorded beside the old adapter.

A stage ends with the `dvc` that started it, and runs once at a time. Otherwise the stage of a killed `dvc` would work
on, and overwrite outputs that a later run has recorded.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, TextIO, cast

import psutil
import yaml

from pinspect.core.code import require_code
from pinspect.core.errors import InputChangedError, run
from pinspect.core.locks import only_process
from pinspect.core.runs import read_run_facts, write_run_facts

_PIPELINE = "dvc.yaml"
_NAMES_SHOWN = 3
_STARTED_BY_DVC = "DVC_STAGE"  # the variable that DVC sets for the commands of stages
_RANK = "LOCAL_RANK"  # the number of a process of a training in several processes, which belong together


def run_stage(name: str, main: Callable[[], None]) -> None:
    """Run a stage in the current folder as `core.errors.run` does, watch its inputs, and record its duration.

    The stage does not begin if the running code is not that of the project's `code.yaml`. The duration is the fact
    `stage_seconds` of the run, without the start of Python.

    Args:
        name: The stage's name in `dvc.yaml`.
        main: Does the stage's work.
    """
    run(lambda: _timed(name, main, Path()))


def _timed(name: str, main: Callable[[], None], root: Path) -> None:
    if _STARTED_BY_DVC in os.environ:
        threading.Thread(target=_end_with, args=(_dvc(),), daemon=True).start()
    if os.environ.get(_RANK, "0") != "0":
        main()
        return
    require_code(root)
    with only_process(root / f"build/{name}.lock", f"waiting for another run of the stage {name}"):
        begun = time.perf_counter()
        watch_inputs(name, main, root)
        facts = read_run_facts(root, name) | {"stage_seconds": round(time.perf_counter() - begun, 1)}
        write_run_facts(root, name, facts)


def _dvc() -> psutil.Process:
    """Return the `dvc` that started this stage: a shell such as dash, or `torchrun`, can stand between the two."""
    ancestors = psutil.Process().parents()
    return next((process for process in ancestors if _STARTED_BY_DVC not in _environment(process)), ancestors[0])


def _environment(process: psutil.Process) -> Mapping[str, str]:
    try:
        return process.environ()
    except psutil.Error:  # another user's process, which is above dvc
        return {}


def _end_with(dvc: psutil.Process) -> None:
    """End this process when its `dvc` has ended; by then no process reads its output."""
    with suppress(psutil.NoSuchProcess):
        while dvc.is_running() and dvc.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.2)
    os._exit(InputChangedError.exit_code)


def watch_inputs(name: str, main: Callable[[], None], root: Path) -> None:
    """Call `main`, and compare the inputs of a stage before and after.

    Args:
        name: The stage's name in `dvc.yaml`.
        main: Does the stage's work.
        root: The project's folder. Without a `dvc.yaml` nothing is compared.

    Raises:
        InputChangedError: A dependency or a parameter of the stage has changed meanwhile. If none has, an error of
            `main` is raised as it is.
    """
    failure: Exception | None = None
    with TemporaryFile("w+", dir=root) as before, TemporaryFile("w+", dir=root) as after:  # /tmp may be in memory
        _write_inputs(root, name, before)
        try:
            main()
        except Exception as error:
            failure = error
        _write_inputs(root, name, after)
        changed = _changed(before, after)
    if changed:
        more = f" and {len(changed) - _NAMES_SHOWN} more" if len(changed) > _NAMES_SHOWN else ""
        raise InputChangedError(
            f"{', '.join(changed[:_NAMES_SHOWN])}{more}: changed while the stage {name} ran; try again"
        ) from failure
    if failure:
        raise failure


def _write_inputs(root: Path, name: str, file: TextIO) -> None:
    """Write a line for each input of a stage; in memory, a million photographs would take 100 MB."""
    file.writelines(f"{json.dumps((key, repr(value)))}\n" for key, value in _inputs(root, name))
    file.seek(0)


def _changed(before: TextIO, after: TextIO) -> list[str]:
    """Return the inputs whose lines differ between two files, or are in one of them only."""
    surplus: Counter[str] = Counter()  # how much more often a line is in `before`; without zeros, to stay small
    for lines in zip_longest(before, after, fillvalue=""):
        for line, count in zip(lines, (1, -1), strict=True):
            surplus[line] += count
            if not surplus[line]:
                del surplus[line]
    return sorted({json.loads(line)[0] for line in surplus if line})


def _inputs(root: Path, name: str) -> Iterator[tuple[str, object]]:
    """Yield each input of a stage: file -> size, time and inode; parameter -> value."""
    if not (root / _PIPELINE).is_file():
        return
    stage = cast(dict[str, Any], _read(root / _PIPELINE))["stages"][name]
    for dependency in cast(list[str], stage.get("deps", [])):
        path = root / dependency
        for file in _files(path) if path.is_dir() else [path]:
            if not _is_ignored(file.relative_to(root)) and file.is_file():
                status = file.stat()
                yield file.relative_to(root).as_posix(), (status.st_size, status.st_mtime_ns, status.st_ino)
    for entry in cast(list[str | dict[str, list[str]]], stage.get("params", [])):
        for file, keys in [("params.yaml", [entry])] if isinstance(entry, str) else list(entry.items()):
            content = _read(root / file)
            for key in keys:
                yield f"{file}: {key}", _value(content, key)


def _files(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder; `os.walk` would first list all names of a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            path = Path(entry.path)
            yield from _files(path) if entry.is_dir(follow_symlinks=False) else [path]


def _is_ignored(path: Path) -> bool:
    """Return whether DVC ignores a file (`.dvcignore`)."""
    return any(part.startswith(".") or part == "__pycache__" or part.endswith(".partial") for part in path.parts)


def _read(path: Path) -> object:
    """Return the content of a YAML file; None if the file cannot be read, because a person is writing it."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None


def _value(content: object, key: str) -> object:
    for part in key.split("."):
        content = cast(Mapping[str, object], content).get(part) if isinstance(content, Mapping) else None
    return content
