"""Two backends that train the same adapter: `transformers` on any machine, `unsloth` on an NVIDIA GPU.

Both put LoRA pairs on the same layers and save them in peft's format, so that either loads what the other trained.
Unsloth patches transformers and peft on import and must be imported first, so this module imports neither of them
before `open_backend` has chosen.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from pinspect.core.errors import ModelError
from pinspect.core.params import TrainParams
from pinspect.core.rows import Row
from pinspect.model.batching import IGNORED

if TYPE_CHECKING:
    from pinspect.model.families import Checkpoint
    from pinspect.model.rows import RowEncoder


_VISION = ("visual", "vision_tower", "vision_model")
_LAYER_SUFFIXES = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj", "qkv", "qkv_proj", "attn.proj", "out_proj"),
    "mlp": ("gate_proj", "up_proj", "down_proj", "gate_up_proj", "linear_fc1", "linear_fc2", "fc1", "fc2"),
}
_UNSLOTH_SWITCHES = {
    "vision": "finetune_vision_layers",
    "language": "finetune_language_layers",
    "attention": "finetune_attention_modules",
    "mlp": "finetune_mlp_modules",
}
_UNSLOTH_CONTEXT = 4096  # longest chat in tokens that Unsloth's collator does not cut; all families support it


class Backend(Protocol):
    """What a training needs from the library that computes it.

    Attributes:
        name: The name in `params.yaml`.
    """

    name: str

    def load(self, base: Checkpoint, params: TrainParams) -> tuple[Any, Any]:
        """Load the frozen base on its device, and its processor."""
        ...

    def adapt(self, model: Any, params: TrainParams, words: Sequence[int]) -> Any:
        """Add untrained LoRA pairs and trainable embeddings of `words` (token ids); return a PeftModel."""
        ...

    def batch(self, encoder: RowEncoder, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Build the model inputs of `rows`, with `labels`: the ids of the expected answers, IGNORED elsewhere."""
        ...

    def answer_loss(self, model: Any, batch: dict[str, torch.Tensor], answer_tokens: int) -> torch.Tensor:
        """Return the cross entropy in nats, summed over the answer tokens of `batch` and divided by `answer_tokens`.

        Args:
            model: The adapted model.
            batch: Model inputs; one part of an optimizer step.
            answer_tokens: Number of answer tokens in all parts of the optimizer step.
        """
        ...

    def to_train(self, model: Any) -> None:
        """Switch the model to training mode."""
        ...

    def to_answer(self, model: Any) -> None:
        """Switch the model to generation."""
        ...


def open_backend(name: str) -> Backend:
    """Return the backend that `model.backend` names; `auto` is Unsloth if it can run here, else transformers.

    Args:
        name: `transformers`, `unsloth` or `auto`.

    Raises:
        ModelError: Unsloth is required and cannot run here.
    """
    obstacle = unsloth_obstacle()
    if name == "unsloth" and obstacle:
        raise ModelError(f"params.yaml: model.backend: unsloth {obstacle}; choose auto or transformers")
    return TransformersBackend() if name == "transformers" or obstacle else UnslothBackend()


def unsloth_obstacle() -> str:
    """Return why Unsloth cannot run here, "" if it can. The GPU comes first: without a GPU even its import fails."""
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU, and this machine has none"
    if importlib.util.find_spec("unsloth") is None:
        return "is not installed; see docs/gpu.md"
    return ""


def precision_of(params: TrainParams, device: torch.device) -> torch.dtype:
    """Return the dtype that a training computes in.

    Args:
        params: `precision` is a dtype or `auto`: bfloat16 if the hardware computes it, else float32.
        device: The device of the training.
    """
    if params.precision == "auto":
        return torch.bfloat16 if computes_bfloat16(device) else torch.float32
    return {"bf16": torch.bfloat16, "float32": torch.float32}[params.precision]


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
        if not isinstance(module, nn.Linear) or name.endswith("lm_head"):
            continue
        part = "vision" if any(word in name for word in _VISION) else "language"
        kind = next((kind for kind, suffixes in _LAYER_SUFFIXES.items() if name.endswith(suffixes)), None)
        if kind and getattr(params, kind) and getattr(params, part):
            names.append(name)
            matched |= {part, kind}
    unmatched = [switch for switch in _UNSLOTH_SWITCHES if getattr(params, switch) and switch not in matched]
    if unmatched:
        raise ModelError(
            f"params.yaml: train.{unmatched[0]} is true, but no layer of this model matches it; set it to false, or "
            "change the other switches (vision, language, attention, mlp)"
        )
    return names


class TransformersBackend:
    """transformers and peft: any machine, any family; 4-bit weights (QLoRA) on an NVIDIA GPU."""

    name = "transformers"

    def load(self, base: Checkpoint, params: TrainParams) -> tuple[Any, Any]:
        """See `Backend`."""
        from pinspect.model.loading import inspecting_device, load_base

        device = inspecting_device()
        self.dtype = precision_of(params, device)
        quantization = _four_bit(self.dtype) if params.quantization == "4bit" else None
        weights = torch.float32 if self.dtype == torch.float32 and not quantization else None
        loaded, processor = load_base(base, dtype=weights, quantization=quantization)
        model: Any = loaded
        if quantization:
            from peft import prepare_model_for_kbit_training

            return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False), processor
        if device.type == "cpu" and self.dtype == torch.bfloat16:
            # The backward pass of torch's fused attention in bfloat16 takes twice as long as plain products
            # (docs/LOG.md).
            model.set_attn_implementation("eager")
        return model.to(device), processor

    def adapt(self, model: Any, params: TrainParams, words: Sequence[int]) -> Any:
        """See `Backend`."""
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import LoraLayer

        in_float32 = next(model.parameters()).dtype == torch.float32
        config = LoraConfig(
            r=params.rank,
            lora_alpha=params.alpha,
            lora_dropout=params.dropout,
            target_modules=adapted_modules(model, params),
            trainable_token_indices=list(words) or None,
            task_type="CAUSAL_LM",
        )
        adapted = get_peft_model(model, config)
        for module in adapted.modules():
            if isinstance(module, LoraLayer) and in_float32:
                module.cast_input_dtype_enabled = False  # autocast would undo the cast to float32
        if params.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return adapted

    def batch(self, encoder: RowEncoder, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """See `Backend`."""
        return encoder.batch(rows, answers=True)

    def answer_loss(self, model: Any, batch: dict[str, torch.Tensor], answer_tokens: int) -> torch.Tensor:
        """See `Backend`."""
        labels = batch["labels"][:, 1:]
        in_answer = labels != IGNORED
        base = model.get_base_model()
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        with torch.autocast(labels.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            # Logits of the answer tokens only: the vocabulary is the widest layer of a language model.
            hidden = base.model(**inputs, use_cache=False).last_hidden_state[:, :-1][in_answer]
            logits = base.get_output_embeddings()(hidden)
        return F.cross_entropy(logits.float(), labels[in_answer], reduction="sum") / answer_tokens

    def to_train(self, model: Any) -> None:
        """See `Backend`."""
        model.train()

    def to_answer(self, model: Any) -> None:
        """See `Backend`."""
        model.eval()


class UnslothBackend:
    """Unsloth's FastVisionModel: 4-bit weights, its own kernels, vision collator and gradient checkpointing."""

    name = "unsloth"

    def __init__(self) -> None:
        self._library: Any = importlib.import_module("unsloth").FastVisionModel
        self._collator: Any = None

    def load(self, base: Checkpoint, params: TrainParams) -> tuple[Any, Any]:
        """See `Backend`."""
        from pinspect.model.loading import load_processor

        four_bit = params.quantization != "none"
        # Unsloth's ready-made 4-bit weights replace the family's own checkpoint only.
        ready = base.family.unsloth_id if four_bit and base.source == base.family.model_id else ""
        self.dtype = precision_of(params, torch.device("cuda"))
        model, _ = self._library.from_pretrained(
            ready or str(base.folder or base.source),
            max_seq_length=_UNSLOTH_CONTEXT,
            load_in_4bit=four_bit,
            dtype=self.dtype,
            revision=None if ready else base.revision or None,
            trust_remote_code=base.trust_remote_code,
            use_gradient_checkpointing="unsloth" if params.gradient_checkpointing else False,
        )
        # pinspect's own processor, so that both backends use the same prompts.
        self._processor = load_processor(base)
        return model, self._processor

    def adapt(self, model: Any, params: TrainParams, words: Sequence[int]) -> Any:
        """See `Backend`."""
        collator = importlib.import_module("unsloth.trainer").UnslothVisionDataCollator
        adapted = self._library.get_peft_model(
            model,
            r=params.rank,
            lora_alpha=params.alpha,
            lora_dropout=params.dropout,
            bias="none",
            random_state=params.seed,
            use_gradient_checkpointing="unsloth" if params.gradient_checkpointing else False,
            trainable_token_indices=list(words) or None,
            **{unsloth: getattr(params, switch) for switch, unsloth in _UNSLOTH_SWITCHES.items()},
        )
        self._collator = collator(adapted, self._processor, resize="max")  # "max" keeps the image size
        return adapted

    def batch(self, encoder: RowEncoder, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """See `Backend`."""
        return dict(self._collator([_prompt_and_completion(encoder, row) for row in rows]))

    def answer_loss(self, model: Any, batch: dict[str, torch.Tensor], answer_tokens: int) -> torch.Tensor:
        """See `Backend`."""
        # Unsloth's fused cross entropy never stores the logits; transformers divides the sum by num_items_in_batch.
        with torch.autocast("cuda", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return model(**batch, use_cache=False, num_items_in_batch=answer_tokens).loss

    def to_train(self, model: Any) -> None:
        """See `Backend`."""
        self._library.for_training(model)

    def to_answer(self, model: Any) -> None:
        """See `Backend`."""
        self._library.for_inference(model)


def _prompt_and_completion(encoder: RowEncoder, row: Row) -> dict[str, list[dict[str, Any]]]:
    """Return a row in the form of Unsloth's collator: messages with their images, and the expected answer apart."""
    from PIL import Image

    images = iter(encoder.images(row))

    def with_images(message: dict[str, Any]) -> dict[str, Any]:
        parts = [
            {"type": "image", "image": Image.fromarray(next(images))} if part["type"] == "image" else dict(part)
            for part in message["content"]
        ]
        return {"role": message["role"], "content": parts}

    *prompt, answer = [with_images(message) for message in row["messages"]]
    return {"prompt": prompt, "completion": [answer]}


def _four_bit(dtype: torch.dtype) -> Any:
    """Return the quantization of QLoRA (Dettmers et al. 2023): 4-bit normal floats with quantized scales."""
    if not torch.cuda.is_available():
        raise ModelError("params.yaml: train.quantization: 4bit needs an NVIDIA GPU, this machine has none; use none")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("params.yaml: train.quantization: 4bit needs bitsandbytes; see docs/gpu.md")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
