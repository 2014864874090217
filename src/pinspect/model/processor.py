"""The processors of all families, prepared for inspections, and the tokenizer of the default model.

Some stock processors require torchvision, for videos or for nothing. Classes of this module replace them and build the
same model inputs from images and text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoProcessor,
    Idefics3Config,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
)
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.processing_utils import ProcessorMixin

from pinspect.core.errors import ModelError
from pinspect.model.families import Family

PAD, END = "<|endoftext|>", "<|im_end|>"
SPECIAL_TOKENS = (PAD, "<|im_start|>", END, "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")

# Qwen's chat format: each turn between <|im_start|>role and <|im_end|>, an image as one pad token between two marks.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class ImageTextProcessor(Qwen3VLProcessor):
    """The processor of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, for images and text only."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None, **kwargs: Any
    ) -> None:
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)
        self.video_processor = None
        for name in ("image", "video"):
            token = f"<|{name}_pad|>"
            setattr(self, f"{name}_token", token)
            setattr(self, f"{name}_token_id", tokenizer.convert_tokens_to_ids(token))
        for name in ("start", "end"):
            token = f"<|vision_{name}|>"
            setattr(self, f"vision_{name}_token", token)
            setattr(self, f"vision_{name}_token_id", tokenizer.convert_tokens_to_ids(token))

    @classmethod
    def get_attributes(cls) -> list[str]:
        """Return the parts that are saved and loaded, without a video processor."""
        return ["image_processor", "tokenizer"]


class RowBreakPixtralProcessor(ProcessorMixin):
    """Pixtral's processor, whose stock class does not load without torchvision.

    An image becomes rows of image tokens with a break token after each row; an end token replaces the last break.
    transformers chooses the tokenizer class by `PixtralProcessor` in the name of this class.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.patch_size, self.spatial_merge_size = patch_size, spatial_merge_size
        self.image_token, self.image_break_token, self.image_end_token = "[IMG]", "[IMG_BREAK]", "[IMG_END]"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        image_processor.patch_size = patch_size * spatial_merge_size

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """Return the text of one image; transformers calls this to expand placeholders."""
        patch = self.patch_size * self.spatial_merge_size
        height, width = (int(side) // patch for side in image_inputs["image_sizes"][image_idx])
        rows = self.image_break_token.join([self.image_token * width] * height)
        return f"{rows}{self.image_end_token}"


# Keys for the Auto classes, which accept no registration for a config class of transformers itself.
class _Idefics3Config(Idefics3Config):
    pass


class _SmolVLMConfig(SmolVLMConfig):
    pass


# The Auto classes find an image processor by the class name in its configuration file.
# These two image processors need only Pillow, but transformers 5.17 does not register them without torchvision.
for _config, _pil_class in ((_Idefics3Config, Idefics3ImageProcessorPil), (_SmolVLMConfig, SmolVLMImageProcessorPil)):
    AutoImageProcessor.register(_config, image_processor_classes={"pil": _pil_class}, exist_ok=True)

# Replacements of processor classes that require torchvision or num2words.
_OWN_CLASSES = {"image_text": ImageTextProcessor, "row_breaks": RowBreakPixtralProcessor, "tiles": Idefics3Processor}

_SHARED_WITH_VIDEOS = ("image_mean", "image_std", "merge_size", "patch_size", "temporal_patch_size")
_DATE = "26 Jul 2024"  # the default date in Llama's chat template


def processor_from(folder: Path, family: Family, *, trust_remote_code: bool = False) -> Any:
    """Load the processor in `folder` and prepare it for inspections.

    Its tokenizer's `eos_token` ends an answer, it has a chat template, and it keeps the whole picture: a square crop
    would lose the edges of a composite.

    Args:
        folder: Folder of the checkpoint.
        family: The model family.
        trust_remote_code: Whether the checkpoint's own code may run.

    Raises:
        ModelError: The processor lacks a tokenizer, an image processor, a chat template or the end-of-turn token.
    """
    processor_class: Any = _OWN_CLASSES.get(family.processor, AutoProcessor)
    processor = processor_class.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise ModelError(f"{folder}: expected a processor for images and text, found {type(processor).__name__}")
    processor.chat_template = family.template or processor.chat_template
    if not processor.chat_template:
        raise ModelError(f"{folder}: no chat template found; use an instruction-tuned checkpoint")
    if "date_string" in processor.chat_template:  # prompts must not depend on the date
        processor.chat_template = f'{{%- set date_string = "{_DATE}" %}}{processor.chat_template}'
    tokenizer: Any = processor.tokenizer
    image_processor: Any = processor.image_processor
    if tokenizer.convert_tokens_to_ids(family.end_of_turn) in (None, tokenizer.unk_token_id):
        raise ModelError(
            f"{folder}: the tokenizer has no token {family.end_of_turn!r}, which ends the answers of {family.name}"
        )
    tokenizer.eos_token = family.end_of_turn
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # attention masks distinguish the two
    if processor_class is ImageTextProcessor and not isinstance(processor.image_processor, Qwen2VLImageProcessorPil):
        # With torchvision, transformers loads another class; all machines must build the same pixels.
        processor.image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder, local_files_only=True)
    elif getattr(image_processor, "do_center_crop", False):
        image_processor.do_center_crop, image_processor.size = False, image_processor.crop_size
    return processor


def build_tokenizer(texts: Iterable[str], words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Build a tokenizer of whole words, in which single digits, capital letters and bytes are tokens, too.

    Every word of `texts` becomes one token, with the space before it. Any other word is encoded as its bytes.

    Args:
        texts: The texts whose words become tokens.
        words: Further words that become one token each, also words of several parts such as `X-plus`.

    Returns:
        The tokenizer; its vocabulary has the special tokens, the 256 bytes, and the words in their first order.
    """
    composed = sorted((word for word in words if not word.isalpha()), key=len, reverse=True)
    splits = [*map(re.escape, composed), r"\d", " ?[A-Za-z]+", "->", r"[^\S\n]+", r"\n", r"[^\sA-Za-z\d]"]
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("|".join(splits)), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    pieces = [piece for text in (*texts, *words) for piece, _ in split.pre_tokenize_str(text)]
    tokens = dict.fromkeys([*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *pieces])
    vocabulary = {token: index for index, token in enumerate(tokens)}
    # Without merges, a piece is either in the vocabulary or becomes its bytes.
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer, tokenizer.decoder = split, decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, padding_side="left", model_max_length=4096
    )


def build_processor(tokenizer: PreTrainedTokenizerFast, patch: int, merge: int) -> ImageTextProcessor:
    """Build the processor of the default model.

    Args:
        tokenizer: Its tokenizer.
        patch: Side of a patch in px.
        merge: Patches per side of a visual token.
    """
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=patch,
        merge_size=merge,
        temporal_patch_size=1,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        size={"shortest_edge": (patch * merge) ** 2, "longest_edge": 4096 * 4096},
    )
    return ImageTextProcessor(image_processor, tokenizer, chat_template=CHAT_TEMPLATE)


def save_processor(processor: ImageTextProcessor, folder: Path) -> None:
    """Write the default model's processor as a processor of transformers, which loads without pinspect.

    `AutoProcessor` loads it as `Qwen3VLProcessor`. That class requires torchvision and a processor for videos, as every
    checkpoint of Qwen3-VL does; the model has learned nothing about videos.

    Args:
        processor: The processor.
        folder: Folder to write.
    """
    processor.save_pretrained(folder)
    shared = {name: getattr(processor.image_processor, name) for name in _SHARED_WITH_VIDEOS}
    video_processor = {"video_processor_type": "Qwen3VLVideoProcessor", **shared}
    for name, parts in (("processor_config", {"video_processor": video_processor}), ("tokenizer_config", {})):
        path = folder / f"{name}.json"
        content = json.loads(path.read_text(encoding="utf-8")) | parts
        content["processor_class"] = Qwen3VLProcessor.__name__
        path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def patchify(images: Sequence[np.ndarray], patch: int, merge: int, mean: float = 0.5, std: float = 0.5) -> torch.Tensor:
    """Cut a batch of images into patches, as the image processor does for images that need no resizing.

    Args:
        images: uint8 (height, width, 3) each, of one size; the sides are multiples of patch * merge.
        patch: Side of a patch in px.
        merge: Patches per side of a visual token.
        mean: Mean of the normalization, for images scaled to 0..1.
        std: Standard deviation of the normalization.

    Returns:
        float32 (n * patches, 3 * patch * patch), equal to `pixel_values` of the processor up to rounding.
    """
    height, width, channels = images[0].shape
    rows, columns = height // (patch * merge), width // (patch * merge)
    batch = torch.empty(len(images), rows * columns * merge * merge, channels * patch * patch)
    for image, patches in zip(images, batch, strict=True):  # one by one they stay in the processor's cache
        blocks = image.reshape(rows, merge, patch, columns, merge, patch, channels).transpose(0, 3, 1, 4, 6, 2, 5)
        patches.copy_(torch.from_numpy(blocks.reshape(patches.shape))).mul_(1 / (255 * std)).sub_(mean / std)
    return batch.flatten(0, 1)
