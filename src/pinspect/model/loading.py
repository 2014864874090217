"""The one place that loads a model: a base with its processor, with or without an adapter, whatever its family."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from pinspect.core.errors import ModelError
from pinspect.model.families import FAMILIES, PROJECT_BASE, Checkpoint
from pinspect.model.processor import processor_from

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
_DOWNLOADED = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
_SPARE_ROOM = 1.1  # what runs beside the weights: activations of a batch, the adapter, buffers
_GIGA = 1e9
_UNREADABLE = (SafetensorError, OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError)


@dataclass(frozen=True)
class Inspector:
    """A loaded model, in evaluation mode, with the processor that feeds it."""

    model: torch.nn.Module
    processor: object
    device: torch.device


def load_processor(checkpoint: Checkpoint):
    """What makes a family's model inputs of images and texts, without its weights.

    Raises ModelError when the checkpoint is not on this machine, lacks files or is of another family.
    """
    folder = checkpoint_folder(checkpoint)
    _require_family(checkpoint, folder)
    try:
        return processor_from(folder, checkpoint.family, trust_remote_code=checkpoint.trust_remote_code)
    except _UNREADABLE as error:
        raise ModelError(f"{folder}: the processor cannot be read: {_one_line(error)}; {_remedy(checkpoint)}") from None


def load_base(checkpoint: Checkpoint, *, dtype: torch.dtype | None = None, quantization=None) -> tuple:
    """The base model, on the CPU unless quantized, and its processor.

    dtype: of its weights; None for float32 where the CPU or the small default computes, else bfloat16. quantization:
    a quantization config of transformers, for 4-bit weights on a GPU. Raises ModelError that names the file which is
    missing or cannot be read, the family that was found instead, or how much memory or disk is missing.
    """
    folder = checkpoint_folder(checkpoint)
    processor = load_processor(checkpoint)
    device = inspecting_device()
    small = device.type == "cpu" or parameters_of(folder) < 0.1
    dtype = dtype or (torch.float32 if small else torch.bfloat16)
    require_memory(checkpoint, 0.7 if quantization else dtype.itemsize, device)
    auto = AutoModelForCausalLM if checkpoint.family.remote_code else AutoModelForImageTextToText
    settings = {"quantization_config": quantization, "device_map": {"": device}} if quantization else {}
    try:
        model, found = auto.from_pretrained(
            folder,
            dtype=dtype,
            trust_remote_code=checkpoint.trust_remote_code,
            output_loading_info=True,
            **settings,
        )
    except _UNREADABLE as error:
        raise ModelError(
            f"{folder}: the base model cannot be read: {_one_line(error)}; {_remedy(checkpoint)}"
        ) from None
    missing = sorted(found["missing_keys"])
    if missing:  # transformers would fill them at random
        raise ModelError(
            f"{folder}: the base model lacks {len(missing)} of its tensors, {missing[0]} for one; {_remedy(checkpoint)}"
        )
    return model, processor


def load_inspector(checkpoint: Checkpoint, adapter: str | Path | None = None) -> Inspector:
    """The base, with the adapter in `adapter` when one is given, ready to answer.

    Raises ModelError where files are missing, corrupt, or the adapter was made for another family or base.
    """
    if adapter is not None:
        adapter = Path(adapter)
        _require_adapter(adapter, checkpoint)
    model, processor = load_base(checkpoint)
    if adapter is not None:
        try:
            model = PeftModel.from_pretrained(model, adapter)
        except _UNREADABLE as error:
            raise ModelError(
                f"{adapter}: the adapter cannot be put on {checkpoint}: {_one_line(error)}; train it again on this base"
            ) from None
    device = inspecting_device()
    return Inspector(model.eval().to(device), processor, device)


def inspecting_device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def checkpoint_folder(checkpoint: Checkpoint) -> Path:
    """The folder with the checkpoint's files, downloaded first where it is on the hub and the user is online.

    Raises ModelError when it lacks files, is not there, or does not fit on the disk.
    """
    folder = checkpoint.folder or _snapshot(checkpoint)
    if not folder.is_dir():
        raise ModelError(f"{folder}: no base model there; {_remedy(checkpoint)}")
    missing = _missing_files(folder)
    if missing:
        raise ModelError(f"{folder}: the base model lacks {', '.join(missing)}; {_remedy(checkpoint)}")
    return folder


def parameters_of(folder: Path) -> float:
    """How many parameters, in billions, the weights in `folder` hold, by their headers alone.

    Raises ModelError for a file that is no safetensors file or was cut off.
    """
    return sum(_tensor_elements(path) for path in _shards(folder)) / 1e9


def _tensor_elements(path: Path) -> int:
    """How many numbers a safetensors file holds. Its format: the header's length in 8 bytes, the header as JSON, data.

    Read here and not by its library, which maps the whole file: the memory that is asked after may not suffice for it.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size:
                raise ValueError("it has no header")
            header = json.loads(file.read(length))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        missing = 8 + length + max(entry["data_offsets"][1] for entry in tensors) - size
        if missing:
            raise ValueError(f"{missing:,} bytes are missing" if missing > 0 else f"{-missing:,} bytes too many")
        return sum(math.prod(entry["shape"]) for entry in tensors)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OSError) as error:
        raise ModelError(
            f"{path}: no complete safetensors file: {_one_line(error)}; restore it from git, or download it again"
        ) from None


def require_memory(checkpoint: Checkpoint, bytes_per_parameter: float, device: torch.device) -> None:
    """Raise ModelError unless the weights find room in the memory of `device`."""
    if device.type == "cuda":
        free, where = torch.cuda.mem_get_info(device)[0], f"GPU memory ({torch.cuda.get_device_name(device)})"
    else:
        free, where = psutil.virtual_memory().available, "main memory"
    needed = parameters_of(checkpoint_folder(checkpoint)) * 1e9 * bytes_per_parameter * _SPARE_ROOM
    if needed > free:
        raise ModelError(
            f"{checkpoint.family.name} needs about {needed / _GIGA:.1f} GB of {where}, and {free / _GIGA:.1f} GB are "
            "free; close other programs, or choose a smaller model.family (docs/models.md)"
        )


def base_digest(checkpoint: Checkpoint) -> str:
    """sha256 that names a base: over its files, or over hub id and commit."""
    if checkpoint.folder is not None:
        return directory_digest(checkpoint.folder)
    commit = checkpoint_folder(checkpoint).name
    return hashlib.sha256(f"{checkpoint.source}@{commit}".encode()).hexdigest()


def directory_digest(directory: str | Path) -> str:
    """sha256 over the names and contents of the files in `directory`, for keying versions."""
    directory = Path(directory)
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(directory).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _snapshot(checkpoint: Checkpoint) -> Path:
    """The hub's own cached, resumable download."""
    asked = {
        "repo_id": checkpoint.source,
        "revision": checkpoint.revision or None,
        "allow_patterns": [*_DOWNLOADED, *(["*.py"] if checkpoint.trust_remote_code else [])],
        "ignore_patterns": ["consolidated*", "original/*", "onnx/*"],
    }
    try:
        folder = Path(snapshot_download(**asked, local_files_only=True))
    except (EntryNotFoundError, OSError, ValueError):
        folder = None
    if folder is not None and not _missing_files(folder):
        return folder
    _require_online(checkpoint)
    _require_disk(checkpoint)
    try:
        return Path(snapshot_download(**asked))
    except GatedRepoError:
        raise ModelError(
            f"{checkpoint.source}: its makers ask you to accept their licence: do so on its page at huggingface.co, "
            "then `hf auth login`"
        ) from None
    except (HfHubHTTPError, EntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"{checkpoint}: the download failed: {_one_line(error)}; run the same command again to resume it"
        ) from None


def _require_online(checkpoint: Checkpoint) -> None:
    if constants.is_offline_mode():
        pinned = f" --revision {checkpoint.revision}" if checkpoint.revision else ""
        raise ModelError(
            f"{checkpoint}: not (or not wholly) on this machine, and pinspect works offline; download it once by "
            f"`HF_HUB_OFFLINE=0 hf download {checkpoint.source}{pinned}`, or set model.checkpoint to a folder"
        )


def _require_disk(checkpoint: Checkpoint) -> None:
    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    needed, free = checkpoint.family.parameters * 1e9 * 2, shutil.disk_usage(cache).free
    if needed > free:
        raise ModelError(
            f"{checkpoint}: about {needed / _GIGA:.1f} GB to download, and {cache} has room for {free / _GIGA:.1f} GB; "
            "make room there, or set HF_HUB_CACHE to a folder on a larger disk"
        )


def _missing_files(folder: Path) -> list[str]:
    wanted = (("config.json",), (WEIGHTS, WEIGHTS_INDEX), _PROCESSOR_FILES, _TOKENIZER_FILES)
    missing = [" or ".join(names) for names in wanted if not any((folder / name).is_file() for name in names)]
    return missing + [path.name for path in _shards(folder) if not path.is_file()]


def _shards(folder: Path) -> list[Path]:
    """The weight files that a checkpoint says it has."""
    if not (folder / WEIGHTS_INDEX).is_file():
        return [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []
    try:
        names = json.loads((folder / WEIGHTS_INDEX).read_text(encoding="utf-8"))["weight_map"].values()
    except (ValueError, KeyError) as error:
        raise ModelError(f"{folder / WEIGHTS_INDEX}: cannot be read: {_one_line(error)}; download it again") from None
    return [folder / name for name in sorted(set(names))]


def _require_family(checkpoint: Checkpoint, folder: Path) -> None:
    family = checkpoint.family
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        found = (config["model_type"], config.get("vision_config", {}).get("model_type", ""))
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelError(
            f"{folder / 'config.json'}: cannot be read: {_one_line(error)}; {_remedy(checkpoint)}"
        ) from None
    if _fits(found, family):
        return
    others = [name for name, other in FAMILIES.items() if _fits(found, other)]
    raise ModelError(
        f"{folder}: model.family is {family.name}, but config.json tells of model_type {found[0]!r}"
        + (f"; choose {' or '.join(others)}" if others else "; no family of pinspect has it")
    )


def _fits(found: tuple[str, str], family) -> bool:
    return found[0] in family.model_types and family.vision_type in ("", found[1])


def _require_adapter(adapter: Path, checkpoint: Checkpoint) -> None:
    if not adapter.is_dir():
        raise ModelError(f"{adapter}: no adapter there; run `dvc repro train`, or `dvc pull` it")
    missing = [name for name in ADAPTER_FILES if not (adapter / name).is_file()]
    if missing:
        raise ModelError(f"{adapter}: the adapter lacks {', '.join(missing)}; run `dvc repro train`, or `dvc pull` it")
    training = adapter / "training.json"
    trained_on = json.loads(training.read_text(encoding="utf-8")).get("family") if training.is_file() else None
    if trained_on not in (None, checkpoint.family.name):
        raise ModelError(
            f"{adapter}: an adapter of the family {trained_on} cannot be put on {checkpoint.family.name}; set "
            f"model.family to {trained_on}, or train again"
        )


def _remedy(checkpoint: Checkpoint) -> str:
    if checkpoint.family.model_id == PROJECT_BASE:
        return "run `make base`, or restore the folder from git"
    return "download it again, or set model.checkpoint to a complete folder"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
