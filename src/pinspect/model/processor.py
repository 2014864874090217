"""Processor and tokenizer of the default model: Qwen3-VL's own classes, without those for video.

The stock Qwen3-VL processor insists on a video processor, which needs torchvision; an inspector has no use for either.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoProcessor, PreTrainedTokenizerFast, Qwen3VLConfig
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
from transformers.processing_utils import ProcessorMixin

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
    """Qwen3-VL's processor for images and text only."""

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


class _ImageTextConfig(Qwen3VLConfig):
    """A key of our own: AutoProcessor keeps no registration for a config of transformers itself."""


# AutoProcessor finds the class by the name that processor_config.json tells.
AutoProcessor.register(_ImageTextConfig, ImageTextProcessor, exist_ok=True)


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
