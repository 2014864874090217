"""Model families as data: the facts about a vision-language model that its checkpoint does not contain.

To change the model, change `model.family` in `params.yaml`. `FAMILIES` holds all facts about a family, and no other
module tests for a family's name. docs/models.md describes the families.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pinspect.core.errors import ParamsError, StageInputError
from pinspect.core.params import ModelParams, Params
from pinspect.core.rows import Row

PROJECT_BASE = "models/base"  # a folder of the project, although it looks like the name of a hub repository
_PATH_LIKE = re.compile(r"\A[./~]|/.*/|\\")


@dataclass(frozen=True)
class Family:
    """One value of `model.family`.

    Attributes:
        name: The value in `params.yaml`.
        model_id: Repository on the Hugging Face hub, or a folder of the project.
        model_types: Allowed values of `model_type` in config.json.
        parameters: Parameters in billions, rounded; the exact number is read from a checkpoint on this machine.
        stride: Side of one visual token in px.
        end_of_turn: The token that ends an answer.
        vision_type: `model_type` of the vision tower, where it distinguishes two families.
        revision: Commit that the family was tested with, "" if there is none; in production set `model.revision`.
        rescales: Whether the processor rescales every picture, so that no cell of a composite can be aligned to whole
            tokens.
        max_images: Most images in a prompt: 16, or fewer if the context is shorter.
        trained_images: Number of images per prompt that the makers trained with or recommend; 0 for several.
        processor: Key of our processor class that replaces the checkpoint's own; "" to use its own.
        template: Chat template, for checkpoints without one.
        caps_logits: Whether the model caps its logits, by a smooth limit in its configuration.
        four_bit: Whether `train.quantization: auto` loads 4-bit weights where Unsloth trains.
        torchvision: Whether its processor needs torchvision.
        remote_code: Whether the checkpoint brings its own code, because transformers has no class for it.
    """

    name: str
    model_id: str
    model_types: tuple[str, ...]
    parameters: float
    stride: int
    end_of_turn: str
    vision_type: str = ""
    revision: str = ""
    rescales: bool = False
    max_images: int = 16
    trained_images: int = 0
    processor: str = ""
    template: str = ""
    caps_logits: bool = False
    four_bit: bool = False
    torchvision: bool = False
    remote_code: bool = False


# PaliGemma is not a chat model: one text after all images, with line breaks between turns.
_PLAIN_TEMPLATE = (
    "{% for message in messages %}{% for part in message.content %}{% if part.type == 'image' %}{{ '<image>' }}"
    "{% endif %}{% endfor %}{% endfor %}"
    "{% for message in messages %}{% for part in message.content %}{% if part.type == 'text' %}"
    "{{ part.text + ('' if loop.last and message == messages[-1] else '\n') }}"
    "{% endif %}{% endfor %}{% endfor %}"
)

# Phi-3.5-vision numbers its images; its own template accepts text only.
_NUMBERED_TEMPLATE = (
    "{% set seen = namespace(images=0) %}{% for message in messages %}{{ '<|' + message.role + '|>\n' }}"
    "{% for part in message.content %}{% if part.type == 'image' %}{% set seen.images = seen.images + 1 %}"
    "{{ '\n<|image_' ~ seen.images ~ '|>' }}{% else %}{{ part.text }}{% endif %}{% endfor %}{{ '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

_QWEN2_VL = Family(
    name="qwen2-vl-2b",
    model_id="Qwen/Qwen2-VL-2B-Instruct",
    model_types=("qwen2_vl",),
    parameters=2.2,
    stride=28,
    end_of_turn="<|im_end|>",
    processor="image_text",
    four_bit=True,
)
_QWEN25_VL = replace(
    _QWEN2_VL,
    name="qwen2.5-vl-3b",
    model_id="Qwen/Qwen2.5-VL-3B-Instruct",
    model_types=("qwen2_5_vl",),
    parameters=3.8,
)
_QWEN3_VL = replace(
    _QWEN2_VL,
    name="qwen3-vl-2b",
    model_id="Qwen/Qwen3-VL-2B-Instruct",
    model_types=("qwen3_vl",),
    parameters=2.1,
    stride=32,
)
_LLAMA = Family(
    name="llama-3.2-11b-vision",
    model_id="meta-llama/Llama-3.2-11B-Vision-Instruct",
    model_types=("mllama",),
    parameters=10.7,
    stride=14,
    end_of_turn="<|eot_id|>",
    rescales=True,
    max_images=8,
    trained_images=1,
    four_bit=True,
)
_GEMMA_3 = Family(
    name="gemma-3-4b",
    model_id="google/gemma-3-4b-it",
    model_types=("gemma3",),
    parameters=4.3,
    stride=56,
    end_of_turn="<end_of_turn>",
    rescales=True,
    four_bit=True,
)

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        replace(
            _QWEN3_VL,
            name="pinspect",
            model_id=PROJECT_BASE,
            parameters=0.004,
            stride=64,
            four_bit=False,
        ),
        Family(
            name="phi-3.5-vision",
            model_id="microsoft/Phi-3.5-vision-instruct",
            model_types=("phi3_v",),
            parameters=4.1,
            stride=28,
            end_of_turn="<|end|>",
            rescales=True,
            template=_NUMBERED_TEMPLATE,
            remote_code=True,
        ),
        _LLAMA,
        replace(
            _LLAMA,
            name="llama-3.2-90b-vision",
            model_id="meta-llama/Llama-3.2-90B-Vision-Instruct",
            parameters=88.6,
        ),
        _QWEN2_VL,
        replace(
            _QWEN2_VL,
            name="qwen2-vl-7b",
            model_id="Qwen/Qwen2-VL-7B-Instruct",
            parameters=8.3,
        ),
        replace(
            _QWEN2_VL,
            name="qwen2-vl-72b",
            model_id="Qwen/Qwen2-VL-72B-Instruct",
            parameters=73.4,
        ),
        _QWEN25_VL,
        replace(
            _QWEN25_VL,
            name="qwen2.5-vl-7b",
            model_id="Qwen/Qwen2.5-VL-7B-Instruct",
            parameters=8.3,
        ),
        _QWEN3_VL,
        replace(
            _QWEN3_VL,
            name="qwen3-vl-8b",
            model_id="Qwen/Qwen3-VL-8B-Instruct",
            parameters=8.8,
        ),
        replace(
            _QWEN3_VL,
            name="qwen3.5-4b",
            model_id="Qwen/Qwen3.5-4B",
            model_types=("qwen3_5",),
            parameters=4.7,
            four_bit=False,
        ),
        Family(
            name="ministral-3-3b",
            model_id="mistralai/Ministral-3-3B-Instruct-2512-BF16",
            model_types=("mistral3",),
            parameters=3.8,
            stride=28,
            end_of_turn="</s>",
            processor="row_breaks",
            four_bit=True,
        ),
        Family(
            name="pixtral-12b",
            model_id="mistral-community/pixtral-12b",
            model_types=("llava",),
            vision_type="pixtral",
            parameters=12.7,
            stride=16,
            end_of_turn="</s>",
            processor="row_breaks",
            four_bit=True,
        ),
        Family(
            name="llava-1.5-7b",
            model_id="llava-hf/llava-1.5-7b-hf",
            model_types=("llava",),
            vision_type="clip_vision_model",
            parameters=7.1,
            stride=14,
            end_of_turn="</s>",
            rescales=True,
            max_images=6,
            trained_images=1,
            four_bit=True,
        ),
        Family(
            name="llava-1.6-7b",
            model_id="llava-hf/llava-v1.6-mistral-7b-hf",
            model_types=("llava_next",),
            parameters=7.6,
            stride=14,
            end_of_turn="</s>",
            rescales=True,
            max_images=11,
            trained_images=1,
            four_bit=True,
        ),
        _GEMMA_3,
        replace(
            _GEMMA_3,
            name="gemma-3-12b",
            model_id="google/gemma-3-12b-it",
            parameters=12.2,
        ),
        Family(
            name="gemma-4-e2b",
            model_id="google/gemma-4-E2B-it",
            model_types=("gemma4",),
            parameters=5.1,
            stride=48,
            end_of_turn="<turn|>",
            rescales=True,
            caps_logits=True,
            torchvision=True,
        ),
        Family(
            name="lfm2.5-vl-1.6b",
            model_id="LiquidAI/LFM2.5-VL-1.6B",
            model_types=("lfm2_vl",),
            parameters=1.6,
            stride=32,
            end_of_turn="<|im_end|>",
            rescales=True,
            torchvision=True,
        ),
        Family(
            name="smolvlm2-500m",
            model_id="HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
            model_types=("smolvlm", "idefics3"),
            parameters=0.5,
            stride=64,
            end_of_turn="<end_of_utterance>",
            rescales=True,
            max_images=12,
            processor="tiles",
        ),
        Family(
            name="idefics3-8b",
            model_id="HuggingFaceM4/Idefics3-8B-Llama3",
            model_types=("idefics3",),
            parameters=8.5,
            stride=28,
            end_of_turn="<end_of_utterance>",
            rescales=True,
            max_images=5,
        ),
        Family(
            name="paligemma-2-3b",
            model_id="google/paligemma2-3b-mix-224",
            model_types=("paligemma",),
            parameters=3.0,
            stride=14,
            end_of_turn="<eos>",
            rescales=True,
            trained_images=1,
            template=_PLAIN_TEMPLATE,
        ),
    )
}


@dataclass(frozen=True)
class Checkpoint:
    """The source of a family's weights.

    Attributes:
        family: The model family.
        source: Folder or hub repository as the user wrote it, for messages and records.
        folder: The folder, None for a hub repository.
        revision: Commit of a hub repository, "" for the newest.
        trust_remote_code: Whether the user trusts the code of the checkpoint.
        precision: What training and answers compute in: `bf16`, `float32`, or `auto`.
    """

    family: Family
    source: str
    folder: Path | None
    revision: str = ""
    trust_remote_code: bool = False
    precision: str = "auto"

    def at(self, folder: Path) -> Checkpoint:
        """Return the same model in another folder, such as the base in a registered version's package."""
        return replace(self, source=str(folder), folder=Path(folder), revision="")

    def __str__(self) -> str:
        return f"{self.source}@{self.revision}" if self.revision else self.source


def family_named(name: str) -> Family:
    """Return the family with this name.

    Args:
        name: A key of `FAMILIES`.

    Raises:
        ParamsError: There is no such family; the message names similar ones.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    similar = difflib.get_close_matches(name.lower(), FAMILIES, n=3, cutoff=0.5) or list(FAMILIES)
    raise ParamsError(f"params.yaml: model.family: no family {name!r}; did you mean {' or '.join(similar)}?")


def checkpoint_of(model: ModelParams, root: Path = Path()) -> Checkpoint:
    """Return the checkpoint that `params.yaml` selects.

    Args:
        model: The section `model`.
        root: Folder of the project, which relative folders start from.

    Raises:
        ParamsError: The family is unknown, or brings its own code and the user does not trust one fixed revision of it.
    """
    family = family_named(model.family)
    source, revision = model.checkpoint or family.model_id, model.revision
    if not revision and source == family.model_id:
        revision = family.revision
    path = root / Path(source).expanduser()
    local = source == PROJECT_BASE or _PATH_LIKE.search(source) or path.is_dir() or path.parent.is_dir()
    folder = path if local else None
    if family.remote_code and not model.trust_remote_code:
        raise ParamsError(
            f"params.yaml: model.trust_remote_code: {family.name} runs code from its checkpoint; read this code, pin "
            "it with model.revision, and set model.trust_remote_code to true"
        )
    if model.trust_remote_code and folder is None and not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ParamsError(
            "params.yaml: model.revision: trusted code must be pinned by its commit, 40 hexadecimal digits, found "
            f"{revision!r}"
        )
    return Checkpoint(family, source, folder, "" if folder else revision, model.trust_remote_code, model.precision)


def composite_cell(params: Params) -> int:
    """Return the side in px of one pin's cell in a composite.

    Args:
        params: `composite.cell` is rounded up to whole visual tokens, unless `composite.token_aligned` is false or the
            family rescales every picture.
    """
    cell, family = params.composite.cell, family_named(params.model.family)
    if family.rescales or not params.composite.token_aligned:
        return cell
    return -(-cell // family.stride) * family.stride


def require_images_fit(family: Family, rows: Sequence[Row]) -> list[str]:
    """Check that the family accepts as many images as each row of the chat dataset shows.

    Args:
        family: The model family.
        rows: Rows of the chat dataset.

    Returns:
        Warnings: rows show more images than the family was trained with.

    Raises:
        StageInputError: A row shows more images than the family accepts.
    """
    if not rows:
        return []
    largest = max(rows, key=lambda row: len(row["images"]))
    images = len(largest["images"])
    if images > family.max_images:
        raise StageInputError(
            f"data/chat: row {largest['id']} shows {images} images, and {family.name} accepts at most "
            f"{family.max_images}; choose other chat.kinds (stacked shows the fewest) or another model.family"
        )
    if not family.trained_images or images <= family.trained_images:
        return []
    warning = (
        f"{family.name} was trained with {family.trained_images} image per prompt, and rows show up to {images}; "
        "consider stacked or one_image, zero-shot, for chat.kinds and evaluate.kind"
    )
    return [warning]
