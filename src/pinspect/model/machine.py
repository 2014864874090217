"""What this machine can run: hardware, installed versions, model families and back ends (`pinspect doctor`)."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import psutil
import torch
from packaging.requirements import Requirement
from packaging.version import Version
from rich.console import Console
from rich.table import Table

from pinspect.core.errors import ModelError
from pinspect.core.params import Params
from pinspect.model.backends import computes_bfloat16, open_backend, unsloth_obstacle
from pinspect.model.families import FAMILIES, Family, checkpoint_of

LOCK, GPU_LOCK = "requirements.lock", "requirements-gpu.lock"
READY, NOT_READY = 0, 2
_PYTHON = (Version("3.11"), Version("3.13"))
_GIGA = 1e9
_QUANTIZED_BYTES = 0.7  # a 4-bit weight with its scales, and the layers that stay in 16 bits
# Beside the weights: activations of one row with gradient checkpointing, and the adapter with its optimizer's state.
# Rules of thumb: long prompts and large batches take more.
_ROOM_TO_ANSWER, _ROOM_TO_TRAIN = 1.1, 1.4


def examine(root: Path, params: Params | None) -> dict:
    """Everything that `pinspect doctor` tells, as plain JSON; sizes in GB (1e9 bytes).

    root: the project folder, whose lock file the installed versions are compared with. params: of the project, None
    where there is none. `obstacles` holds, a line each, what keeps the chosen model from running here.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    memory = psutil.virtual_memory()
    lock = root / (GPU_LOCK if device.type == "cuda" else LOCK)
    told = {
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
        "versions": versions_unlike(lock),
        "families": [family_needs(family) for family in FAMILIES.values()],
    }
    return told | {"obstacles": _obstacles(root, params, told)}


def cards() -> list[dict]:
    """The NVIDIA cards that torch sees: name, total and free memory (GB), whether they compute bfloat16."""
    found = []
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(number)
        found.append(
            {
                "name": torch.cuda.get_device_name(number),
                "memory": _giga(total),
                "free": _giga(free),
                "bfloat16": torch.cuda.get_device_capability(number) >= (8, 0),
            }
        )
    return found


def family_needs(family: Family) -> dict:
    """Estimated memory (GB) of a family to answer, to be trained, and to be trained in 4 bits, and which of them fit
    what is free here: on the roomiest card where there is one, else in main memory (no 4 bits there)."""
    free = max((card["free"] for card in cards()), default=0.0)
    on_card = bool(free)
    free = free or _giga(psutil.virtual_memory().available)
    size = torch.bfloat16.itemsize if on_card and family.parameters >= 0.1 else torch.float32.itemsize
    needs = {
        "answer": family.parameters * size * _ROOM_TO_ANSWER,
        "train": family.parameters * size * _ROOM_TO_TRAIN,
        "train_4bit": family.parameters * _QUANTIZED_BYTES * _ROOM_TO_TRAIN,
    }
    fits = {name: need <= free and (on_card or name != "train_4bit") for name, need in needs.items()}
    return {
        "name": family.name,
        "model_id": family.model_id,
        "needs": {name: round(need, 2) for name, need in needs.items()},
        "fits": fits,
        "unsloth": bool(family.unsloth_id),
    }


def versions_unlike(lock: Path) -> list[dict]:
    """Packages whose installed version is not the one in `lock` (name==version lines): name, locked, and installed,
    which is None where the package is missing. Empty without such a file."""
    if not lock.is_file():
        return []
    unlike = []
    for line in lock.read_text(encoding="utf-8").splitlines():
        name, _, locked = line.partition("==")
        if locked and not line.startswith("#"):
            locked = locked.split(";")[0].strip()
            found = _installed(name)
            if found is None or Version(found).public != Version(locked).public:
                unlike.append({"name": name, "locked": locked, "installed": found})
    return unlike


def print_examination(told: dict) -> None:
    """Show what `examine` found to a person."""
    console = Console(highlight=False)
    cpu = told["cpu"]
    bf16 = "computes bf16" if cpu["bfloat16"] else "no bf16: trains in float32"
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, text in (
        ("Python", f"{told['python']}, torch {told['torch']}"),
        ("System", told["system"]),
        ("CPU", f"{cpu['cores']} cores, {cpu['threads']} threads for torch, {bf16}"),
        ("Memory", f"{told['memory']['free']:.1f} of {told['memory']['total']:.1f} GB free"),
        ("Disk", f"{told['disk']['free']:.1f} GB free"),
        (
            "GPU",
            "; ".join(f"{card['name']}, {card['free']:.1f} of {card['memory']:.1f} GB free" for card in told["cards"]),
        ),
        ("Back ends", ", ".join(f"{name} {why}" if why else f"{name}: yes" for name, why in told["backends"].items())),
        ("Versions", _versions_line(told)),
    ):
        facts.add_row(name, text or "none that torch sees")
    console.print(facts)
    table = Table(
        "family", "answers", "trains", "trains in 4 bits", "by Unsloth", title="GB needed, about", title_justify="left"
    )
    for family in told["families"]:
        cells = [
            f"{family['needs'][name]:.1f} {'fits' if family['fits'][name] else 'no'}"
            for name in ("answer", "train", "train_4bit")
        ]
        table.add_row(family["name"], *cells, "yes" if family["unsloth"] else "no")
    console.print(table)
    for obstacle in told["obstacles"]:
        console.print(obstacle, soft_wrap=True)
    if not told["obstacles"]:
        console.print("Nothing stands in the way.")


def _versions_line(told: dict) -> str:
    if told["lock"] is None:
        return "no lock file here to compare with"
    unlike = [f"{entry['name']} {entry['installed'] or 'missing'} for {entry['locked']}" for entry in told["versions"]]
    return f"unlike {told['lock']}: {', '.join(unlike)}" if unlike else f"as in {told['lock']}"


def _obstacles(root: Path, params: Params | None, told: dict) -> list[str]:
    found = []
    if not _PYTHON[0] <= Version(told["python"]) < _PYTHON[1]:
        found.append(f"Python {told['python']}: pinspect needs 3.11 or 3.12")
    for line in requires("pinspect") or []:
        need = Requirement(line)
        have = _installed(need.name)
        if need.marker is None and (
            have is None or not need.specifier.contains(Version(have).public, prereleases=True)
        ):
            found.append(f"{need.name} {have or 'is missing'}: pinspect needs {need.specifier}; run make install")
    if params is None:
        return found
    chosen = checkpoint_of(params.model, root)
    try:
        backend = open_backend(params.model.backend).name
    except ModelError as error:
        return [*found, str(error)]
    found += _too_large(chosen.family, params, backend)
    if chosen.folder is not None and not chosen.folder.is_dir():
        found.append(f"{chosen.folder}: no base model there; run `make base`, or correct model.checkpoint")
    return found


def _too_large(family: Family, params: Params, backend: str) -> list[str]:
    quantization = params.train.quantization
    if quantization == "4bit" and not torch.cuda.is_available():
        return ["params.yaml: train.quantization: 4bit needs an NVIDIA GPU; set it to none"]
    four_bit = quantization == "4bit" or (quantization == "auto" and backend == "unsloth")
    told = family_needs(family)
    return [
        f"params.yaml: model.family: {family.name} needs about {told['needs'][name]:.1f} GB to {what}; less is free"
        for what, name in (("answer", "answer"), ("be trained", "train_4bit" if four_bit else "train"))
        if not told["fits"][name]
    ]


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _giga(size: float) -> float:
    return round(size / _GIGA, 1)
