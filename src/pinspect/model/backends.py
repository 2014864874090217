"""Two ways to train the same adapter: `transformers` on any machine, `unsloth` on an NVIDIA GPU.

Both put the same LoRA pairs on the same layers and save them as peft does, so that what one has trained, either loads.
Unsloth changes transformers and peft while it is imported, and asks to come first: nothing here imports them before
`open_backend` has chosen.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from pinspect.core.errors import ModelError
from pinspect.core.params import TrainParams
from pinspect.model.batching import IGNORED

if TYPE_CHECKING:
    from pinspect.model.families import Checkpoint
    from pinspect.model.rows import RowEncoder


_VISION = ("visual", "vision_tower", "vision_model")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj", "qkv", "qkv_proj", "attn.proj", "out_proj")
_MLP = ("gate_proj", "up_proj", "down_proj", "gate_up_proj", "linear_fc1", "linear_fc2", "fc1", "fc2")

# Unsloth makes its own choice of layers by four switches of these names.
_UNSLOTH_SWITCHES = {
    "vision": "finetune_vision_layers",
    "language": "finetune_language_layers",
    "attention": "finetune_attention_modules",
    "mlp": "finetune_mlp_modules",
}

# Tokens of the longest chat that Unsloth's collator leaves whole: every family's context holds as many.
_UNSLOTH_CONTEXT = 4096


class Backend(Protocol):
    """What a training asks of the library that computes it."""

    name: str

    def load(self, base: Checkpoint, params: TrainParams) -> tuple[nn.Module, object]:
        """The frozen base, on its device, and the processor that feeds it."""

    def adapt(self, model: nn.Module, params: TrainParams, words: Sequence[int]) -> nn.Module:
        """The base with untrained LoRA pairs, and trainable embeddings of `words` (token ids), as a PeftModel."""

    def batch(self, encoder: RowEncoder, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        """Model inputs for `rows`, with `labels`: the expected answers' ids, IGNORED elsewhere."""

    def answer_loss(self, model: nn.Module, batch: dict[str, torch.Tensor], answer_tokens: int) -> torch.Tensor:
        """Cross entropy of the answers, summed over the batch and divided by `answer_tokens`, in nats a token.

        `answer_tokens` counts those of the whole optimizer step, of which the batch may be a part.
        """

    def to_train(self, model: nn.Module) -> None:
        """Make the model ready to be trained."""

    def to_answer(self, model: nn.Module) -> None:
        """Make the model ready to generate."""


def open_backend(asked: str) -> Backend:
    """The back end that `model.backend` asks for; `auto` is Unsloth where it is installed beside a GPU.

    Raises ModelError when Unsloth is asked for and cannot run here.
    """
    obstacle = unsloth_obstacle()
    if asked == "unsloth" and obstacle:
        raise ModelError(f"params.yaml: model.backend: unsloth {obstacle}; choose auto or transformers")
    return TransformersBackend() if asked == "transformers" or obstacle else UnslothBackend()


def unsloth_obstacle() -> str:
    """Why Unsloth cannot run here, empty where it can. Asks for the GPU first: without one its import already fails."""
    if not torch.cuda.is_available():
        return "needs an NVIDIA GPU, and this machine shows none"
    if importlib.util.find_spec("unsloth") is None:
        return "is not installed; see docs/gpu.md"
    return ""


def precision_of(params: TrainParams, device: torch.device) -> torch.dtype:
    """What the arithmetic of a training is done in: `train.precision`, where `auto` is bfloat16 on hardware that
    computes it and float32 elsewhere."""
    if params.precision == "auto":
        return torch.bfloat16 if computes_bfloat16(device) else torch.float32
    return {"bf16": torch.bfloat16, "float32": torch.float32}[params.precision]


def computes_bfloat16(device: torch.device) -> bool:
    """Whether the hardware has instructions for it; emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def adapted_modules(model: nn.Module, params: TrainParams) -> list[str]:
    """Names of the linear layers that get a LoRA pair, by the four switches of `params.yaml`.

    vision and language choose the part of the model, attention and mlp the kind of layer. Raises ModelError when the
    model has no such layer.
    """
    names = []
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or name.endswith("lm_head"):
            continue
        part = params.vision if any(word in name for word in _VISION) else params.language
        kind = (params.attention and name.endswith(_ATTENTION)) or (params.mlp and name.endswith(_MLP))
        if part and kind:
            names.append(name)
    if not names:
        raise ModelError(
            "no layer of this model answers to train.vision, .language, .attention and .mlp; switch more on"
        )
    return names


class TransformersBackend:
    """transformers and peft: any machine, any family; 4-bit weights (QLoRA) where there is an NVIDIA GPU."""

    name = "transformers"

    def load(self, base: Checkpoint, params: TrainParams) -> tuple[nn.Module, object]:
        from pinspect.model.loading import inspecting_device, load_base

        device = inspecting_device()
        self.dtype = precision_of(params, device)
        quantization = _four_bit(self.dtype) if params.quantization == "4bit" else None
        weights = torch.float32 if self.dtype == torch.float32 and not quantization else None
        model, processor = load_base(base, dtype=weights, quantization=quantization)
        if quantization:
            from peft import prepare_model_for_kbit_training

            return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False), processor
        if device.type == "cpu" and self.dtype == torch.bfloat16:
            # torch's fused attention goes backwards in bfloat16 at half the speed of plain products (docs/LOG.md).
            model.set_attn_implementation("eager")
        return model.to(device), processor

    def adapt(self, model: nn.Module, params: TrainParams, words: Sequence[int]) -> nn.Module:
        from peft import LoraConfig, get_peft_model
        from peft.tuners.lora import LoraLayer

        plain = next(model.parameters()).dtype == torch.float32
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
            if isinstance(module, LoraLayer) and plain:
                module.cast_input_dtype_enabled = False  # to float32, which autocast would only have to undo
        if params.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return adapted

    def batch(self, encoder: RowEncoder, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        return encoder.batch(rows, answers=True)

    def answer_loss(self, model: nn.Module, batch: dict[str, torch.Tensor], answer_tokens: int) -> torch.Tensor:
        labels = batch["labels"][:, 1:]
        asked = labels != IGNORED
        base = model.get_base_model()
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        with self._autocast(labels.device):
            # Logits of the answers alone: the vocabulary is the widest layer of a language model.
            hidden = base.model(**inputs, use_cache=False).last_hidden_state[:, :-1][asked]
            logits = base.get_output_embeddings()(hidden)
        return F.cross_entropy(logits.float(), labels[asked], reduction="sum") / answer_tokens

    def to_train(self, model: nn.Module) -> None:
        model.train()

    def to_answer(self, model: nn.Module) -> None:
        model.eval()

    def _autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)


class UnslothBackend:
    """Unsloth's FastVisionModel: 4-bit weights, its own kernels, vision collator and gradient checkpointing."""

    name = "unsloth"

    def __init__(self) -> None:
        import unsloth  # noqa: F401  before transformers and peft, which it changes
        from unsloth import FastVisionModel

        self._library = FastVisionModel
        self._collator = None

    def load(self, base: Checkpoint, params: TrainParams) -> tuple[nn.Module, object]:
        from pinspect.model.loading import load_processor

        four_bit = params.quantization != "none"
        # Its ready-made 4-bit weights stand for the family's own checkpoint, and for no other.
        ready = base.family.unsloth_id if four_bit and base.source == base.family.model_id else ""
        self.dtype = precision_of(params, torch.device("cuda"))
        self._model, _ = self._library.from_pretrained(
            ready or str(base.folder or base.source),
            max_seq_length=_UNSLOTH_CONTEXT,
            load_in_4bit=four_bit,
            dtype=self.dtype,
            revision=None if ready else base.revision or None,
            trust_remote_code=base.trust_remote_code,
            use_gradient_checkpointing="unsloth" if params.gradient_checkpointing else False,
        )
        # Ours, so that both back ends ask with the same prompts.
        self._processor = load_processor(base)
        return self._model, self._processor

    def adapt(self, model: nn.Module, params: TrainParams, words: Sequence[int]) -> nn.Module:
        from unsloth.trainer import UnslothVisionDataCollator

        adapted = self._library.get_peft_model(
            model,
            r=params.rank,
            lora_alpha=params.alpha,
            lora_dropout=params.dropout,
            bias="none",
            random_state=params.seed,
            use_gradient_checkpointing="unsloth" if params.gradient_checkpointing else False,
            trainable_token_indices=list(words) or None,
            **{theirs: getattr(params, ours) for ours, theirs in _UNSLOTH_SWITCHES.items()},
        )
        self._collator = UnslothVisionDataCollator(adapted, self._processor, resize="max")  # "max": as they are
        return adapted

    def batch(self, encoder: RowEncoder, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        return dict(self._collator([_prompt_and_completion(encoder, row) for row in rows]))

    def answer_loss(self, model: nn.Module, batch: dict[str, torch.Tensor], answer_tokens: int) -> torch.Tensor:
        # Its fused cross entropy never writes the logits out; the sum is what transformers makes of this count.
        with torch.autocast("cuda", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return model(**batch, use_cache=False, num_items_in_batch=answer_tokens).loss

    def to_train(self, model: nn.Module) -> None:
        self._library.for_training(model)

    def to_answer(self, model: nn.Module) -> None:
        self._library.for_inference(model)


def _prompt_and_completion(encoder: RowEncoder, row: dict) -> dict:
    """A row as Unsloth's collator wants it: the messages with their images, and the expected answer apart."""
    from PIL import Image

    images = iter(encoder.images(row))

    def shown(message: dict) -> dict:
        parts = [
            {"type": "image", "image": Image.fromarray(next(images))} if part["type"] == "image" else dict(part)
            for part in message["content"]
        ]
        return {"role": message["role"], "content": parts}

    *asked, answer = [shown(message) for message in row["messages"]]
    return {"prompt": asked, "completion": [answer]}


def _four_bit(dtype: torch.dtype):
    """The quantization of the QLoRA paper (Dettmers et al. 2023): normal-float weights, their scales quantized too."""
    if not torch.cuda.is_available():
        raise ModelError("params.yaml: train.quantization: 4bit needs an NVIDIA GPU, this machine shows none; use none")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError("params.yaml: train.quantization: 4bit needs bitsandbytes; install requirements-gpu.lock")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
