"""Two backends that train the same adapter: `transformers` on any machine, `unsloth` on an NVIDIA GPU.

Both load the same files, put LoRA pairs on the same layers, see the same tokens and pixels, minimize the same loss and
save in peft's format, so that either loads what the other trained. They differ in the kernels alone.
Unsloth patches transformers and peft on import and must be imported first, so this module imports neither of them
before `open_backend` has chosen.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from pinspect.core.errors import ModelError
from pinspect.core.params import TrainParams
from pinspect.model.batching import IGNORED

if TYPE_CHECKING:
    from pinspect.model.families import Checkpoint, Family


_VISION = ("visual", "vision_tower", "vision_model")
_LAYER_SUFFIXES = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj", "qkv", "qkv_proj", "attn.proj", "out_proj"),
    "mlp": (
        *("gate_proj", "up_proj", "down_proj", "gate_up_proj", "linear_fc1", "linear_fc2", "fc1", "fc2"),
        *("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
    ),
}
_SWITCHES = ("vision", "language", "attention", "mlp")


def open_backend(name: str) -> Backend:
    """Return the backend that `model.backend` names; `auto` is Unsloth on a GPU if it can run there, else transformers.

    Args:
        name: `transformers`, `unsloth` or `auto`.

    Raises:
        ModelError: Unsloth is required and cannot run here.
    """
    obstacle = unsloth_obstacle()
    if name == "unsloth" and obstacle:
        raise ModelError(f"params.yaml: model.backend: unsloth {obstacle}; choose auto or transformers")
    automatic = name == "auto" and torch.cuda.is_available() and not obstacle
    return UnslothBackend() if name == "unsloth" or automatic else Backend()


def unsloth_obstacle() -> str:
    """Return why Unsloth cannot run here, "" if it can. The GPU comes first: without a GPU even its import fails.

    Unsloth's own variable `UNSLOTH_ALLOW_CPU=1` lets it run on a CPU, slowly; the tests with Unsloth set it.
    """
    if not torch.cuda.is_available() and os.environ.get("UNSLOTH_ALLOW_CPU") != "1":
        return "needs an NVIDIA GPU, and this machine has none"
    if importlib.util.find_spec("unsloth") is None:
        return "is not installed; see docs/gpu.md"
    return ""


def dtype_of(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype that training and answers compute in.

    Args:
        precision: `bf16`, `float32`, or `auto`: bfloat16 if the hardware computes it, else float32.
        device: What computes.
    """
    if precision == "auto":
        return torch.bfloat16 if computes_bfloat16(device) else torch.float32
    return {"bf16": torch.bfloat16, "float32": torch.float32}[precision]


def computes_bfloat16(device: torch.device) -> bool:
    """Return whether the hardware has bfloat16 instructions; emulated, bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def adapted_modules(model: nn.Module, params: TrainParams) -> list[str]:
    """Return the names of the linear layers that get a LoRA pair.

    Args:
        model: The base.
        params: The switches `vision` and `language` choose parts of the model, `attention` and `mlp` kinds of layers.

    Raises:
        ModelError: A switch is on, and no layer matches it.
    """
    names, matched = [], set()
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or name.endswith("lm_head") or "audio" in name:
            continue
        part = "vision" if any(word in name for word in _VISION) else "language"
        kind = next(
            (kind for kind, suffixes in _LAYER_SUFFIXES.items() if name.removesuffix(".linear").endswith(suffixes)),
            None,
        )
        if kind and getattr(params, kind) and getattr(params, part):
            names.append(name)
            matched |= {part, kind}
    unmatched = [switch for switch in _SWITCHES if getattr(params, switch) and switch not in matched]
    if unmatched:
        raise ModelError(
            f"params.yaml: train.{unmatched[0]} is true, but no layer of this model matches it; set it to false, or "
            "change the other switches (vision, language, attention, mlp)"
        )
    return names


def trains_in_four_bits(params: TrainParams, family: Family, backend: str) -> bool:
    """Return whether a training loads the base with 4-bit weights.

    Args:
        params: `quantization` is `none`, `4bit` or `auto`: 4 bits with Unsloth, for families that are large enough.
        family: The model family.
        backend: Name of the backend.
    """
    return params.quantization == "4bit" or (
        params.quantization == "auto" and backend == UnslothBackend.name and family.four_bit
    )


class Backend:
    """transformers and peft: any machine, any family; 4-bit weights (QLoRA) on an NVIDIA GPU.

    Attributes:
        name: The name in `params.yaml`.
        parallel: Whether several threads may compute with the model at the same time.
        dtype: What the training computes in; known after `load`.
    """

    name = "transformers"
    parallel = True
    dtype: torch.dtype

    def load(self, base: Checkpoint, params: TrainParams) -> tuple[Any, Any]:
        """Load the frozen base on its device, and its processor."""
        from pinspect.model.loading import four_bit_config, inspecting_device, load_base

        device = inspecting_device()
        self.dtype, self._caps_logits = dtype_of(base.precision, device), base.family.caps_logits
        quantization = four_bit_config(self.dtype) if trains_in_four_bits(params, base.family, self.name) else None
        weights = torch.float32 if self.dtype == torch.float32 and not quantization else None
        loaded, processor = load_base(base, dtype=weights, quantization=quantization, loader=self._loader(params))
        model: Any = loaded
        return (model if quantization else model.to(device)), processor

    def adapt(self, model: Any, params: TrainParams, words: Sequence[int]) -> Any:
        """Add untrained LoRA pairs and trainable embeddings of `words` (token ids); return a PeftModel."""
        from peft.tuners.lora import LoraLayer

        in_float32 = next(model.parameters()).dtype == torch.float32
        adapted = self._with_pairs(
            model,
            params,
            r=params.rank,
            lora_alpha=params.alpha,
            lora_dropout=params.dropout,
            target_modules=adapted_modules(model, params),
            trainable_token_indices=list(words) or None,
        )
        for module in adapted.modules():
            if isinstance(module, LoraLayer) and in_float32:
                module.cast_input_dtype_enabled = False  # autocast would undo the cast to float32
        return adapted

    def answer_loss(self, model: Any, batch: dict[str, torch.Tensor], answer_tokens: int) -> torch.Tensor:
        """Return the cross entropy in nats, summed over the answer tokens of `batch` and divided by `answer_tokens`.

        Args:
            model: The adapted model.
            batch: Model inputs with `labels`; one part of an optimizer step.
            answer_tokens: Number of answer tokens in all parts of the optimizer step.
        """
        labels = batch["labels"][:, 1:]
        in_answer = labels != IGNORED
        base = model.get_base_model()
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        with torch.autocast(labels.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            # Logits of the answer tokens only: the vocabulary is the widest layer of a language model.
            hidden = base.model(**inputs, use_cache=False).last_hidden_state[:, :-1][in_answer]
            logits = base.get_output_embeddings()(hidden).float()
        if self._caps_logits:
            cap = base.config.get_text_config().final_logit_softcapping
            logits = cap * torch.tanh(logits / cap)
        return F.cross_entropy(logits, labels[in_answer], reduction="sum") / answer_tokens

    def to_train(self, model: Any) -> None:
        """Switch the model to training mode."""
        model.train()

    def to_answer(self, model: Any) -> None:
        """Switch the model to generation."""
        model.eval()

    def _loader(self, params: TrainParams) -> Any:
        """Return what `load_base` loads the weights with; None for transformers' own class."""
        return None

    def _with_pairs(self, model: Any, params: TrainParams, **lora: Any) -> Any:
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

        if getattr(model, "is_quantized", False):
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        if model.device.type == "cpu" and self.dtype == torch.bfloat16:
            # The backward pass of torch's fused attention in bfloat16 takes twice as long as plain products
            # (docs/LOG.md).
            model.set_attn_implementation("eager")
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))
        if params.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return adapted


class UnslothBackend(Backend):
    """Unsloth's FastVisionModel: its kernels and its gradient checkpointing."""

    name = "unsloth"
    parallel = False  # its gradient checkpointing keeps buffers that threads would share

    def __init__(self) -> None:
        self._library: Any = importlib.import_module("unsloth").FastVisionModel

    def to_train(self, model: Any) -> None:
        """See `Backend`."""
        self._library.for_training(model)

    def to_answer(self, model: Any) -> None:
        """See `Backend`."""
        self._library.for_inference(model)

    def _loader(self, params: TrainParams) -> Any:
        """Return Unsloth's loader, which reads the files that transformers would read, and nothing else."""

        def load(folder: Path, *, dtype: torch.dtype, trust_remote_code: bool, **options: Any) -> Any:
            model, _ = self._library.from_pretrained(
                str(folder),
                use_exact_model_name=True,  # else it takes weights of its own from the hub
                local_files_only=True,
                dtype=dtype,
                load_in_4bit="quantization_config" in options,
                trust_remote_code=trust_remote_code,
                use_gradient_checkpointing=_checkpointing(params),
                **options,
            )
            # Its generation takes a static cache and compiles single steps. Validation answers read on by themselves
            # from what `generate` has prepared, as all answers do.
            model.generate = model._old_generate
            return model

        return load

    def _with_pairs(self, model: Any, params: TrainParams, **lora: Any) -> Any:
        adapted = self._library.get_peft_model(
            model, **lora, random_state=params.seed, use_gradient_checkpointing=_checkpointing(params)
        )
        for name, parameter in adapted.named_parameters():
            if "trainable_tokens_delta" in name:  # it freezes everything but the LoRA pairs
                parameter.data = parameter.data.float()
                parameter.requires_grad_(True)
        return adapted


def _checkpointing(params: TrainParams) -> str | bool:
    """Return the kind of Unsloth's gradient checkpointing: `unsloth` moves activations from the GPU to main memory."""
    return params.gradient_checkpointing and ("unsloth" if torch.cuda.is_available() else True)
