"""Image files inspected by a registered model, one record each, in bounded memory however many they are."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from pinspect.captures.labels import IMAGE_SUFFIXES
from pinspect.core.answers import DEFECTIVE
from pinspect.core.errors import CaptureError, ImageError
from pinspect.core.files import atomic_path
from pinspect.core.params import load_params
from pinspect.inspection.annotate import GREEN, RED, annotate
from pinspect.inspection.inspector import CaptureInspector, Photograph, Task, empty_record
from pinspect.registry.settings import RegisterSettings, load_register_settings
from pinspect.registry.versions import load_registered

ALL_PASSED, SOME_DEFECTIVE, SOME_NOT_INSPECTED = 0, 1, 2
BATCH = 16
_PAGE = 48
_BYTES_A_PIXEL = 8  # of a 16-bit RGBA picture, the largest that is read
_HEADERS = 1_000_000
_ANNOTATED = ".annotated"
_SHOWN = {
    "file": "file",
    "judgement": "judgement",
    "defect_mode": "mode",
    "defect_position": "position",
    "p_defective": "P(defective)",
    "error": "error",
}


def find_images(patterns: Sequence[str]) -> Iterator[Path]:
    """The image files that files, folders (with all that is below them) and globs mean, each in alphabetical order.

    A file that is named comes whatever its suffix, and whether it is there or not; a folder or glob without an image
    comes itself, so that it is told. Hidden files and those that `AnnotatedPictures` wrote are left out of folders and
    globs. Raises CaptureError when there is nothing to inspect at all.
    """
    walks = [(pattern, _meant(pattern)) for pattern in patterns]
    firsts = [next(walk, None) for _, walk in walks]
    if all(first is None for first in firsts):
        raise CaptureError(f"{', '.join(patterns)}: no image found; expected {', '.join(sorted(IMAGE_SUFFIXES))}")
    found = zip(walks, firsts, strict=True)
    return chain.from_iterable(
        [Path(pattern)] if first is None else chain([first], walk) for (pattern, walk), first in found
    )


def load_capture_inspector(root: Path, settings: RegisterSettings, reference: str = "") -> tuple[CaptureInspector, str]:
    """The inspector of a registered version, and its number. reference: see `load_registered`, or a number."""
    model, version = load_registered(root, settings, reference)
    packed = model.unwrap_python_model()
    # Versions that were registered before there was a station give it no public name.
    return getattr(packed, "inspector", None) or packed._inspector, version


def read_photograph(path: Path, max_pixels: int, name: str = "") -> Photograph:
    """The bytes of an image file, which are not looked at. name: what records and errors call it, its path if not
    given. Raises ImageError when it cannot be read, or is larger than any picture of `max_pixels`."""
    name = name or printable(path)
    try:
        if path.is_dir():
            raise ImageError(f"{name}: a folder in which there is no image, or which cannot be read")
        if not path.is_file():
            raise ImageError(f"{name}: not found" if not path.exists() else f"{name}: no file but a device or a pipe")
        largest = max_pixels * _BYTES_A_PIXEL + _HEADERS
        if (found := path.stat().st_size) > largest:
            raise ImageError(f"{name}: {found} bytes are more than a picture of raw.max_pixels has; crop the image")
        return Photograph(name, path.read_bytes())
    except OSError as error:
        raise ImageError(f"{name}: cannot be read: {error.strerror}") from None


def inspect_photographs(inspector: CaptureInspector, photographs: Sequence[Photograph], shape: str = "") -> list[dict]:
    """The records of photographs that share forward passes, with `seconds`: what one of them took, on average."""
    begun = time.perf_counter()
    records = inspector.inspect([Task(photograph, shape=shape or None) for photograph in photographs])
    seconds = (time.perf_counter() - begun) / max(1, len(photographs))
    return [record | {"seconds": seconds} for record in records]


def inspect_files(
    root: Path, files: Iterable[Path], alias: str, shape: str = "", annotated: AnnotatedPictures | None = None
) -> Iterator[dict]:
    """One record per file, in order, by the model that has `alias` in the registry of the project in `root`.

    A record has what `CaptureInspector.inspect` tells, model_version and seconds (see `inspect_photographs`). Where
    `error` is not None, it is the reason why this file could not be inspected, and the values are None. Of each that
    could be, a picture is written to `annotated`. Raises RegistryError when there is no such model.
    """
    params = load_params(root / "params.yaml")
    inspector, version = load_capture_inspector(root, load_register_settings(root), alias)
    for part in _in_parts(files, BATCH):
        read: dict[int, Photograph] = {}
        records: dict[int, dict] = {}
        for number, path in enumerate(part):
            try:
                read[number] = read_photograph(path, params.raw.max_pixels)
            except ImageError as error:
                records[number] = empty_record(printable(path)) | {"error": str(error), "seconds": None}
        records |= dict(zip(read, inspect_photographs(inspector, list(read.values()), shape), strict=True))
        for number, path in enumerate(part):
            if annotated and not records[number]["error"]:
                annotated.write(path, read[number], records[number], inspector, shape)
            yield records[number] | {"model_version": version}


class AnnotatedPictures:
    """A folder of inspected captures in which the address of a defect is boxed.

    The picture of `a.jpg` is called `a.jpg.annotated.jpg`. They lie as their captures lie below the working directory;
    that of a capture from elsewhere in a folder that is named after its own and a hash of where that is. So no two
    captures share a picture, and a picture takes no capture's place. Raises CaptureError when it cannot be written.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        with self._explained(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def write(
        self, path: Path, photograph: Photograph, record: dict, inspector: CaptureInspector, shape: str = ""
    ) -> Path:
        """Draw one that was inspected. record: what the inspector said about the photograph at `path`."""
        said, p_defective = record["judgement"], record["p_defective"]
        caption = said if p_defective is None else f"{said}   P(defective) {p_defective:.3f}"
        corners, color = None, GREEN
        seen = inspector.see(photograph, shape or None)
        if said == DEFECTIVE:
            caption, color = f"{record['defect_mode']} at {record['defect_position']}   {caption}", RED
            corners = inspector.pin_corners(seen, record["defect_position"])
        out = self._folder / self.place(path)
        with self._explained(out), atomic_path(out) as partial:
            annotate(seen.image, corners, caption, color).save(partial, quality=92)
        return out

    def place(self, path: Path) -> Path:
        """Where the picture of the capture at `path` lies in the folder."""
        there = Path(os.path.abspath(path))  # noqa: PTH100  Path.resolve would follow links, and rename the capture
        name = f"{there.name}{_ANNOTATED}{there.suffix if there.suffix.lower() in IMAGE_SUFFIXES else '.png'}"
        if there.is_relative_to(Path.cwd()):
            return there.relative_to(Path.cwd()).with_name(name)
        return Path(f"{there.parent.name}-{hashlib.sha256(os.fsencode(there.parent)).hexdigest()[:8]}") / name

    @contextlib.contextmanager
    def _explained(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise CaptureError(f"{path}: cannot be written: {error.strerror}; name another --annotate") from None


def exit_code(records: Iterable[dict]) -> int:
    """0 when all passed, 1 when some are defective, 2 when something could not be inspected."""
    worst = ALL_PASSED
    for record in records:
        worst = max(worst, SOME_NOT_INSPECTED if record["error"] else int(record["judgement"] == DEFECTIVE))
    return worst


def print_records(records: Iterable[dict], *, as_json: bool, total: int | None = None) -> Iterator[dict]:
    """Print records while they come, as JSON lines or as a table a page, and pass them on.

    total: how many there will be, for the progress bar on standard error, where that is a terminal.
    """
    page: list[dict] = []
    with _progress(total) if not (as_json and sys.stdout.isatty()) else contextlib.nullcontext() as bar:
        for record in records:
            if bar:
                bar.advance(bar.task_ids[0])
            if as_json:
                print(json.dumps(record, ensure_ascii=False), flush=True)
            elif len(page := [*page, record]) == _PAGE:
                _print_page(page, bar)
                page = []
            yield record
        if page:
            _print_page(page, bar)


def shows_progress() -> bool:
    """Whether somebody is there who sees a progress bar."""
    return sys.stderr.isatty()


def printable(path: Path) -> str:
    """A path as text that can be printed and stored, should its bytes be no UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for a capture: by its suffix, neither hidden nor an annotated picture."""
    path = Path(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not name.startswith(".") and not path.stem.endswith(_ANNOTATED)


def _meant(pattern: str) -> Iterator[Path]:
    path = Path(pattern)
    try:
        is_there, is_folder = path.exists(), path.is_dir()
    except OSError:  # reading it tells what is wrong
        is_there, is_folder = True, False
    if is_folder:
        yield from _below(path)
    elif is_there or not glob.has_magic(pattern):
        yield path
    else:
        for found in sorted(glob.iglob(pattern, recursive=True)):  # noqa: PTH207  absolute patterns, too
            if Path(found).is_dir():
                yield from _below(Path(found)) if "**" not in pattern else ()
            elif is_image_name(Path(found).name):
                yield Path(found)


def _below(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            found = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except OSError:
        yield folder  # reading it tells what is wrong
        return
    for name, is_folder in found:
        if is_folder and not name.startswith("."):
            yield from _below(folder / name)
        elif not is_folder and is_image_name(name):
            yield folder / name


def _in_parts(files: Iterable[Path], size: int) -> Iterator[list[Path]]:
    files = iter(files)
    while part := list(islice(files, size)):
        yield part


def _progress(total: int | None):
    if not shows_progress():
        return contextlib.nullcontext()
    columns = TextColumn("{task.description}"), MofNCompleteColumn(), *Progress.get_default_columns()[1:2]
    # Standard output is not the bar's: what is printed there must not end up on standard error.
    bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True, redirect_stdout=False)
    bar.add_task("inspected", total=total)
    return bar


def _print_page(records: Sequence[dict], bar: Progress | None) -> None:
    table = Table()
    for label in _SHOWN.values():
        table.add_column(label, overflow="fold")
    for record in records:
        table.add_row(*(_text(record[name]) for name in _SHOWN))
    if bar:
        bar.stop()  # it is drawn over the line that would come next
    Console(markup=False, emoji=False).print(table)
    if bar:
        bar.start()


def _text(value: object) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
