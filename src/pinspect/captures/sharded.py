"""An incremental folder whose products lie in archives, one for each shard, so that DVC sees few files.

images/<shard>.zip       the products of the shard's captures (`core.product_files`)
products/<shard>.jsonl   the keys of the shard's items; the first line has the hashes of the archive and of its members
products/rest.jsonl      the items of no shard, such as unit spaces, or of all shards, such as the virtual line
manifest/<shard>.parquet the shard's rows of the manifest; manifest.csv lists these parts

A stage maps and settles a window of shards after the other, so it holds the items of one window only. The files of a
batch of items first lie in an archive of their own, `<folder>.partial/batches/<hash>.zip`: file systems are slow at
creating a hundred thousand files. Settling writes the archives whose members have changed to `<folder>.partial`; all
others are neither read nor written: their size and times in `<folder>.states.sqlite` show that they are whole. A killed
run is resumed at the first window that it has not settled.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import pandas as pd

from pinspect.captures.engines import Engine, Work
from pinspect.captures.file_states import file_sha256
from pinspect.captures.incremental import (
    IncrementalFolder,
    Item,
    move,
    products_text,
    prune,
    read_products,
)
from pinspect.core.files import atomic_path, write_file
from pinspect.core.manifests import MANIFEST, encode_list, encode_part, part_file, read_part, sha256_of
from pinspect.core.product_files import (
    ARCHIVE,
    all_shards,
    archive_of,
    member_of,
    products_of,
    shard_of,
    write_archive,
)

_REST = "rest"
_BATCHES = "batches"
_BATCH = "batch"  # in a product of this run: the archive of its batch, relative to the partial folder

Hashes = dict[str, str]  # product, relative to the folder -> sha256


def stage_folder(path: Path, shards: int, engine: Engine = "processes") -> IncrementalFolder:
    """Return the output folder of a stage.

    Args:
        path: The folder.
        shards: `raw.shards`: the number of archives, or 0 for a file per product.
        engine: What makes the items.
    """
    return ShardedFolder(path, shards, engine) if shards else IncrementalFolder(path, engine)


class ShardedFolder(IncrementalFolder):
    """The output folder of a stage with shards; see `IncrementalFolder`.

    Items of no shard are mapped before the first window is settled. A folder without shards is taken over: its products
    move into archives and are not made again.
    """

    def __init__(self, path: Path, shards: int, engine: Engine = "processes"):
        super().__init__(path, engine)
        self._shards = shards
        self._shard_of_item: dict[str, str] = {}
        self._keys: dict[str, list[str]] = {}  # that are known of a shard
        self._stored: dict[str, Hashes] = {}  # of the archives in place, by shard
        self._waiting: dict[str, Hashes] = {}  # of the archives in the partial folder, by shard
        self._is_ours: dict[str, bool] = {}  # whether the archive in place is as a run has written it
        self._batches: dict[str, Hashes] = {}  # of a killed run: archive -> its members
        self._of_all_shards: dict[str, Hashes] | None = None
        self._archives: Hashes = {}  # settled: file -> sha256
        self._loose: Hashes = {}
        self._journal_parts: set[str] = set()  # files
        self._parts: dict[str, tuple[int, str]] = {}  # of the manifest, by shard

    def __enter__(self) -> Self:
        super().__enter__()
        self._recorded = _by_shard(read_products(self.path / _journal_part(_REST)).values(), self._shards)
        self._load("")
        return self

    def shard(self, file: str) -> str:
        """Return the shard of a product's file; empty for a file that lies in no archive."""
        return shard_of(file, self._shards)

    def write_manifest(self, rows: pd.DataFrame) -> None:
        """Write the parts of the manifest with the rows of one window."""
        for shard, part in rows.groupby(rows["file"].map(self.shard), sort=False):
            content = encode_part(part)
            self._parts[str(shard)] = (len(part), sha256_of(content))
            self._put(part_file(str(shard)), content)

    def update_manifest(self, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
        """Change the parts of the manifest one by one."""
        for shard in tuple(self._parts):
            file = part_file(shard)
            self.write_manifest(change(read_part(next(filter(Path.is_file, (self.partial / file, self.path / file))))))

    def settle(self, window: Iterable[str]) -> None:
        """Bring the archives and the journals of a window up to date, and forget its items."""
        if self._of_all_shards is None:
            rest = [self._claimed[name] for name, shard in self._shard_of_item.items() if not shard]
            self._of_all_shards = _by_shard(rest, self._shards)
            self._put(_journal_part(_REST), products_text(rest).encode())
        products: dict[str, list[dict]] = defaultdict(list)
        for name, shard in self._shard_of_item.items():
            products[shard].append(self._claimed[name])
        batches = {product[_BATCH] for each in products.values() for product in each if _BATCH in product}
        for shard in window:
            self._load(shard)
            self._settle_shard(shard, products[shard])
        self._journal.unlink(missing_ok=True)  # all its products are in a part now
        for batch in batches:
            (self.partial / batch).unlink(missing_ok=True)
            self._batches.pop(batch, None)

    def _settle_shard(self, shard: str, products: list[dict]) -> None:
        batches: dict[str, str] = {}  # file -> archive
        for product in products:
            batches |= dict.fromkeys(product["files"], product.pop(_BATCH, ""))
        files = {file: sha256 for product in products for file, sha256 in product["files"].items()}
        self._loose |= {file: sha256 for file, sha256 in files.items() if not self.shard(file)}
        wanted = {file: sha256 for file, sha256 in files.items() if self.shard(file)}
        wanted |= (self._of_all_shards or {}).get(shard, {})
        archive = self._archive(shard, wanted, batches) if wanted else None
        if archive:
            self._archives[archive_of(shard)] = archive
        if products or wanted:
            head = json.dumps({"archive": archive, "members": _digest(wanted)})
            self._put(_journal_part(shard), f"{head}\n{products_text(products)}".encode())
            self._journal_parts.add(_journal_part(shard))
        for file in wanted:
            (self.partial / file).unlink(missing_ok=True)
        for product in products:
            del self._claimed[product["name"]], self._shard_of_item[product["name"]]
        self._forget(shard)

    def _put(self, name: str, content: bytes) -> None:
        """Write a file that is moved into the folder at the end, unless the folder has it already."""
        if sha256_of(content) == file_sha256(self.path / name):
            (self.partial / name).unlink(missing_ok=True)
        else:
            write_file(self.partial / name, content)

    def _archive(self, shard: str, wanted: Hashes, batches: Mapping[str, str]) -> str:
        """Bring an archive up to date; return its sha256. New files come from `batches`, or are loose."""
        target, source = (folder / archive_of(shard) for folder in (self.partial, self.path))
        if self._stored[shard] == wanted and self._is_ours[shard]:
            target.unlink(missing_ok=True)
            return str(self._states.sha256(source))
        if self._waiting[shard] != wanted:

            def origin(file: str) -> Path:
                for archive, hashes in ((source, self._stored[shard]), (target, self._waiting[shard])):
                    if hashes.get(file) == wanted[file]:
                        return archive
                if batch := batches.get(file):
                    return self.partial / batch
                return next(filter(Path.is_file, (self.partial / file, self.path / file)))

            with atomic_path(target) as partial:
                write_archive(partial, {file: origin(file) for file in wanted})
        return str(file_sha256(target))

    def _make_all(
        self, work: Work, items: Sequence[Item], title: str, batch_size: int, workers: int | None
    ) -> Iterator[dict]:
        """Make items in the order in which the archives hold their files, so that settling opens few at a time."""
        ordered = sorted(items, key=lambda item: (item.shard, item.name))
        return super()._make_all(functools.partial(_pack, work, self._shards), ordered, title, batch_size, workers)

    def _load_recorded(self, items: Sequence[Item]) -> None:
        for shard in {item.shard for item in items}:
            self._load(shard)
        self._shard_of_item |= {item.name: item.shard for item in items}

    def _load(self, shard: str) -> None:
        """Read what earlier runs have recorded of a shard; an empty name is that of the items of no shard."""
        if shard in self._keys:
            return
        part = _journal_part(shard or _REST)
        in_place, waiting = (read_products(folder / part) for folder in (self.path, self.partial))
        self._known |= in_place | waiting
        self._keys[shard] = [*in_place, *waiting]
        if not shard:
            return
        archive = self.path / archive_of(shard)
        recorded = _by_shard(in_place.values(), self._shards).get(shard, {}) | self._recorded.get(shard, {})
        head = {"archive": self._states.sha256(archive), "members": _digest(recorded)}
        self._is_ours[shard] = head == _head(self.path / part)
        self._stored[shard] = recorded if self._is_ours[shard] else _hashes(archive)
        self._waiting[shard] = _hashes(self.partial / archive_of(shard))

    def _forget(self, shard: str) -> None:
        for key in self._keys.pop(shard, []):
            self._known.pop(key, None)
        self._is_ours.pop(shard, None)
        self._stored.pop(shard, None)
        self._waiting.pop(shard, None)

    def _is_whole(self, product: dict) -> bool:
        if self._shard_of_item.get(product["name"]):
            packed, files = self._packed(product.get(_BATCH, "")), product["files"]
            return all(packed.get(file) == sha256 or self._has(file, sha256) for file, sha256 in files.items())
        shards = sorted(_by_shard([product], self._shards))  # of an item of all shards: hold one at a time
        return all(self._has_of_shard(product, shard) for shard in ("", *shards))

    def _packed(self, batch: str) -> Hashes:
        """Return the members of a killed run's batch; none of no batch."""
        if batch and batch not in self._batches:
            self._batches[batch] = _hashes(self.partial / batch)
        return self._batches.get(batch, {})

    def _has_of_shard(self, product: dict, shard: str) -> bool:
        files = [file for file in product["files"] if self.shard(file) == shard]
        try:
            return all(self._has(file, product["files"][file]) for file in files)
        finally:
            if shard:
                self._forget(shard)

    def _has(self, name: str, sha256: str) -> bool:
        shard = self.shard(name)
        if not shard:
            return super()._has(name, sha256)
        self._load(shard)
        if sha256 in (self._stored[shard].get(name), self._waiting[shard].get(name)):
            return True
        return any(file_sha256(folder / name) == sha256 for folder in (self.partial, self.path))

    def _complete(self) -> None:
        self.settle([shard for shard in all_shards(self._shards) if archive_of(shard) not in self._archives])
        rest = list(self._claimed.values())
        loose = self._loose | {
            file: sha256 for product in rest for file, sha256 in product["files"].items() if not self.shard(file)
        }
        self._put(_journal_part(_REST), products_text(rest).encode())
        write_file(self.new_file(MANIFEST), encode_list(self._parts))
        parts = [_journal_part(_REST), *self._journal_parts, *map(part_file, self._parts)]
        (self.path / MANIFEST).unlink(missing_ok=True)
        self._place(loose | self._archives)
        for name in parts:
            if (self.partial / name).is_file():
                move(self.partial / name, self.path / name)
        prune(self.path, keep={*loose, *self._archives, *parts, *self._new_files})
        self._close()


def _pack(work: Work, shards: int, items: Sequence[Item]) -> tuple[list[dict], Mapping[str, bytes]]:
    """Make a batch, and put its files into one archive; those of items of all shards stay as they are."""
    products, files = work(items)
    members = {file: content for file, content in files.items() if items[0].shard and shard_of(file, shards)}
    if not members:
        return products, files
    batch = f"{_BATCHES}/{hashlib.sha256(repr([item.name for item in items]).encode()).hexdigest()[:20]}{ARCHIVE}"
    archive = io.BytesIO()
    write_archive(archive, members)
    loose = {file: content for file, content in files.items() if file not in members}
    return [product | {_BATCH: batch} for product in products], loose | {batch: archive.getvalue()}


def _journal_part(shard: str) -> str:
    return f"products/{shard}.jsonl"


def _by_shard(products: Iterable[dict], shards: int) -> dict[str, Hashes]:
    """Return the products' files in archives, by shard."""
    by_shard: dict[str, Hashes] = defaultdict(dict)
    for product in products:
        for file, sha256 in product["files"].items():
            if shard := shard_of(file, shards):
                by_shard[shard][file] = sha256
    return by_shard


def _digest(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest()


def _head(part: Path) -> dict[str, Any]:
    """Return the first line of a shard's part; empty if there is none."""
    try:
        with part.open(encoding="utf-8") as file:
            return json.loads(file.readline())
    except (FileNotFoundError, ValueError):
        return {}


def _hashes(path: Path) -> Hashes:
    """Read an archive; members that are damaged are left out, and so are all of a damaged archive."""
    hashes: Hashes = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for file in products_of(archive):
                try:
                    hashes[file] = hashlib.sha256(archive.read(member_of(file))).hexdigest()
                except (zipfile.BadZipFile, EOFError):
                    continue
    except (FileNotFoundError, NotADirectoryError, zipfile.BadZipFile, EOFError):
        return {}
    return hashes
