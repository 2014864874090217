"""The only place that loads a model: a base of any family and its processor, with or without an adapter."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig

from pinspect.core.errors import ModelError
from pinspect.model.backends import dtype_of
from pinspect.model.checkpoint_files import (
    billion_parameters,
    checkpoint_folder,
    one_line,
    remedy,
    require_family,
    require_memory,
)
from pinspect.model.families import Checkpoint
from pinspect.model.processor import processor_from

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MAXIMUM_ANSWER_TOKENS = 128
_SMALL = 0.1  # billion parameters: up to here a GPU computes in float32 too
_FOUR_BIT_BYTES = 0.7  # per parameter, with scales and the layers that stay in 16 bits
# Regular expressions for the beginnings of names. The vision tower is small, and pins are small in its pictures.
_NOT_IN_FOUR_BITS = ["lm_head", ".*visual", ".*vision", ".*projector", ".*connector"]
_UNREADABLE = (SafetensorError, OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError, TypeError)


class _PatchConvolution(torch.nn.Conv3d):
    """The convolution of Qwen's vision towers, which sees one patch at a time, as the matrix product that it is.

    It is three times as fast on a CPU.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return (patches, channels, 1, 1, 1)."""
        if input.shape[2:] != self.kernel_size:
            return super().forward(input)
        product = torch.nn.functional.linear(input.flatten(1), self.weight.flatten(1), self.bias)
        return product[..., None, None, None]


@dataclass(frozen=True)
class Inspector:
    """A loaded model in evaluation mode.

    Attributes:
        model: The base, with or without an adapter.
        processor: The processor of its family: images and text -> model inputs.
        device: The device of the model.
    """

    model: Any
    processor: Any
    device: torch.device

    @property
    def base_model(self) -> Any:
        """The model itself, within the adapter's wrapper if it has one."""
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    @torch.inference_mode()
    def generate(self, batch: dict[str, torch.Tensor], **options: Any) -> Any:
        """Run Hugging Face's greedy `generate` on a batch of prompts and return its output.

        Args:
            batch: Model inputs, as `RowEncoder.batch` returns them.
            options: Further arguments of `generate`.
        """
        tokenizer = self.processor.tokenizer
        return self.model.generate(
            **self.place(batch),
            max_new_tokens=MAXIMUM_ANSWER_TOKENS,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **options,
        )

    def place(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return a batch on the model's device, with its numbers in the dtype of the weights."""
        dtype = self.base_model.dtype
        return {
            name: tensor.to(self.device, dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in batch.items()
        }


def load_processor(checkpoint: Checkpoint) -> Any:
    """Load the processor of a checkpoint, without its weights.

    Args:
        checkpoint: A folder or a hub repository.

    Returns:
        A processor of transformers: images and text -> model inputs.

    Raises:
        ModelError: The checkpoint is not on this machine, is incomplete, or belongs to another family.
    """
    folder = checkpoint_folder(checkpoint)
    require_family(checkpoint, folder)
    if checkpoint.family.torchvision and importlib.util.find_spec("torchvision") is None:
        raise ModelError(
            f"params.yaml: model.family: the processor of {checkpoint.family.name} needs torchvision; install the "
            "torchvision that fits your torch, or choose another family"
        )
    try:
        return processor_from(folder, checkpoint.family, trust_remote_code=checkpoint.trust_remote_code)
    except _UNREADABLE as error:
        raise ModelError(f"{folder}: the processor is not readable: {one_line(error)}; {remedy(checkpoint)}") from None


def load_base(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    quantization: BitsAndBytesConfig | None = None,
    loader: Callable[..., Any] | None = None,
) -> tuple[torch.nn.Module, Any]:
    """Load a base model and its processor; the model is on the CPU unless it is quantized or has a loader.

    Args:
        checkpoint: A folder or a hub repository.
        dtype: Dtype of the weights; None for float32 on a CPU and for small models, else bfloat16.
        quantization: The form of 4-bit weights; None for weights of `dtype`.
        loader: Loads the weights in place of transformers' own class, onto the inspecting device.

    Returns:
        The model and its processor.

    Raises:
        ModelError: A file is missing or not readable, the checkpoint belongs to another family or lacks tensors, or
            memory or disk are too small.
    """
    folder = checkpoint_folder(checkpoint)
    processor = load_processor(checkpoint)
    device = inspecting_device()
    small = device.type == "cpu" or billion_parameters(folder) < _SMALL
    dtype = dtype or (torch.float32 if small else torch.bfloat16)
    require_memory(checkpoint, _FOUR_BIT_BYTES if quantization else dtype.itemsize, device)
    auto: Any = AutoModelForCausalLM if checkpoint.family.remote_code else AutoModelForImageTextToText
    options: dict[str, Any] = {"trust_remote_code": checkpoint.trust_remote_code}
    placed = {"device_map": {"": device}} if quantization or loader else {}
    quantized = {"quantization_config": quantization} if quantization else {}
    try:
        model, loading_info = auto.from_pretrained(
            folder,
            dtype=dtype,
            output_loading_info=True,
            local_files_only=True,
            **options,
            **({"device_map": "meta"} if loader else placed | quantized),  # with a loader this reads names only
        )
        if loader:
            model = loader(folder, dtype=dtype, **options, **placed, **quantized)
    except _UNREADABLE as error:
        raise ModelError(f"{folder}: the base model is not readable: {one_line(error)}; {remedy(checkpoint)}") from None
    if quantization and not getattr(model, "is_quantized", False):  # where bitsandbytes does not work, Unsloth goes on
        raise ModelError(
            f"{folder}: the base has no 4-bit weights after loading: bitsandbytes does not work on this machine; set "
            "train.quantization to none"
        )
    missing = sorted(loading_info["missing_keys"])
    if missing:  # transformers would initialize them at random
        raise ModelError(
            f"{folder}: the base model lacks {len(missing)} tensors, the first is {missing[0]}; {remedy(checkpoint)}"
        )
    patches_as_products(model)
    return model, processor


def patches_as_products(model: torch.nn.Module) -> None:
    """Let a vision tower read its patches by a matrix product.

    Args:
        model: Any model; convolutions whose windows do not overlap are changed in place.
    """
    for module in model.modules():
        if type(module) is torch.nn.Conv3d and module.kernel_size == module.stride:
            module.__class__ = _PatchConvolution


def four_bit_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """Return the form of QLoRA's weights (Dettmers et al. 2023): 4-bit normal floats with quantized scales.

    Args:
        dtype: What products are computed in.

    Raises:
        ModelError: This machine cannot compute with 4-bit weights.
    """
    _require_four_bits("params.yaml: train.quantization: 4bit", "use none")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=_NOT_IN_FOUR_BITS,
    )


def load_inspector(checkpoint: Checkpoint, adapter: str | Path | None = None, *, whole: bool = False) -> Inspector:
    """Load a base, with an adapter or without, ready to answer.

    With an adapter that was trained on 4-bit weights, the base has the same 4-bit weights. Others are rounded to the
    checkpoint's `precision` on a CPU, after the adapter was merged.

    Args:
        checkpoint: The base.
        adapter: Folder of an adapter that was trained on this base.
        whole: Whether to round no weights, and to expand 4-bit weights to whole numbers of the same values.

    Raises:
        ModelError: Files are missing or not readable, the adapter belongs to another family or base, or this machine
            cannot compute with its 4-bit weights.
    """
    if adapter is not None:
        adapter = Path(adapter)
        _require_adapter(adapter, checkpoint)
    model, processor = load_base(checkpoint, quantization=_quantization_of(adapter) if adapter else None)
    if adapter is not None:
        quantized = getattr(model, "is_quantized", False)
        if quantized and whole:
            model, quantized = model.dequantize(), False  # pyright: ignore[reportCallIssue]
        try:
            model = PeftModel.from_pretrained(model, adapter, local_files_only=True)  # pyright: ignore[reportArgumentType]
            if not quantized:  # a product would be rounded to 4 bits
                model.merge_adapter()  # one product a layer in place of three; `disable_adapter` takes it back
        except _UNREADABLE as error:
            raise ModelError(
                f"{adapter}: the adapter does not fit {checkpoint}: {one_line(error)}; train it again on this base"
            ) from None
    device = inspecting_device()
    inspector = Inspector(model.eval().to(device), processor, device)
    if not whole and device.type == "cpu" and dtype_of(checkpoint.precision, device) == torch.bfloat16:
        _round_weights(inspector)
    return inspector


def _round_weights(inspector: Inspector) -> None:
    """Let a model compute in bfloat16 on a CPU, all but its logits: rounded, they would make probabilities alike."""
    base = inspector.base_model
    if getattr(base, "is_quantized", False):
        return
    inspector.model.to(torch.bfloat16)

    def in_float32(head: Any, inputs: tuple[torch.Tensor], _: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(inputs[0].float(), head.weight.float())

    base.get_output_embeddings().register_forward_hook(in_float32)


def inspecting_device() -> torch.device:
    """Return the GPU if the machine has one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _require_adapter(adapter: Path, checkpoint: Checkpoint) -> None:
    if not adapter.is_dir():
        raise ModelError(f"{adapter}: adapter not found; run `dvc repro train`, or `dvc pull` it")
    missing = [name for name in ADAPTER_FILES if not (adapter / name).is_file()]
    if missing:
        raise ModelError(f"{adapter}: the adapter lacks {', '.join(missing)}; run `dvc repro train`, or `dvc pull` it")
    training = adapter / "training.json"
    family = json.loads(training.read_text(encoding="utf-8")).get("family") if training.is_file() else None
    if family not in (None, checkpoint.family.name):
        raise ModelError(
            f"{adapter}: this adapter belongs to the family {family}, not to {checkpoint.family.name}; set "
            f"model.family to {family}, or train again"
        )


def _quantization_of(adapter: Path) -> BitsAndBytesConfig | None:
    """Return the form of the 4-bit weights that an adapter was trained on, None if it was trained on whole weights."""
    training = adapter / "training.json"
    form = json.loads(training.read_text(encoding="utf-8")).get("four_bits") if training.is_file() else None
    if form is None:
        return None
    _require_four_bits(
        f"{adapter}: this adapter, trained on 4-bit weights,", "train it again with train.quantization: none"
    )
    return BitsAndBytesConfig(**form)


def _require_four_bits(subject: str, advice: str) -> None:
    if importlib.util.find_spec("bitsandbytes") is not None and (
        torch.cuda.is_available() or os.environ.get("UNSLOTH_ALLOW_CPU") == "1"
    ):
        return
    what = "bitsandbytes (docs/gpu.md)" if torch.cuda.is_available() else "an NVIDIA GPU, this machine has none"
    raise ModelError(f"{subject} needs {what}; {advice}")
