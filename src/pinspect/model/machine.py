"""Facts about this machine: hardware, installed versions, and the model families and backends that can run on it."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import Any

import psutil
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from pinspect.core.errors import ModelError
from pinspect.core.params import Params
from pinspect.model.backends import computes_bfloat16, open_backend, trains_in_four_bits, unsloth_obstacle
from pinspect.model.families import FAMILIES, Family, checkpoint_of

LOCK, GPU_LOCK = "requirements.lock", "requirements-gpu.lock"
_GIGA = 1e9
_QUANTIZED_BYTES = 0.7  # a 4-bit weight with its scales, and the layers that stay in 16 bits
# Memory relative to the weights, with the activations of one row (training: with gradient checkpointing), the adapter
# and its optimizer. Rules of thumb: long prompts and large batches need more.
_MEMORY_TO_ANSWER, _MEMORY_TO_TRAIN = 1.1, 1.4


def machine_report(root: Path, params: Params | None) -> dict[str, Any]:
    """Return everything that `pinspect doctor` shows, as plain JSON; sizes in GB (1e9 bytes).

    Args:
        root: Folder of the project, whose lock file the installed versions are compared with.
        params: The parameters of the project, None outside of a project.

    Returns:
        The facts; `obstacles` lists, one line each, why the chosen model cannot run on this machine.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory = psutil.virtual_memory()
    lock = root / (GPU_LOCK if device.type == "cuda" else LOCK)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "cpu": {
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "bfloat16": computes_bfloat16(torch.device("cpu")),
        },
        "memory": {"total": _giga(memory.total), "free": _giga(memory.available)},
        "disk": {"free": _giga(shutil.disk_usage(root).free)},
        "cards": cards(),
        "backends": {"transformers": "", "unsloth": unsloth_obstacle()},
        "lock": lock.name if lock.is_file() else None,
        "versions": version_differences(lock),
        "families": [family_needs(family) for family in FAMILIES.values()],
        "obstacles": _wrong_packages() + (_model_obstacles(root, params) if params else []),
    }


def cards() -> list[dict[str, Any]]:
    """Return the NVIDIA GPUs: name, total and free memory in GB, and whether they compute bfloat16."""
    facts = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(number)
        facts.append(
            {
                "name": torch.cuda.get_device_name(number),
                "memory": _giga(total),
                "free": _giga(free),
                "bfloat16": torch.cuda.get_device_capability(number) >= (8, 0),
            }
        )
    return facts


def family_needs(family: Family) -> dict[str, Any]:
    """Estimate the memory of a family in GB, and compare it with the free memory.

    Args:
        family: The model family.

    Returns:
        `needs` and `fits` for `answer`, `train`, `answer_4bit` and `train_4bit`. The free memory is that of the GPU
        with the most free memory, or main memory on a machine without a GPU, where 4-bit weights never fit.
    """
    free = max((card["free"] for card in cards()), default=0.0)
    on_card = bool(free)
    free = free or _giga(psutil.virtual_memory().available)
    size = torch.bfloat16.itemsize if on_card and family.parameters >= 0.1 else torch.float32.itemsize
    needs = {
        "answer": family.parameters * size * _MEMORY_TO_ANSWER,
        "train": family.parameters * size * _MEMORY_TO_TRAIN,
        "answer_4bit": family.parameters * _QUANTIZED_BYTES * _MEMORY_TO_ANSWER,
        "train_4bit": family.parameters * _QUANTIZED_BYTES * _MEMORY_TO_TRAIN,
    }
    fits = {name: need <= free and (on_card or not name.endswith("_4bit")) for name, need in needs.items()}
    return {
        "name": family.name,
        "model_id": family.model_id,
        "needs": {name: round(need, 2) for name, need in needs.items()},
        "fits": fits,
        "four_bit": family.four_bit,
    }


def version_differences(lock: Path) -> list[dict[str, str | None]]:
    """Compare installed packages with a lock file.

    Args:
        lock: A file with lines `name==version`; it may be missing.

    Returns:
        For each difference `name`, `locked` and `installed`, which is None if the package is missing.
    """
    if not lock.is_file():
        return []
    differences = []
    for line in lock.read_text(encoding="utf-8").splitlines():
        name, _, remainder = line.partition("==")
        if not remainder or line.startswith(("#", " ")):
            continue
        locked = remainder.split(";")[0].split("\\")[0].strip()
        installed = _installed(name)
        if installed is None or Version(installed).public != Version(locked).public:
            differences.append({"name": name, "locked": locked, "installed": installed})
    return differences


def _wrong_packages() -> list[str]:
    """List packages, and Python itself, whose version pinspect does not support, and packages that training misses."""
    package = metadata("pinspect")
    extras = package.get_all("Provides-Extra") or []
    problems = []
    python = package["Requires-Python"]
    if python and not SpecifierSet(python).contains(platform.python_version(), prereleases=True):
        problems.append(f"Python {platform.python_version()}: pinspect needs {python}")
    for line in package.get_all("Requires-Dist") or []:
        requirement = Requirement(line)
        marker, installed = requirement.marker, _installed(requirement.name)
        required = marker is None or marker.evaluate({"extra": "train"})
        if installed is None and not required:
            continue
        if not required and not any(marker.evaluate({"extra": extra}) for extra in extras if marker):
            continue
        if installed is None or not requirement.specifier.contains(Version(installed).public, prereleases=True):
            state = installed or "is missing"
            problems.append(f"{requirement.name} {state}: pinspect needs {requirement.specifier}; run `make install`")
    return problems


def _model_obstacles(root: Path, params: Params) -> list[str]:
    checkpoint = checkpoint_of(params.model, root)
    try:
        backend = open_backend(params.model.backend).name
    except ModelError as error:
        return [str(error)]
    obstacles = _too_large(checkpoint.family, params, backend)
    if checkpoint.folder is not None and not checkpoint.folder.is_dir():
        obstacles.append(f"{checkpoint.folder}: base model not found; run `make base`, or correct model.checkpoint")
    return obstacles


def _too_large(family: Family, params: Params, backend: str) -> list[str]:
    if params.train.quantization == "4bit" and not torch.cuda.is_available():
        return ["params.yaml: train.quantization: 4bit needs an NVIDIA GPU; set it to none"]
    suffix = "_4bit" if trains_in_four_bits(params.train, family, backend) else ""
    estimate = family_needs(family)
    return [
        f"params.yaml: model.family: {family.name} needs about {estimate['needs'][name]:.1f} GB to {task}; less is free"
        for task, name in (("answer", f"answer{suffix}"), ("be trained", f"train{suffix}"))
        if not estimate["fits"][name]
    ]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _giga(size: float) -> float:
    return round(size / _GIGA, 1)
