"""Writers of captures for tests and benchmarks: `add`, the inbox and corrections as processes, on a slow disk.

    python -m tests.support.writers KIND FOLDER ROUNDS SECONDS

FOLDER is a project that `make_writers` has filled. Each round brings one capture with a row of its own.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from pinspect.captures.labels import content_hash, read_captures
from pinspect.core.params import load_params
from tests.support.sample import drop, line, read_labels, row, write_labels

KINDS = ("add", "inbox", "correction")
SUFFIX = ".jpg"


def make_writers(root: Path, rounds: int) -> dict[str, dict[str, str]]:
    """Make a project with 6 captures, and `rounds` captures for each kind of writer.

    Args:
        root: The project's folder, new.
        rounds: Captures of each kind of writer.

    Returns:
        SHA-256 -> label that the project must have once all writers have ended.
    """
    from tests.support.evaluated_project import write_params

    root.mkdir(parents=True)
    write_params(root)
    first = line(seed=8, train=4, references=2)
    drop(root / "data/captures", first)
    template = next(capture for capture in first if capture.role == "inspected")
    expected = {content_hash(root / "data/captures/images" / capture.name): _label(row(capture)) for capture in first}
    for kind in KINDS:
        for number in range(rounds):
            source = root / "sources" / f"{kind}-{number}"
            (source / "images").mkdir(parents=True)
            image = source / "images" / f"{kind}-{number}{SUFFIX}"
            image.write_bytes(template.jpeg + f"{kind} {number}".encode())  # the same picture, other bytes
            label = row(template) | {
                **{"file": image.name, "judgement": "defective", "defect_mode": "bend", "role": "inspected"},
                **{"defect_position": f"X:{number % 9 + 1}, Y:{'UCD'[number % 3]}"},
            }
            write_labels(source, [label])
            expected[content_hash(image)] = _label(label)
    return expected


def run_writers(root: Path, rounds: int, seconds: float) -> list[subprocess.Popen]:
    """Start one process of each kind.

    Args:
        root: A project of `make_writers`.
        rounds: As in `make_writers`.
        seconds: How long each copy and each rename takes.
    """
    command = [sys.executable, "-m", "tests.support.writers"]
    return [
        subprocess.Popen([*command, kind, str(root), str(rounds), str(seconds)], stderr=subprocess.PIPE, text=True)
        for kind in KINDS
    ]


def faults(root: Path, expected: dict[str, dict[str, str]]) -> list[str]:
    """Return what is wrong with the captures: lost, changed or double labels, rows or images without the other."""
    folder = root / "data/captures"
    rows = {label["file"]: _label(label) for label in read_labels(folder)}
    images = {path.name: content_hash(path) for path in (folder / "images").iterdir()}
    labels = {content: rows.get(name) for name, content in images.items()}
    contract = load_params(root / "params.yaml").contract()
    return [
        *(f"{content[:8]}: label lost or changed" for content in expected if labels.get(content) != expected[content]),
        *(f"{name}: row without image" for name in rows if name not in images),
        *(f"{name}: image without row" for name in images if name not in rows),
        *([f"{len(images)} images, {len(expected)} captures"] if len(images) != len(expected) else []),
        *read_captures(folder, contract).problems,
        *(str(path) for path in (root / "data").rglob(".adding-*")),
    ]


def _label(cells: dict[str, str]) -> dict[str, str]:
    return {name: cells[name] for name in ("shape", "judgement", "defect_mode", "defect_position", "role")}


def _slow(function, seconds: float):
    def later(*args, **options):
        time.sleep(seconds)
        return function(*args, **options)

    return later


def _write(kind: str, root: Path, rounds: int) -> None:
    if kind == "correction":
        return _correct(root, rounds)
    from pinspect.captures.adding import add_captures
    from pinspect.captures.inbox import take_captures

    params = load_params(root / "params.yaml")
    folder, contract, pixels = root / "data/captures", params.contract(), params.raw.max_pixels
    for number in range(rounds):
        source = root / "sources" / f"{kind}-{number}"
        if kind == "add":
            add_captures(source, folder, contract, max_pixels=pixels)
        else:
            report = take_captures(source, folder, contract, max_pixels=pixels)
            assert not report.refused, report.refused
            assert read_labels(source) == []
    return None


def _correct(root: Path, rounds: int) -> None:
    from pinspect.station.corrections import correct
    from pinspect.station.picture_store import PictureStore
    from pinspect.station.results import ResultsTable
    from pinspect.station.settings import StationSettings

    params = load_params(root / "params.yaml")
    results, pictures = ResultsTable.of_project(root, StationSettings()), PictureStore(root, 90, 10**9)
    for number in range(rounds):
        source = root / "sources" / f"correction-{number}"
        (label,) = read_labels(source)
        record = {"file": label["file"], "image_type": f"{label['shape']}_RAW", "model_version": "7"}
        record |= {"judgement": "passed", "defect_mode": "passed", "defect_position": "passed"}
        sha256 = pictures.put((source / "images" / label["file"]).read_bytes(), SUFFIX)
        id = f"{number}"
        if results.get(id) is None:
            results.record(record, id=id, sha256=sha256, source="station", received=datetime.now(UTC))
        verdict = {name: label[name] for name in ("judgement", "defect_mode", "defect_position")}
        if number % 2:  # a person's second thought
            other = verdict | {"defect_mode": "retract"}
            correct(root, params, results, pictures, id, by="Sato", **other)
        correct(root, params, results, pictures, id, by="Sato", **verdict)


def main(kind: str, root: str, rounds: str, seconds: str) -> None:
    """Bring the captures of one kind, one a round."""
    shutil.copyfile = _slow(shutil.copyfile, float(seconds))
    Path.rename = _slow(Path.rename, float(seconds))
    Path.replace = _slow(Path.replace, float(seconds))
    _write(kind, Path(root), int(rounds))


if __name__ == "__main__":
    main(*sys.argv[1:])
