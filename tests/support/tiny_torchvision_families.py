"""Tiny checkpoints of the families whose processors need torchvision."""

import transformers as hf

from tests.support.tiny_families import (
    _CHATML,
    _GEMMA,
    _GEMMA_NAMED,
    _GEMMA_TOKENS,
    _SMALL,
    HIDDEN,
    TinyFamily,
    _ids,
    _text,
)


def _gemma_4(tokenizer):
    """The last two layers of the language model take keys and values from the first two."""
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config = hf.Gemma4Config(
        text_config=_text(
            tokenizer,
            num_hidden_layers=4,
            num_kv_shared_layers=2,
            head_dim=16,
            global_head_dim=16,
            sliding_window=64,
            layer_types=["sliding_attention", "full_attention"] * 2,
            rope_parameters={"sliding_attention": rope, "full_attention": rope},
            hidden_size_per_layer_input=8,
            vocab_size_per_layer_input=len(tokenizer),
            use_bidirectional_attention="vision",
            final_logit_softcapping=0.5,
        ),
        vision_config={
            **_SMALL,
            **{"num_key_value_heads": 2, "head_dim": 16, "patch_size": 4, "position_embedding_size": 128},
        },
        audio_config={
            **{"hidden_size": HIDDEN, "num_hidden_layers": 1, "num_attention_heads": 2, "output_proj_dims": HIDDEN},
            "subsampling_conv_channels": [8, 4],
        },
        **_ids(
            tokenizer,
            boi_token_id="<|image>",
            eoi_token_id="<image|>",
            image_token_id="<|image|>",
            video_token_id="<|video|>",
            boa_token_id="<|audio>",
            eoa_token_index="<audio|>",
            audio_token_id="<|audio|>",
        ),
    )
    pictures = hf.Gemma4ImageProcessor(patch_size=4, max_soft_tokens=70)
    processor = hf.Gemma4Processor(
        hf.Gemma4AudioFeatureExtractor(),
        pictures,
        tokenizer,
        hf.Gemma4VideoProcessor(patch_size=4, max_soft_tokens=70),
        chat_template=_GEMMA.replace("<start_of_turn>", "<|turn>")
        .replace("<end_of_turn>", "<turn|>")
        .replace("<start_of_image>", "<|image|>"),
    )
    return hf.Gemma4ForConditionalGeneration(config), processor


def _lfm_2(tokenizer):
    """Every second layer of the language model is a convolution."""
    config = hf.Lfm2VlConfig(
        text_config=_text(tokenizer, layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
        vision_config={**_SMALL, "patch_size": 8, "num_patches": 64},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        projector_hidden_size=HIDDEN,
    )
    pictures = hf.Lfm2VlImageProcessor(
        encoder_patch_size=8, tile_size=64, max_tiles=4, min_image_tokens=4, max_image_tokens=16
    )
    template = "{{ bos_token }}" + _CHATML.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
    return hf.Lfm2VlForConditionalGeneration(config), hf.Lfm2VlProcessor(pictures, tokenizer, chat_template=template)


TINY_TORCHVISION_FAMILIES: dict[str, TinyFamily] = {
    "Gemma-4": TinyFamily(
        "gemma-4-e2b",
        _gemma_4,
        (
            *(*_GEMMA_TOKENS, "<|turn>", "<turn|>", "<|image>", "<image|>", "<|image|>", "<|video|>"),
            *("<|audio>", "<audio|>", "<|audio|>"),
        ),
        _GEMMA_NAMED
        | {"boi_token": "<|image>", "eoi_token": "<image|>", "image_token": "<|image|>"}
        | {"boa_token": "<|audio>", "eoa_token": "<audio|>", "audio_token": "<|audio|>"},
        begins=True,
    ),
    "LFM2-VL": TinyFamily(
        "lfm2.5-vl-1.6b",
        _lfm_2,
        (
            *("<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"),
            *("<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"),
            *(f"<|img_row_{row}_col_{column}|>" for row in range(1, 5) for column in range(1, 5)),
        ),
        {"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|pad|>"},
        begins=True,
    ),
}
