"""Processors: each family's own, made ready for inspections, and the tokenizer of the default model.

Some stock processors insist on torchvision, for videos or for nothing: an inspector has no use for either. Their place
is taken by classes of ours that make the same inputs of images and text.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoProcessor,
    Idefics3Config,
    Idefics3Processor,
    PreTrainedTokenizerFast,
    Qwen3VLConfig,
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

# Qwen's chat form: every turn between <|im_start|>role and <|im_end|>, an image as one pad token between its marks.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class ImageTextProcessor(Qwen3VLProcessor):
    """The processor of Qwen2-VL, Qwen2.5-VL and Qwen3-VL, for images and text only."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None, **kwargs) -> None:
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
        """The parts that are saved and loaded: no video processor among them."""
        return ["image_processor", "tokenizer"]


class RowBreakPixtralProcessor(ProcessorMixin):
    """Pixtral's processor, whose stock class does not load without torchvision.

    An image becomes its rows of image tokens with a break after each, and an end mark in the place of the last one.
    transformers knows by the `PixtralProcessor` in a class's name which tokenizer class its checkpoints mean.
    """

    def __init__(
        self, image_processor=None, tokenizer=None, patch_size=16, spatial_merge_size=1, chat_template=None, **kwargs
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.patch_size, self.spatial_merge_size = patch_size, spatial_merge_size
        self.image_token, self.image_break_token, self.image_end_token = "[IMG]", "[IMG_BREAK]", "[IMG_END]"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        image_processor.patch_size = patch_size * spatial_merge_size

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """The text that stands for one image: called by transformers while it fills in placeholders."""
        patch = self.patch_size * self.spatial_merge_size
        height, width = (int(side) // patch for side in image_inputs["image_sizes"][image_idx])
        rows = self.image_break_token.join([self.image_token * width] * height)
        return f"{rows}{self.image_end_token}"


class _ImageTextConfig(Qwen3VLConfig):
    """A key of our own: the Auto classes keep no registration for a config of transformers itself."""


class _Idefics3Config(Idefics3Config):
    """As above."""


class _SmolVLMConfig(SmolVLMConfig):
    """As above."""


# The Auto classes find a processor by the name that its configuration file tells.
AutoProcessor.register(_ImageTextConfig, ImageTextProcessor, exist_ok=True)
# These two image processors need Pillow alone, but transformers 5.17 hides them where torchvision is missing.
for _config, _pictures in ((_Idefics3Config, Idefics3ImageProcessorPil), (_SmolVLMConfig, SmolVLMImageProcessorPil)):
    AutoImageProcessor.register(_config, image_processor_classes={"pil": _pictures}, exist_ok=True)

# Families whose checkpoint names a class that wants torchvision, or words for numbers, before it reads an image.
_OWN_CLASSES = {"image_text": ImageTextProcessor, "row_breaks": RowBreakPixtralProcessor, "tiles": Idefics3Processor}

_DATE = "26 Jul 2024"


def processor_from(folder: Path, family: Family, *, trust_remote_code: bool = False):
    """The processor in `folder`, such that a prompt, its images and the end of an answer need nothing else.

    Its tokenizer's `eos_token` ends an answer, it has a chat template, and it shows whole pictures: the edges of a
    composite would be lost to a square crop. Raises ModelError when that cannot be had.
    """
    own = _OWN_CLASSES.get(family.processor, AutoProcessor)
    processor = own.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise ModelError(f"{folder}: expected a processor for images and text, found {type(processor).__name__}")
    processor.chat_template = family.template or processor.chat_template
    if not processor.chat_template:
        raise ModelError(f"{folder}: no chat template; take the checkpoint that was tuned for instructions")
    if "date_string" in processor.chat_template:  # a prompt must be the same tomorrow
        processor.chat_template = f'{{%- set date_string = "{_DATE}" %}}{processor.chat_template}'
    tokenizer, image_processor = processor.tokenizer, processor.image_processor
    if tokenizer.convert_tokens_to_ids(family.end_of_turn) in (None, tokenizer.unk_token_id):
        raise ModelError(f"{folder}: its tokenizer knows no {family.end_of_turn!r}, which ends {family.name}'s answers")
    tokenizer.eos_token = family.end_of_turn
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # attention masks tell them apart
    if own is ImageTextProcessor and not isinstance(image_processor, Qwen2VLImageProcessorPil):
        # Where torchvision is installed: the pictures are to be the same on every machine.
        processor.image_processor = Qwen2VLImageProcessorPil.from_pretrained(folder)
    elif getattr(image_processor, "do_center_crop", False):
        image_processor.do_center_crop, image_processor.size = False, image_processor.crop_size
    return processor


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer whose merges come from `texts`; single digits and capital letters stay tokens.

    Any other text can still be written, by bytes.
    """
    tokenizer = Tokenizer(models.BPE())
    words = r"\d| ?[A-Za-z]+|->|[^\S\n]+|\n|[^\sA-Za-z\d]"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=1,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, padding_side="left", model_max_length=4096
    )


def build_processor(tokenizer: PreTrainedTokenizerFast, patch: int, merge: int) -> ImageTextProcessor:
    """A processor that cuts images into `patch` px squares, `merge` x `merge` of them to a visual token."""
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=patch,
        merge_size=merge,
        temporal_patch_size=1,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
        size={"shortest_edge": (patch * merge) ** 2, "longest_edge": 4096 * 4096},
    )
    return ImageTextProcessor(image_processor, tokenizer, chat_template=CHAT_TEMPLATE)


def patchify(images: torch.Tensor, patch: int, merge: int, mean: float = 0.5, std: float = 0.5) -> torch.Tensor:
    """What the image processor makes of images whose sides need no resizing, for a whole batch at once.

    images: uint8 (n, height, width, 3), sides whole multiples of patch * merge.
    Returns float32 (n * patches, 3 * patch * patch), equal to the processor's `pixel_values` to float32 rounding.
    """
    n, height, width, channels = images.shape
    rows, columns = height // (patch * merge), width // (patch * merge)
    blocks = images.view(n, rows, merge, patch, columns, merge, patch, channels)
    patches = blocks.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(n * rows * columns * merge * merge, -1)
    return patches.float().mul_(1 / (255 * std)).sub_(mean / std)
