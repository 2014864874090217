"""An adapter merged into its base: a checkpoint like the base's own, for engines that know nothing of pinspect."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from pinspect.core.errors import ModelError
from pinspect.model.families import Checkpoint
from pinspect.model.loading import checkpoint_folder, directory_digest, load_inspector

_WEIGHTS = (".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth")
CARD = "pinspect.json"


def export_merged(base: Checkpoint, adapter: Path, out: Path) -> Path:
    """Write the base with `adapter` merged into it to the new folder `out`, and return that.

    Every file of the base's checkpoint but its weights is copied as it is, so that whatever loads the base loads the
    export; `pinspect.json` tells where it comes from. Weights are bfloat16 where the base's are, else float32. Raises
    ModelError when `out` holds something already, or base or adapter cannot be loaded.
    """
    if out.exists() and any(out.iterdir()):
        raise ModelError(f"{out}: is not empty; name a folder that is not there yet")
    folder = checkpoint_folder(base)
    merged = load_inspector(base, adapter).model.merge_and_unload().to(_dtype_of(folder))
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
    partial.rename(out)  # a folder that is there is a complete one
    return out


def _dtype_of(folder: Path) -> torch.dtype:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return torch.bfloat16 if "bfloat16" in (config.get("dtype"), config.get("torch_dtype")) else torch.float32
