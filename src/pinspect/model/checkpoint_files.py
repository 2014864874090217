"""The files of a base checkpoint: where they lie, whether they are complete, how large they are, and their digest.

A checkpoint is a folder, or a repository of the Hugging Face hub that is cached on this machine. pinspect reads the
cache without network access, and downloads only if the user sets HF_HUB_OFFLINE=0.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from pathlib import Path

import psutil
import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError

from pinspect.core.errors import ModelError
from pinspect.model.families import FAMILIES, PROJECT_BASE, Checkpoint, Family

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
_DOWNLOADED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
_NOT_DOWNLOADED = ["consolidated*", "original/*", "onnx/*"]
_ONLINE = ("0", "false", "no", "off")  # values of HF_HUB_OFFLINE that allow downloads
_OVERHEAD = 1.1  # memory for activations of a batch, the adapter and buffers, relative to the weights
_GIGA = 1e9


def checkpoint_folder(checkpoint: Checkpoint) -> Path:
    """Return the folder with the checkpoint's files, and download a hub checkpoint first if the user allows it.

    Args:
        checkpoint: A folder or a hub repository.

    Raises:
        ModelError: The folder is missing or incomplete, the download is not allowed or fails, or the disk is too small.
    """
    folder = checkpoint.folder or _snapshot(checkpoint)
    if not folder.is_dir():
        raise ModelError(f"{folder}: base model not found; {remedy(checkpoint)}")
    missing = _missing_files(folder)
    if missing:
        raise ModelError(f"{folder}: the base model lacks {', '.join(missing)}; {remedy(checkpoint)}")
    return folder


def require_family(checkpoint: Checkpoint, folder: Path) -> None:
    """Check that the config.json in `folder` belongs to the family of `checkpoint`, and to whole weights.

    Args:
        checkpoint: The checkpoint with its family.
        folder: The folder of its files.

    Raises:
        ModelError: config.json is not readable, belongs to another family (the message names the families that fit),
            or to ready-made 4-bit weights.
    """
    family = checkpoint.family
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        model_types = (config["model_type"], config.get("vision_config", {}).get("model_type", ""))
        quantized_by = config.get("quantization_config", {}).get("quant_method")
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{folder / 'config.json'}: not readable: {one_line(error)}; {remedy(checkpoint)}") from None
    if quantized_by == "bitsandbytes":
        raise ModelError(
            f"{folder}: found ready-made 4-bit weights, from which no whole checkpoint can be exported; set "
            "model.checkpoint to the one that they were made from, and train.quantization to 4bit"
        )
    if _fits(model_types, family):
        return
    others = [name for name, other in FAMILIES.items() if _fits(model_types, other)]
    raise ModelError(
        f"{folder}: model.family is {family.name}, but config.json has model_type {model_types[0]!r}"
        + (f"; choose {' or '.join(others)}" if others else "; pinspect supports no family with this type")
    )


def require_memory(checkpoint: Checkpoint, bytes_per_parameter: float, device: torch.device) -> None:
    """Check that the weights fit into the free memory of `device`.

    Args:
        checkpoint: The checkpoint whose weights are counted.
        bytes_per_parameter: Memory of one parameter once it is loaded.
        device: The CPU or a GPU.

    Raises:
        ModelError: The weights need more memory than is free.
    """
    if device.type == "cuda":
        free, memory = torch.cuda.mem_get_info(device)[0], f"GPU memory ({torch.cuda.get_device_name(device)})"
    else:
        free, memory = psutil.virtual_memory().available, "main memory"
    needed = billion_parameters(checkpoint_folder(checkpoint)) * 1e9 * bytes_per_parameter * _OVERHEAD
    if needed > free:
        raise ModelError(
            f"{checkpoint.family.name} needs about {needed / _GIGA:.1f} GB of {memory}, and {free / _GIGA:.1f} GB are "
            "free; close other programs, or choose a smaller model.family (docs/models.md)"
        )


def billion_parameters(folder: Path) -> float:
    """Return the number of parameters in billions, read from the headers of the weight files.

    Args:
        folder: The folder of a checkpoint.

    Raises:
        ModelError: A file is not a complete safetensors file.
    """
    return sum(_count_elements(path) for path in _shards(folder)) / 1e9


def base_digest(checkpoint: Checkpoint) -> str:
    """Return the sha256 that identifies a base: over its files, or over hub repository and commit."""
    if checkpoint.folder is not None:
        return directory_digest(checkpoint.folder)
    commit = checkpoint_folder(checkpoint).name
    return hashlib.sha256(f"{checkpoint.source}@{commit}".encode()).hexdigest()


def directory_digest(directory: str | Path) -> str:
    """Return the sha256 over names and contents of all files in `directory`."""
    directory = Path(directory)
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(directory).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def remedy(checkpoint: Checkpoint) -> str:
    """Return the last part of an error message: how to get complete files of `checkpoint`."""
    if checkpoint.family.model_id == PROJECT_BASE:
        return "run `make base`, or restore the folder from git"
    return "download it again, or set model.checkpoint to a complete folder"


def one_line(error: Exception) -> str:
    """Return the message of `error` as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def _fits(model_types: tuple[str, str], family: Family) -> bool:
    return model_types[0] in family.model_types and family.vision_type in ("", model_types[1])


def _missing_files(folder: Path) -> list[str]:
    required = (("config.json",), (WEIGHTS, WEIGHTS_INDEX), _PROCESSOR_FILES, _TOKENIZER_FILES)
    missing = [" or ".join(names) for names in required if not any((folder / name).is_file() for name in names)]
    return missing + [path.name for path in _shards(folder) if not path.is_file()]


def _shards(folder: Path) -> list[Path]:
    """Return the weight files that a checkpoint lists."""
    if not (folder / WEIGHTS_INDEX).is_file():
        return [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []
    try:
        names = json.loads((folder / WEIGHTS_INDEX).read_text(encoding="utf-8"))["weight_map"].values()
    except (ValueError, KeyError) as error:
        raise ModelError(f"{folder / WEIGHTS_INDEX}: not readable: {one_line(error)}; download it again") from None
    return [folder / name for name in sorted(set(names))]


def _count_elements(path: Path) -> int:
    """Return how many numbers a safetensors file holds. Format: header length in 8 bytes, header as JSON, data.

    The safetensors library would map the whole file, for which the memory may not suffice.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, size)))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        missing = 8 + length + max(entry["data_offsets"][1] for entry in tensors) - size
        elements = sum(math.prod(entry["shape"]) for entry in tensors)
        problem = f"{missing:,} bytes are missing" if missing > 0 else f"{-missing:,} bytes too many"
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OSError) as error:
        elements, missing, problem = 0, 1, one_line(error)
    if missing:
        raise ModelError(
            f"{path}: not a complete safetensors file: {problem}; restore it from git, or download it again"
        )
    return elements


def _snapshot(checkpoint: Checkpoint) -> Path:
    """Return the cached folder of a hub checkpoint; the hub's own library downloads and resumes."""
    patterns = [*_DOWNLOADED, *(["*.py"] if checkpoint.trust_remote_code else [])]
    revision = checkpoint.revision or None
    try:
        folder = Path(
            snapshot_download(
                checkpoint.source,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=_NOT_DOWNLOADED,
                local_files_only=True,
            )
        )
        if not _missing_files(folder):
            return folder
    except (EntryNotFoundError, OSError, ValueError):
        pass  # not cached
    _require_online(checkpoint)
    _require_disk(checkpoint)
    try:
        return Path(
            snapshot_download(
                checkpoint.source, revision=revision, allow_patterns=patterns, ignore_patterns=_NOT_DOWNLOADED
            )
        )
    except GatedRepoError:
        raise ModelError(
            f"{checkpoint.source}: you have to accept the license of this model first: accept it on its page at "
            "huggingface.co, then run `hf auth login`"
        ) from None
    except (HfHubHTTPError, EntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"{checkpoint}: the download failed: {one_line(error)}; run the same command again to resume it"
        ) from None


def _require_online(checkpoint: Checkpoint) -> None:
    if os.environ.get("HF_HUB_OFFLINE", "1").lower() not in _ONLINE:
        pinned = f" --revision {checkpoint.revision}" if checkpoint.revision else ""
        raise ModelError(
            f"{checkpoint}: not (completely) on this machine, and pinspect works offline; download it once with "
            f"`HF_HUB_OFFLINE=0 hf download {checkpoint.source}{pinned}`, or set model.checkpoint to a folder"
        )


def _require_disk(checkpoint: Checkpoint) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    needed, free = checkpoint.family.parameters * 1e9 * 2, shutil.disk_usage(cache).free
    if needed > free:
        raise ModelError(
            f"{checkpoint}: the download needs about {needed / _GIGA:.1f} GB, and {free / _GIGA:.1f} GB are free in "
            f"{cache}; free some space, or set HF_HUB_CACHE to a folder on a larger disk"
        )
