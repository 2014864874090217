"""Make a stage's output folder incrementally: only items with new inputs, parameters or code are made again.

A stage maps a function over its items (mostly captures). The key of an item is a hash of its inputs, the parameters and
the code; while the key is the same, the item's files stay. `products.jsonl` in the folder records the keys. New files
are first written to `<folder>.partial`, so a failed run leaves the folder unchanged, and a killed run is resumed. Then
the files are moved into place, files that belong to no item are removed, and the manifest is moved last: a folder with
a manifest is complete. An incremental run ends with the same bytes as a clean run.

A run checks that each kept file still has the bytes that were made; `<folder>.states.sqlite` is the record of
`file_states.FileStates`.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from pinspect.captures.engines import BatchMaker, Engine, Throughput, Work
from pinspect.captures.file_states import FileStates, file_sha256
from pinspect.core.manifests import MANIFEST, read_table

if TYPE_CHECKING:
    import pandas as pd

PRODUCTS = "products.jsonl"


@dataclass(frozen=True)
class Item:
    """One item of a stage.

    Attributes:
        name: A name that no other item of the folder has.
        inputs: The hashes of everything that the item is made from.
        payload: Argument of the function that makes the item; picklable.
        shard: The shard of the item's files, from `IncrementalFolder.shard`; empty for an item of all shards.
    """

    name: str
    inputs: tuple[str, ...]
    payload: Any
    shard: str = ""


@dataclass(frozen=True)
class Product:
    """The result of an item.

    Attributes:
        files: Content of each file by its path relative to the folder, with `/`.
        record: Facts for the stage's tables; must fit into JSON.
    """

    files: Mapping[str, bytes]
    record: dict


Make = Callable[[Any], Product]


class IncrementalFolder:
    """The output folder of a stage, as a context manager that completes the folder at the end of the block.

        with IncrementalFolder(Path("data/dst")) as folder:
            records = folder.map(make_dst_image, items, params=params.dst.model_dump(), title="DST images")
            frame.to_csv(folder.new_file("scores.csv"), index=False)
            folder.write_manifest(manifest)

    A stage works window by window (`core.manifests.Window`): it maps the items of a window, then settles the window.
    Without shards all items are one window. With shards see `captures.sharded`.

    After an exception the folder is unchanged, and finished items stay in `<folder>.partial` for the next run.

    Args:
        path: The folder.
        engine: What makes the items.

    Attributes:
        path: The folder.
        partial: `<folder>.partial`.
        made: Names of the items that this run has made.
    """

    def __init__(self, path: Path, engine: Engine = "processes"):
        self.path = path
        self.partial = path.with_name(f"{path.name}.partial")
        self._maker = BatchMaker(engine, self.partial)
        self._journal = self.partial / PRODUCTS
        self._known: dict[str, dict] = {}  # by key: the products of earlier runs
        self._claimed: dict[str, dict] = {}
        self._new_files: list[str] = []
        self.made: list[str] = []

    def __enter__(self) -> Self:
        self.partial.mkdir(parents=True, exist_ok=True)
        self._states = FileStates(self.path.with_name(f"{self.path.name}.states.sqlite"))
        if self._journal.exists():
            with self._journal.open("a", encoding="utf-8") as journal:
                journal.write("\n")  # ends a line that a kill has cut off
        self._known |= {**read_products(self.path / PRODUCTS), **read_products(self._journal)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        self._maker.close()
        with self._states:
            if kind is None:
                self._complete()

    def new_file(self, name: str) -> Path:
        """Return the path to write a file to that belongs to no item, such as the manifest.

        Args:
            name: Path of the file relative to the folder; the file is moved there at the end.
        """
        self._new_files.append(name)
        path = self.partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def shard(self, file: str) -> str:
        """Return the shard of a product's file; without shards it is empty."""
        return ""

    def write_table(self, name: str, rows: pd.DataFrame) -> None:
        """Write rows of a CSV file, below those of earlier windows."""
        begun = name in self._new_files
        path = self.partial / name if begun else self.new_file(name)
        rows.to_csv(
            path, mode="a" if begun else "w", header=not begun, index=False, encoding="utf-8", lineterminator="\n"
        )

    def write_manifest(self, rows: pd.DataFrame) -> None:
        """Write rows of the manifest.

        Args:
            rows: All rows of one window.
        """
        self.write_table(MANIFEST, rows)

    def update_manifest(self, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        """Change the manifest after the last window.

        Args:
            change: Returns the new rows for all rows, or for those of one shard; every value is a string.
        """
        rows = change(read_table(self.partial / MANIFEST))
        self._new_files.remove(MANIFEST)
        self.write_manifest(rows)

    def hashes(self, name: str) -> dict[str, str]:
        """Return the sha256 of each file of an item, until its window is settled."""
        return self._claimed[name]["files"]

    def settle(self, window: Iterable[str]) -> None:
        """Complete the shards of a window, all of whose items have been mapped; without shards this does nothing."""

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
        """Make the items whose key is new, in other processes or on a cluster, and return the records of all items.

        Args:
            make: `make(payload)` returns a Product. A function of a module, or a `functools.partial` of such a function
                with picklable arguments.
            items: The items.
            params: Everything that decides the result beside inputs and code, including the arguments of a partial;
                must fit into JSON.
            title: Title of the progress bar.
            batch_size: Number of items that one process makes, and holds, at a time.
            workers: Number of processes; by default one per core. 1: this process.

        Returns:
            The record of each item, in the order of `items`.

        Raises:
            ValueError: Two items have the same name.
            Exception: Any exception of `make`.
        """
        context = json.dumps([params, code_version(make)], sort_keys=True)
        keys = {item.name: _sha256(json.dumps([context, item.name, *item.inputs]).encode()) for item in items}
        taken = keys.keys() & self._claimed.keys()
        if len(keys) != len(items) or taken:
            raise ValueError(f"{title}: two items have the same name {sorted(taken)[:3]}; give each its own name")
        self._load_recorded(items)
        waiting = []
        for item in items:
            known = self._known.get(keys[item.name])
            if known and self._is_whole(known):
                self._claimed[item.name] = known
            else:
                waiting.append(item)
        work = functools.partial(_make_batch, make)
        for product in self._make_all(work, waiting, title, batch_size, workers):
            self._remember(product | {"key": keys[product["name"]]})
        return [self._claimed[item.name]["record"] for item in items]

    def _load_recorded(self, items: Sequence[Item]) -> None:
        """Read what earlier runs have recorded of these items; without shards it was read at the beginning."""

    def _make_all(
        self, work: Work, items: Sequence[Item], title: str, batch_size: int, workers: int | None
    ) -> Iterator[dict]:
        if not items:
            return
        batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
        throughput = Throughput()
        with _progress() as progress:
            bar = progress.add_task(title, total=len(items))
            for batch in self._maker.make(work, batches, workers):
                throughput.add(batch)
                progress.advance(bar, len(batch.products))
                yield from batch.products
            if len(batches) > 1:
                progress.console.print(f"{title}: {throughput.line()}", highlight=False, soft_wrap=True)

    def _remember(self, product: dict) -> None:
        self.made.append(product["name"])
        self._claimed[product["name"]] = product
        with self._journal.open("a", encoding="utf-8") as journal:
            journal.write(_line(product))

    def _is_whole(self, product: dict) -> bool:
        return all(self._has(name, sha256) for name, sha256 in product["files"].items())

    def _has(self, name: str, sha256: str) -> bool:
        """Return whether a file of an item is in place, or waits in the partial folder."""
        return any(self._states.sha256(folder / name) == sha256 for folder in (self.path, self.partial))

    def _complete(self) -> None:
        (self.path / MANIFEST).unlink(missing_ok=True)
        item_files = {name: sha256 for product in self._claimed.values() for name, sha256 in product["files"].items()}
        self._place(item_files)
        products = self.partial / f"{PRODUCTS}.new"
        products.write_text(products_text(self._claimed.values()), encoding="utf-8", newline="\n")
        prune(self.path, keep={*item_files, *self._new_files})
        move(products, self.path / PRODUCTS)
        self._close()

    def _place(self, item_files: dict[str, str]) -> None:
        """Move the new files of the items into the folder."""
        for path in [path for path in self.partial.rglob("*") if path.is_file()]:
            name = path.relative_to(self.partial).as_posix()
            if name in item_files and file_sha256(path) == item_files[name]:
                move(path, self.path / name)
                self._states.add(self.path / name, item_files[name])

    def _close(self) -> None:
        """Move the files that belong to no item into the folder, the manifest last."""
        for name in sorted(self._new_files, key=lambda name: name == MANIFEST):
            move(self.partial / name, self.path / name)
        self._states.save()
        shutil.rmtree(self.partial)


def code_version(function: Callable) -> str:
    """Return a hash of the source files that a function runs: its module and all imported modules of the same tree."""
    while isinstance(function, functools.partial):
        function = function.func
    path = Path(inspect.getfile(function))
    package = path.parents[function.__module__.count(".")] / function.__module__.partition(".")[0]
    hashes = [file_sha256(source) for source in source_files(path, package)]
    return _sha256(json.dumps(hashes).encode())


def source_files(start: Path, package: Path) -> list[Path]:
    """Find the source files that a file imports, directly or indirectly, also inside functions.

    Absolute imports are parsed; nothing is executed. Imports for type checkers are ignored, and so is the `__init__.py`
    of a top-level package: it only exports names of other modules to users.

    Args:
        start: A Python file.
        package: The folder of a top-level package; imports of other packages are ignored.

    Returns:
        `start`, then the imported files ordered by path.
    """
    files: set[Path] = {start}
    waiting = [start]
    while waiting:
        new = _imported_files(waiting.pop().read_bytes(), package) - files
        files |= new
        waiting += new
    return [start, *sorted(files - {start})]


@functools.cache
def _imported_files(source: bytes, package: Path) -> frozenset[Path]:
    """Return the files of all names that a module imports: `from a.b import c` may import a, a.b and a.b.c."""
    parts = [part for name in _imported_names(source) if (part := name.split("."))[0] == package.name]
    modules = {package.parent.joinpath(*part[:length]) for part in parts for length in range(1, len(part) + 1)}
    candidates = {file for module in modules for file in (module.with_suffix(".py"), module / "__init__.py")}
    return frozenset(file for file in candidates - {package / "__init__.py"} if file.is_file())


def _imported_names(source: bytes) -> frozenset[str]:
    """Return the names that a module imports when it runs."""
    names: set[str] = set()
    for node in _nodes_that_run(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return frozenset(names)


def _nodes_that_run(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)):
            yield from _nodes_that_run(child)


def _make_batch(make: Make, items: Sequence[Item]) -> tuple[list[dict], dict[str, bytes]]:
    """Return the product of each item, and all files by their paths."""
    made: list[dict] = []
    files: dict[str, bytes] = {}
    for item in items:
        product = make(item.payload)
        hashes = {name: _sha256(content) for name, content in product.files.items()}
        made.append({"name": item.name, "files": hashes, "record": json.loads(json.dumps(product.record))})
        files |= product.files
    return made, files


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def read_products(path: Path) -> dict[str, dict]:
    """Return the products of a journal by their keys; a line that a kill has cut off is ignored."""
    if not path.exists():
        return {}
    products = {}  # by key
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            product = json.loads(line)
            products[product["key"]] = product
        except (
            json.JSONDecodeError,
            KeyError,
        ):  # an empty line, the head of a shard, or a line that a kill has cut off
            continue
    return products


def _line(product: dict) -> str:
    return json.dumps(product, sort_keys=True, ensure_ascii=False) + "\n"


def products_text(products: Iterable[dict]) -> str:
    """Return the lines of a journal, in the order of the items' names."""
    return "".join(map(_line, sorted(products, key=lambda product: product["name"])))


def prune(folder: Path, keep: Iterable[str]) -> None:
    """Remove all files of a folder but some, and the folders that become empty."""
    kept = set(keep)
    for parent, folders, files in os.walk(folder, topdown=False):  # children before their folder
        place = Path(parent)
        prefix = "" if place == folder else f"{place.relative_to(folder).as_posix()}/"
        for path in (place / name for name in files if f"{prefix}{name}" not in kept):
            path.unlink()
        for path in (place / name for name in folders):
            if path.is_symlink():
                path.unlink()
            elif not any(path.iterdir()):
                path.rmdir()


def move(source: Path, target: Path) -> None:
    """Move a file, and make the folders above its new place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
