"""Export of an adapter merged into its base: a checkpoint like the base's own, for engines such as vLLM."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from pinspect.core.errors import ModelError
from pinspect.model.checkpoint_files import checkpoint_folder, directory_digest
from pinspect.model.families import Checkpoint
from pinspect.model.loading import load_inspector

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth")
CARD = "pinspect.json"


def export_merged(base: Checkpoint, adapter: Path, out: Path) -> Path:
    """Merge an adapter into its base and write the result as a whole checkpoint.

    All files of the base's checkpoint except its weights are copied unchanged, so that every program that loads the
    base loads the export. `pinspect.json` names base and adapter. The weights are bfloat16 if the base's weights are,
    else float32.

    Args:
        base: The base.
        adapter: Folder of the adapter.
        out: Folder to write; missing or empty.

    Returns:
        `out`.

    Raises:
        ModelError: `out` is not empty, or base or adapter cannot be loaded.
    """
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out}: the folder is not empty; choose a new folder")
    folder = checkpoint_folder(base)
    merged = load_inspector(base, adapter, whole=True).model.merge_and_unload().to(_dtype_of(folder))
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for path in sorted(folder.iterdir()):
        if path.is_file() and not path.name.endswith(_WEIGHTS):
            shutil.copyfile(path, partial / path.name)
    merged.save_pretrained(partial)
    origin = {
        "family": base.family.name,
        "base": base.source,
        "revision": base.revision,
        "adapter_digest": directory_digest(adapter),
    }
    (partial / CARD).write_text(json.dumps(origin, indent=2) + "\n")
    if out.exists():
        out.rmdir()
    partial.rename(out)  # the rename comes last, so that `out` is always complete
    return out


def _dtype_of(folder: Path) -> torch.dtype:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return torch.bfloat16 if "bfloat16" in (config.get("dtype"), config.get("torch_dtype")) else torch.float32
