"""Errors about model families and their checkpoints, each one line: what was found, where, and what to do."""

import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pinspect.core.errors import ModelError, ParamsError
from pinspect.model import loading
from pinspect.model.adapter import train_adapter
from pinspect.model.backends import trains_in_four_bits
from pinspect.model.families import (
    FAMILIES,
    Checkpoint,
    family_named,
)
from pinspect.model.loading import load_base, load_inspector, load_processor
from tests.stages.test_families import line, saved, small_training

__all__ = ["line", "saved"]


def one_line(caught) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def qwen(saved) -> Path:
    return saved("Qwen2-VL").folder


def of(family: str, folder: Path) -> Checkpoint:
    return Checkpoint(FAMILIES[family], str(folder), folder)


def test_an_error_about_a_wrong_family_name_shows_similar_names():
    with pytest.raises(ParamsError) as caught:
        family_named("qwen2vl-7b")
    assert one_line(caught).startswith("params.yaml: model.family: no family 'qwen2vl-7b'; did you mean qwen2-vl-7b")
    with pytest.raises(ParamsError, match=r"did you mean pinspect or phi-3.5-vision or .* or paligemma-2-3b"):
        family_named("xyz")


def test_an_error_about_a_checkpoint_of_another_family_names_the_right_families(qwen):
    with pytest.raises(ModelError) as caught:
        load_base(of("pixtral-12b", qwen))
    assert "model.family is pixtral-12b, but config.json has model_type 'qwen2_vl'" in one_line(caught)
    assert "choose qwen2-vl-2b or qwen2-vl-7b or qwen2-vl-72b" in str(caught.value)


def test_pixtral_and_llava_are_distinguished(saved):
    pixtral = saved("Pixtral").folder
    with pytest.raises(ModelError, match="model_type 'llava'; choose pixtral-12b"):
        load_processor(of("llava-1.5-7b", pixtral))


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("config.json", "lacks config.json"),
        ("model.safetensors", "lacks model.safetensors or model.safetensors.index.json"),
        ("processor_config.json", "lacks processor_config.json or preprocessor_config.json"),
    ],
)
def test_a_checkpoint_folder_that_lacks_files_names_them(qwen, tmp_path, lost, message):
    folder = tmp_path / "base"
    shutil.copytree(qwen, folder, ignore=shutil.ignore_patterns(lost))
    with pytest.raises(ModelError) as caught:
        load_base(of("qwen2-vl-2b", folder))
    assert f"{folder}: the base model {message}; download it again" in one_line(caught)


def test_a_family_whose_processor_needs_torchvision_is_refused_without_it(qwen, tmp_path, monkeypatch):
    folder = tmp_path / "base"
    shutil.copytree(qwen, folder)
    (folder / "config.json").write_text('{"model_type": "lfm2_vl"}')
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError) as caught:
        load_processor(of("lfm2.5-vl-1.6b", folder))
    assert "the processor of lfm2.5-vl-1.6b needs torchvision; install" in one_line(caught)


def test_only_unsloth_takes_4_bit_weights_by_itself_and_only_for_large_families(line):
    train = line[1].train
    assert train.quantization == "auto"
    large, small = FAMILIES["qwen2-vl-7b"], FAMILIES["pinspect"]
    assert trains_in_four_bits(train, large, "unsloth")
    assert not trains_in_four_bits(train, large, "transformers") and not trains_in_four_bits(train, small, "unsloth")
    for quantization, expected in (("4bit", True), ("none", False)):
        chosen = train.model_copy(update={"quantization": quantization})
        assert trains_in_four_bits(chosen, small, "transformers") == expected
        assert trains_in_four_bits(chosen, large, "unsloth") == expected


def test_ready_made_4_bit_weights_are_refused(qwen, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(qwen, folder)
    config = json.loads((folder / "config.json").read_text()) | {
        "quantization_config": {"quant_method": "bitsandbytes"}
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        load_base(of("qwen2-vl-2b", folder))
    assert "found ready-made 4-bit weights" in one_line(caught)
    assert "set model.checkpoint to the one that they were made from, and train.quantization to 4bit" in str(
        caught.value
    )


def test_a_missing_shard_is_named(qwen, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(qwen, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    shutil.copy(qwen / "model.safetensors", folder / shards["a"])
    with pytest.raises(ModelError, match=r"lacks model-00002-of-00002.safetensors"):
        load_base(of("qwen2-vl-2b", folder))


@pytest.mark.parametrize("damage", ["cut off", "overwritten"])
def test_a_corrupted_weight_file_is_named(qwen, tmp_path, damage):
    folder = tmp_path / "base"
    shutil.copytree(qwen, folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2] if damage == "cut off" else b"not safetensors at all" * 9)
    with pytest.raises(ModelError) as caught:
        load_base(of("qwen2-vl-2b", folder))
    assert one_line(caught).startswith(f"{weights}: not a complete safetensors file")


def test_weights_that_lack_tensors_are_never_filled_at_random(qwen, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(qwen, folder)
    tensors = load_file(folder / "model.safetensors")
    lost = next(name for name in tensors if "layers.1" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"lacks 1 tensors, .*layers.1"):
        load_base(of("qwen2-vl-2b", folder))


def test_too_little_memory_is_an_error_before_anything_is_loaded(qwen, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(qwen, folder)
    huge = 10**12
    header = json.dumps({"w": {"dtype": "BF16", "shape": [huge], "data_offsets": [0, 2 * huge]}}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 2 * huge)  # a sparse file needs no space on the disk
    with pytest.raises(ModelError) as caught:
        load_base(of("qwen2-vl-2b", folder))
    assert "qwen2-vl-2b needs about 4400.0 GB of main memory, and " in one_line(caught)


def test_an_adapter_of_another_family_is_refused(qwen, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in loading.ADAPTER_FILES:
        (adapter / name).write_text("{}")
    (adapter / "training.json").write_text('{"family": "pixtral-12b"}')
    with pytest.raises(ModelError) as caught:
        load_inspector(of("qwen2-vl-2b", qwen), adapter)
    assert "this adapter belongs to the family pixtral-12b, not to qwen2-vl-2b" in one_line(caught)


def test_an_adapter_of_4_bit_weights_is_refused_where_they_cannot_be_computed(qwen, tmp_path, monkeypatch):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in loading.ADAPTER_FILES:
        (adapter / name).write_text("{}")
    (adapter / "training.json").write_text('{"family": "qwen2-vl-2b", "four_bits": {"load_in_4bit": true}}')
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("UNSLOTH_ALLOW_CPU", raising=False)
    with pytest.raises(ModelError) as caught:
        load_inspector(of("qwen2-vl-2b", qwen), adapter)
    assert "this adapter, trained on 4-bit weights, needs an NVIDIA GPU, this machine has none; train" in one_line(
        caught
    )


def test_an_error_about_a_missing_hub_checkpoint_shows_how_to_download_it(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError) as caught:
        load_processor(Checkpoint(FAMILIES["qwen2-vl-7b"], "Qwen/Qwen2-VL-7B-Instruct", None, "c" * 40))
    assert f"HF_HUB_OFFLINE=0 hf download Qwen/Qwen2-VL-7B-Instruct --revision {'c' * 40}`" in one_line(caught)


def test_a_folder_is_loaded_without_any_connection_even_if_downloads_are_allowed(line, saved, tmp_path, monkeypatch):
    def refuse(*arguments, **_):
        raise AssertionError(f"connection to {arguments}")

    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    root, params, _ = line
    few = small_training(params)
    few = few.model_copy(update={"train": few.train.model_copy(update={"maximum_steps": 1})})
    chat, images = root / "data/chat", root / "data/composited"
    train_adapter(few, saved("Qwen3-VL"), chat, images, tmp_path / "adapter", tmp_path / "work")
    load_inspector(saved("Qwen3-VL"), tmp_path / "adapter")


def test_too_little_disk_is_an_error_before_a_download_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    vast = replace(FAMILIES["qwen2-vl-72b"], parameters=1e6)
    with pytest.raises(ModelError, match=r"needs about 2000000.0 GB, and .* GB are free in"):
        load_processor(Checkpoint(vast, "Qwen/Qwen2-VL-72B-Instruct", None))
