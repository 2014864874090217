"""Work that is done once: the folder of a stage, in which only what changed is made again.

A stage maps a function over its items (captures, mostly). Each item has a key, made of the hashes of its inputs, of
the parameters and of the code; while the key stays, so do the item's files. `products.jsonl` in the folder remembers
the keys. Everything new is first made in `<folder>.partial`, so that a failed run leaves the folder as it was and a
killed one is resumed; then files are moved into place, what no item claims any more is removed, and the manifest
comes last: where a manifest is, the folder is complete. No trace of the order of runs is left: an incremental run
ends with the same bytes as a clean one.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pinspect.core.manifests import MANIFEST

PRODUCTS = "products.jsonl"


@dataclass(frozen=True)
class Item:
    """One piece of work: a name that no other item of the folder has, the hashes of all that it reads, and a payload
    (anything picklable) for the function that makes it."""

    name: str
    inputs: tuple[str, ...]
    payload: Any


@dataclass(frozen=True)
class Product:
    """What was made of an item: its files (paths relative to the folder, with '/') and a record that JSON can hold."""

    files: tuple[str, ...]
    record: dict


Make = Callable[[Any, Path], Product]


class IncrementalFolder:
    """The output folder of a stage, used as a context; on leaving it without an exception the folder is completed.

        with IncrementalFolder(Path("data/dst")) as folder:
            records = folder.map(make_dst_image, items, params=params.dst.model_dump(), title="DST images")
            frame.to_csv(folder.new_file("scores.csv"), index=False)
            manifest.to_csv(folder.new_file("manifest.csv"), index=False)

    After an exception nothing in the folder has changed, and what was made so far waits in `<folder>.partial`.
    """

    def __init__(self, path: Path):
        self.path = path
        self.partial = path.with_name(f"{path.name}.partial")
        self._journal = self.partial / PRODUCTS
        self._claimed: dict[str, dict] = {}
        self._new_files: list[str] = []
        self.made: list[str] = []

    def __enter__(self) -> Self:
        self.partial.mkdir(parents=True, exist_ok=True)
        if self._journal.exists():
            with self._journal.open("a", encoding="utf-8") as journal:
                journal.write("\n")  # ends the line that a kill may have cut off
        self._known = {**_read_products(self.path / PRODUCTS), **_read_products(self._journal)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if kind is None:
            self._complete()

    def new_file(self, name: str) -> Path:
        """Where to write the file `name` of this folder (it is moved into place at the end); it belongs to no item."""
        self._new_files.append(name)
        path = self.partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def map(
        self,
        make: Make,
        items: Sequence[Item],
        *,
        params: object,
        title: str,
        batch_size: int = 16,
        workers: int | None = None,
    ) -> list[dict]:
        """The records of all `items`, in their order; only those whose key is new are made.

        `make(payload, folder)` writes its files below `folder` and returns a Product. It runs in other processes, in
        batches: a function of a module, or a `functools.partial` of one with picklable arguments. What the arguments
        of such a partial decide must stand in `params` (anything JSON can hold) or in the items' inputs. Whatever
        `make` raises is raised here.
        """
        context = json.dumps([params, code_version(make)], sort_keys=True)
        keys = {item.name: _sha256(json.dumps([context, item.name, *item.inputs]).encode()) for item in items}
        taken = keys.keys() & self._claimed.keys()
        if len(keys) != len(items) or taken:
            raise ValueError(f"{title}: items need names of their own, found some twice {sorted(taken)[:3]}")
        waiting = []
        for item in items:
            known = self._known.get(keys[item.name])
            if known and self._is_whole(known):
                self._claimed[item.name] = known
            else:
                waiting.append(item)
        for product in self._make_all(make, waiting, title, batch_size, workers or os.cpu_count() or 1):
            self._remember(product | {"key": keys[product["name"]]})
        return [self._claimed[item.name]["record"] for item in items]

    def _make_all(self, make: Make, items: Sequence[Item], title: str, batch_size: int, workers: int) -> Iterator[dict]:
        if not items:
            return
        batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
        work = functools.partial(_make_batch, make, self.partial)
        with _progress() as progress:
            bar = progress.add_task(title, total=len(items))
            workers = min(workers, len(batches))
            for products in _in_processes(work, batches, workers) if workers > 1 else map(work, batches):
                progress.advance(bar, len(products))
                yield from products

    def _remember(self, product: dict) -> None:
        self.made.append(product["name"])
        self._claimed[product["name"]] = product
        with self._journal.open("a", encoding="utf-8") as journal:
            journal.write(_line(product))

    def _is_whole(self, product: dict) -> bool:
        return all(
            any(_file_sha256(folder / name) == sha256 for folder in (self.partial, self.path))
            for name, sha256 in product["files"].items()
        )

    def _complete(self) -> None:
        (self.path / MANIFEST).unlink(missing_ok=True)
        item_files = {name: sha256 for product in self._claimed.values() for name, sha256 in product["files"].items()}
        for name, sha256 in item_files.items():
            if _file_sha256(self.partial / name) == sha256:
                _move(self.partial / name, self.path / name)
        last_comes_the_manifest = sorted(self._new_files, key=lambda name: name == MANIFEST)
        _prune(self.path, keep={*item_files, *self._new_files})
        products = self.partial / f"{PRODUCTS}.new"
        products.write_text(
            "".join(_line(self._claimed[name]) for name in sorted(self._claimed)), encoding="utf-8", newline="\n"
        )
        _move(products, self.path / PRODUCTS)
        for name in last_comes_the_manifest:
            _move(self.partial / name, self.path / name)
        shutil.rmtree(self.partial)


def code_version(function: Callable) -> str:
    """A hash of the source files that `function` runs: its module and all that this imports of the same tree."""
    while isinstance(function, functools.partial):
        function = function.func
    path = Path(inspect.getfile(function))
    root = path.parents[function.__module__.count(".")]
    hashes = [_file_sha256(source) for source in source_files(path, root)]
    return _sha256(json.dumps(hashes).encode())


def source_files(start: Path, root: Path) -> list[Path]:
    """`start` and every file below the import root `root` that it imports, directly or by another, also inside
    functions; `start` first, then by path. Imports (absolute ones) are read, not run. The `__init__.py` of a top-level
    package is left out: it only offers names of other modules to users."""
    found: set[Path] = {start}
    waiting = [start]
    while waiting:
        new = _imported_files(waiting.pop(), root) - found
        found |= new
        waiting += new
    return [start, *sorted(found - {start})]


def _imported_files(path: Path, root: Path) -> set[Path]:
    """Files of all names that may be modules: `from a.b import c` gives a, a.b and a.b.c."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    parts = [name.split(".") for name in names]
    modules = {root.joinpath(*part[:length]) for part in parts for length in range(1, len(part) + 1)}
    candidates = {file for module in modules for file in (module.with_suffix(".py"), module / "__init__.py")}
    public_doors = {root / part[0] / "__init__.py" for part in parts}
    return {file for file in candidates - public_doors if file.is_file()}


def _make_batch(make: Make, folder: Path, items: Sequence[Item]) -> list[dict]:
    made = []
    for item in items:
        product = make(item.payload, folder)
        files = {name: _file_sha256(folder / name) for name in product.files}
        made.append({"name": item.name, "files": files, "record": json.loads(json.dumps(product.record))})
    return made


def _in_processes(work: Callable, batches: Sequence[Sequence[Item]], workers: int) -> Iterator[list[dict]]:
    """`work` over `batches`, each as it is done. Workers start fresh: a fork of a process with threads may hang."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_end_with_the_parent)
    futures: list[Future] = [pool.submit(work, batch) for batch in batches]
    try:
        for future in as_completed(futures):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_the_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def _read_products(path: Path) -> dict[str, dict]:
    if not path.exists():
        return {}
    products = {}  # by key
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            product = json.loads(line)
        except json.JSONDecodeError:  # an empty line, or one that a kill has cut off
            continue
        products[product["key"]] = product
    return products


def _line(product: dict) -> str:
    return json.dumps(product, sort_keys=True, ensure_ascii=False) + "\n"


def _prune(folder: Path, keep: Iterable[str]) -> None:
    kept = {folder / name for name in keep}
    for path in sorted(folder.rglob("*"), reverse=True):  # children before their folder
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path not in kept:
            path.unlink()


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _file_sha256(path: Path) -> str | None:
    return _sha256(path.read_bytes()) if path.is_file() else None
