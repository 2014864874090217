"""A tiny checkpoint of every family, saved like the checkpoints on the hub.

Random weights come from the family's own config class, the processor from its own classes, and the tokenizer is trained
on the prompts and answers of the contract. Pictures and patches are small too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers as hf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from pinspect.core import prompts
from pinspect.core.answers import AnswerContract
from pinspect.core.layout import Layout
from pinspect.model.processor import ImageTextProcessor, RowBreakPixtralProcessor

HIDDEN = 32
_SMALL = {"hidden_size": HIDDEN, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}

# The families' own chat templates, reduced to the parts that the contract's messages need.
_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_LLAMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' }}{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ '<|image|>' }}{% else %}{{ part.text }}{% endif %}{% endfor %}{{ '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    "{# date: #}{% if not date_string is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}"
)
_MISTRAL = (
    "{{ BEGIN }}{% for message in messages %}{% if message.role == 'user' %}{{ '[INST] ' }}{% endif %}"
    "{% for part in message.content %}{% if part.type == 'image' %}{{ 'IMAGE' }}{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}{{ ' [/INST]' if message.role == 'user' else eos_token }}{% endfor %}"
)
_VICUNA = (
    "{% for message in messages %}{{ message.role.upper() + ': ' }}{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ '<image>\n' }}{% endif %}{% endfor %}{% for part in message.content %}"
    "{% if part.type == 'text' %}{{ part.text + ' ' }}{% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_IDEFICS = (
    "<|im_start|>{% for message in messages %}{{ message.role | capitalize }}:{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ '<image>' }}{% else %}{{ ' ' + part.text }}{% endif %}{% endfor %}"
    "{{ '<end_of_utterance>\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' }}"
    "{% for part in message.content %}{% if part.type == 'image' %}{{ '<start_of_image>' }}{% else %}{{ part.text }}"
    "{% endif %}{% endfor %}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)


@dataclass(frozen=True)
class TinyFamily:
    """A tiny checkpoint of one family.

    Attributes:
        family: Name in `FAMILIES`.
        make: Tokenizer -> model and processor.
        special: Special tokens of its checkpoints.
        named: Role -> special token.
        begins: Whether the tokenizer adds the first token.
    """

    family: str
    make: Callable
    special: Sequence[str]
    named: dict[str, str]
    begins: bool = False

    def save(self, folder: Path) -> Path:
        """Write the checkpoint to `folder` and return `folder`."""
        torch.manual_seed(0)
        tokenizer = train_tokenizer(self.special, self.named, begins=self.begins)
        model, processor = self.make(tokenizer)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return folder


def train_tokenizer(special: Sequence[str], named: dict[str, str], *, begins: bool) -> hf.PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on all prompts and answers, with a family's own special tokens."""
    contract = AnswerContract(Layout(("U", "C", "D"), 9), ("CYLN", "SQUR"), ("bend", "retract", "missing"))
    answers = [
        contract.render(contract.defective(shape, view, mode, address))
        for shape, view in (("CYLN", "RAW"), ("SQUR", "DST"))
        for mode in contract.defect_modes
        for address in contract.layout.addresses
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*prompts.texts(), *answers], trainer)
    if begins:
        first = named["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, tokenizer.token_to_id(first))]
        )
    roles = {role: token for role, token in named.items() if role in ("bos_token", "eos_token", "pad_token")}
    extra = {role: token for role, token in named.items() if role not in roles}
    return hf.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **roles, extra_special_tokens=extra)


def _ids(tokenizer, **names: str) -> dict[str, int]:
    return {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}


def _text(tokenizer, **more) -> dict:
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return {
        **_SMALL,
        **ids,
        "vocab_size": len(tokenizer),
        "num_key_value_heads": 2,
        "pad_token_id": tokenizer.pad_token_id,
        "max_position_embeddings": 4096,
    } | more


_QWEN_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}


def _qwen_processor(tokenizer, patch: int = 8):
    size = {"shortest_edge": 16 * 16, "longest_edge": 512 * 512}
    pictures = Qwen2VLImageProcessorPil(patch_size=patch, merge_size=2, size=size)
    return ImageTextProcessor(pictures, tokenizer, chat_template=_CHATML)


def _qwen(version: str, hidden: int = HIDDEN, patch: int = 8):
    names = {"2": "Qwen2VL", "2.5": "Qwen2_5_VL", "3": "Qwen3VL"}
    heads = hidden // 16
    vision = {
        "2": {"depth": 2, "embed_dim": hidden, "hidden_size": hidden, "mlp_ratio": 2, "num_heads": heads},
        "2.5": {
            **{"depth": 2, "hidden_size": hidden, "out_hidden_size": hidden, "intermediate_size": 64},
            **{"num_heads": heads, "window_size": 32, "fullatt_block_indexes": [1]},
        },
        "3": {
            **{"depth": 2, "hidden_size": hidden, "out_hidden_size": hidden, "intermediate_size": 64},
            **{"num_heads": heads, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        },
    }[version] | {"patch_size": patch, "spatial_merge_size": 2, "temporal_patch_size": 2}
    sections = {"mrope_section": [4, 2, 2], "rope_theta": 10000.0}
    rope = sections | ({"rope_type": "default"} if version == "3" else {"type": "mrope", "rope_type": "default"})

    def make(tokenizer):
        size = {"hidden_size": hidden, "num_attention_heads": heads} | ({"head_dim": 16} if version == "3" else {})
        config = getattr(hf, f"{names[version]}Config")(
            text_config=_text(tokenizer, rope_parameters=rope, **size),
            vision_config=vision,
            tie_word_embeddings=True,
            **_ids(tokenizer, **_QWEN_IDS),
        )
        return getattr(hf, f"{names[version]}ForConditionalGeneration")(config), _qwen_processor(tokenizer, patch)

    return make


def _qwen_3_5(tokenizer):
    """Every second layer of the language model is linear attention, whose state no earlier token can be cut from."""
    config = hf.Qwen3_5Config(
        text_config=_text(
            tokenizer,
            head_dim=32,
            layer_types=["linear_attention", "full_attention"],
            linear_key_head_dim=16,
            linear_value_head_dim=16,
            linear_num_key_heads=2,
            linear_num_value_heads=2,
            rope_parameters={
                **{"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
                **{"mrope_section": [4, 2, 2], "mrope_interleaved": True},
            },
        ),
        vision_config={
            **{"depth": 2, "hidden_size": HIDDEN, "out_hidden_size": HIDDEN, "intermediate_size": 64, "num_heads": 2},
            **{"num_position_embeddings": 64, "patch_size": 8, "spatial_merge_size": 2, "temporal_patch_size": 2},
        },
        tie_word_embeddings=True,
        **_ids(tokenizer, **_QWEN_IDS),
    )
    return hf.Qwen3_5ForConditionalGeneration(config), _qwen_processor(tokenizer)


def _ministral(tokenizer):
    config = hf.Mistral3Config(
        text_config={"model_type": "ministral3", **_text(tokenizer, head_dim=16)},
        vision_config={"model_type": "pixtral", **_SMALL, "image_size": 256, "patch_size": 8, "head_dim": 16},
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    pictures = PixtralImageProcessorPil(size={"longest_edge": 256}, patch_size={"height": 8, "width": 8})
    template = _MISTRAL.replace("BEGIN", "bos_token").replace("IMAGE", "[IMG]")
    processor = RowBreakPixtralProcessor(
        pictures, tokenizer, patch_size=8, spatial_merge_size=2, chat_template=template
    )
    return hf.Mistral3ForConditionalGeneration(config), processor


def _mllama(tokenizer):
    config = hf.MllamaConfig(
        text_config=_text(
            tokenizer,
            num_hidden_layers=3,
            cross_attention_layers=[1],
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        vision_config={
            **{"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_global_layers": 1},
            **{"attention_heads": 2, "image_size": 32, "patch_size": 8, "max_num_tiles": 4, "vision_output_dim": 32},
            **{"intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1]]},
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<|image|>"),
    )
    model = hf.MllamaForConditionalGeneration(config)
    for name, gate in model.named_parameters():
        if name.endswith("gate"):
            torch.nn.init.ones_(gate)  # a new gate is 0, so that no picture would reach the model
    pictures = MllamaImageProcessorPil(size={"height": 32, "width": 32}, max_image_tiles=4)
    return model, hf.MllamaProcessor(pictures, tokenizer, chat_template=_LLAMA)


def _pixtral(tokenizer):
    config = hf.LlavaConfig(
        text_config={"model_type": "mistral", **_text(tokenizer, head_dim=16)},
        vision_config={"model_type": "pixtral", **_SMALL, "image_size": 256, "patch_size": 16, "head_dim": 16},
        image_token_index=tokenizer.convert_tokens_to_ids("[IMG]"),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    pictures = PixtralImageProcessorPil(size={"longest_edge": 256}, patch_size={"height": 16, "width": 16})
    template = _MISTRAL.replace("BEGIN", "bos_token").replace("IMAGE", "[IMG]")
    processor = RowBreakPixtralProcessor(pictures, tokenizer, patch_size=16, chat_template=template)
    return hf.LlavaForConditionalGeneration(config), processor


def _llava(tokenizer):
    config = hf.LlavaConfig(
        text_config={"model_type": "llama", **_text(tokenizer)},
        vision_config={"model_type": "clip_vision_model", **_SMALL, "image_size": 64, "patch_size": 16},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=16,
    )
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})
    processor = hf.LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_VICUNA,
    )
    return hf.LlavaForConditionalGeneration(config), processor


def _llava_next(tokenizer):
    pinpoints = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]
    config = hf.LlavaNextConfig(
        text_config={"model_type": "mistral", **_text(tokenizer, head_dim=16)},
        vision_config={"model_type": "clip_vision_model", **_SMALL, "image_size": 32, "patch_size": 8},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
        image_seq_length=16,
    )
    pictures = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=pinpoints
    )
    processor = hf.LlavaNextProcessor(
        pictures,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_MISTRAL.replace("BEGIN", "''").replace("IMAGE", "<image>\n"),
    )
    return hf.LlavaNextForConditionalGeneration(config), processor


def _idefics(name: str, pictures_class: type):
    def make(tokenizer):
        config = getattr(hf, f"{name}Config")(
            text_config={"model_type": "llama", **_text(tokenizer)},
            vision_config={**_SMALL, "image_size": 32, "patch_size": 8},
            scale_factor=2,
            image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
            pad_token_id=tokenizer.pad_token_id,
        )
        pictures = pictures_class(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
        processor = hf.Idefics3Processor(pictures, tokenizer, image_seq_len=4, chat_template=_IDEFICS)
        return getattr(hf, f"{name}ForConditionalGeneration")(config), processor

    return make


def _gemma(tokenizer):
    config = hf.Gemma3Config(
        text_config=_text(
            tokenizer,
            head_dim=16,
            query_pre_attn_scalar=16,
            sliding_window=64,  # shorter than a prompt, as for real checkpoints
            layer_types=["sliding_attention", "full_attention"],
        ),
        vision_config={**_SMALL, "image_size": 32, "patch_size": 8},
        mm_tokens_per_image=4,
        **_ids(
            tokenizer,
            boi_token_index="<start_of_image>",
            eoi_token_index="<end_of_image>",
            image_token_index="<image_soft_token>",
        ),
    )
    pictures = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    processor = hf.Gemma3Processor(pictures, tokenizer, image_seq_length=4, chat_template=_GEMMA)
    model = hf.Gemma3ForConditionalGeneration(config)
    # New weights are 0, so that no picture would reach the model.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.2)
    return model, processor


def _paligemma(tokenizer):
    pictures = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    pictures.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(pictures, tokenizer)  # adds location and segmentation tokens
    config = hf.PaliGemmaConfig(
        text_config={
            "model_type": "gemma2",
            **_text(tokenizer, head_dim=16, query_pre_attn_scalar=16, sliding_window=64, final_logit_softcapping=0.5),
        },
        vision_config={"model_type": "siglip_vision_model", **_SMALL, "image_size": 32, "patch_size": 8},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=HIDDEN,
        hidden_size=HIDDEN,
    )
    return hf.PaliGemmaForConditionalGeneration(config), processor


_QWEN_TOKENS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|image_pad|>", "<|video_pad|>"),
)
_QWEN_NAMED = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
_LLAMA_TOKENS = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|finetune_right_pad_id|>", "<|python_tag|>"),
)
_TILES = tuple(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7))
_IDEFICS_TOKENS = (
    *("<|im_start|>", "<|endoftext|>", "<end_of_utterance>", "<fake_token_around_image>", "<image>", "<global-img>"),
    *_TILES,
)
_IDEFICS_NAMED = {"pad_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
_MISTRAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", "[INST]", "[/INST]")
_MISTRAL_NAMED = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
_GEMMA_TOKENS = ("<pad>", "<eos>", "<bos>", "<unk>")
_GEMMA_NAMED = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}

# Wide enough for 4-bit weights, which share a scale in blocks of 64.
WIDE = TinyFamily("qwen2-vl-2b", _qwen("2", hidden=64, patch=32), _QWEN_TOKENS, _QWEN_NAMED)

# Name in a test report -> its tiny checkpoint.
TINY_FAMILIES: dict[str, TinyFamily] = {
    "Qwen2-VL": TinyFamily("qwen2-vl-2b", _qwen("2"), _QWEN_TOKENS, _QWEN_NAMED),
    "Qwen2.5-VL": TinyFamily("qwen2.5-vl-3b", _qwen("2.5"), _QWEN_TOKENS, _QWEN_NAMED),
    "Qwen3-VL": TinyFamily("qwen3-vl-2b", _qwen("3"), _QWEN_TOKENS, _QWEN_NAMED),
    "Qwen3.5": TinyFamily("qwen3.5-4b", _qwen_3_5, _QWEN_TOKENS, _QWEN_NAMED),
    "Ministral-3": TinyFamily(
        "ministral-3-3b",
        _ministral,
        (*_MISTRAL_TOKENS, "[IMG]", "[IMG_BREAK]", "[IMG_END]"),
        _MISTRAL_NAMED,
        begins=True,
    ),
    "Mllama": TinyFamily(
        "llama-3.2-11b-vision",
        _mllama,
        (*_LLAMA_TOKENS, "<|image|>"),
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|finetune_right_pad_id|>"},
        begins=True,
    ),
    "Pixtral": TinyFamily(
        "pixtral-12b", _pixtral, (*_MISTRAL_TOKENS, "[IMG]", "[IMG_BREAK]", "[IMG_END]"), _MISTRAL_NAMED, begins=True
    ),
    "LLaVA-1.5": TinyFamily("llava-1.5-7b", _llava, (*_MISTRAL_TOKENS, "<image>"), _MISTRAL_NAMED, begins=True),
    "LLaVA-NeXT": TinyFamily("llava-1.6-7b", _llava_next, (*_MISTRAL_TOKENS, "<image>"), _MISTRAL_NAMED, begins=True),
    "Idefics3": TinyFamily(
        "idefics3-8b", _idefics("Idefics3", Idefics3ImageProcessorPil), _IDEFICS_TOKENS, _IDEFICS_NAMED
    ),
    "SmolVLM": TinyFamily(
        "smolvlm2-500m", _idefics("SmolVLM", SmolVLMImageProcessorPil), _IDEFICS_TOKENS, _IDEFICS_NAMED
    ),
    "Gemma-3": TinyFamily(
        "gemma-3-4b",
        _gemma,
        (
            *_GEMMA_TOKENS,
            *("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"),
        ),
        _GEMMA_NAMED
        | {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"},
        begins=True,
    ),
    "PaliGemma": TinyFamily("paligemma-2-3b", _paligemma, (*_GEMMA_TOKENS, "<image>"), _GEMMA_NAMED),
}
