"""The one place that loads a model: a base with its processor, with or without an adapter."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText, AutoProcessor

from pinspect.errors import ModelError
from pinspect.model import processor as _registers_the_processor  # noqa: F401

BASE_FILES = ("config.json", "model.safetensors", "processor_config.json", "tokenizer.json")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(frozen=True)
class Inspector:
    """A loaded model, in evaluation mode, with the processor that feeds it."""

    model: torch.nn.Module
    processor: object
    device: torch.device

    @property
    def image_token_pixels(self) -> int:
        """The side in px of one visual token (patch x merge)."""
        image_processor = self.processor.image_processor
        return image_processor.patch_size * image_processor.merge_size


def load_base(directory: str | Path) -> tuple[torch.nn.Module, object]:
    """The base model, in float32, and its processor.

    Raises ModelError that names the file which is missing or cannot be read.
    """
    directory = Path(directory)
    _require(directory, BASE_FILES, "base model", "run `make base`, or restore the folder from git")
    try:
        processor = AutoProcessor.from_pretrained(directory)
        model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"{directory}: the base model cannot be read: {_one_line(error)}; restore it from git"
        ) from None
    return model, processor


def load_inspector(base: str | Path, adapter: str | Path | None = None) -> Inspector:
    """The base, with the adapter in `adapter` when one is given, ready to answer.

    Raises ModelError where files are missing, corrupt, or the adapter was made for another base.
    """
    model, processor = load_base(base)
    if adapter is not None:
        adapter = Path(adapter)
        _require(adapter, ADAPTER_FILES, "adapter", "run `dvc repro train`, or `dvc pull` it")
        try:
            model = PeftModel.from_pretrained(model, adapter)
        except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
            raise ModelError(
                f"{adapter}: the adapter cannot be put on {base}: {_one_line(error)}; train it again on this base"
            ) from None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Inspector(model.eval().to(device), processor, device)


def directory_digest(directory: str | Path) -> str:
    """sha256 over the names and contents of the files in `directory`, for keying versions."""
    directory = Path(directory)
    digest = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(directory).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _require(directory: Path, names: tuple[str, ...], what: str, remedy: str) -> None:
    if not directory.is_dir():
        raise ModelError(f"{directory}: no {what} there; {remedy}")
    missing = [name for name in names if not (directory / name).is_file()]
    if missing:
        raise ModelError(f"{directory}: the {what} lacks {', '.join(missing)}; {remedy}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
