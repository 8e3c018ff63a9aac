"""Names, shapes and logits of a model directory, read without transformers' modelling and compared with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from colossal_llama.probe import Probe, difference, model_probe, probe_positions
from colossal_llama.second_reader import check_readable, check_same_weights, expected_shapes, stored_tensors
from tests.colossal_llama.plain_llama import plain_logits
from tests.conftest import TINY_MODEL_CONFIG

SIZES = {key: TINY_MODEL_CONFIG[key] for key in TINY_MODEL_CONFIG if key not in ("architectures", "model_type")}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("llama", {"head_dim": 24}),
        ("mistral", {"num_key_value_heads": 4}),
        ("qwen2", {}),
    ],
)
def test_names_and_shapes_are_those_of_the_model(kind: str, more: dict[str, Any], tied: bool, tmp_path: Path) -> None:
    config = AutoConfig.for_model(kind, **{**SIZES, "vocab_size": 96, **more, "tie_word_embeddings": tied})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    stored = {name: one.shape for name, one in stored_tensors(tmp_path).items()}
    assert expected_shapes(json.loads((tmp_path / "config.json").read_text())) == stored


@pytest.fixture
def directory(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A sound model directory in two shards, free to be damaged."""
    target = tmp_path / "model"
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.config.use_cache = True
    model.save_pretrained(target, max_shard_size="500KB")
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(target)
    assert len(list(target.glob("*.safetensors"))) == 2
    return target


def set_config(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = sorted(directory.glob("*.safetensors"))[-1]
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def lose_the_index(directory: Path) -> None:
    (directory / "model.safetensors.index.json").unlink()


def lose_a_name_of_the_index(directory: Path) -> None:
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"]["lm_head.weight"]
    path.write_text(json.dumps(index))


def lose_a_shard(directory: Path) -> None:
    sorted(directory.glob("*.safetensors"))[-1].unlink()


def rename_a_tensor(directory: Path) -> None:
    change_tensors(directory, lambda tensors: tensors.update({"lm_head.w": tensors.pop("lm_head.weight")}))


def one_tensor_in_another_format(directory: Path) -> None:
    change_tensors(directory, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"].half()}))


def transpose_a_tensor(directory: Path) -> None:
    change_tensors(
        directory, lambda tensors: tensors.update({"lm_head.weight": tensors["lm_head.weight"].T.contiguous()})
    )


def lose_the_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


def one_piece_too_many(directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(directory)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lose_the_index, "without model.safetensors.index.json only model.safetensors is read"),
        (lose_a_name_of_the_index, "lm_head.weight lies in model-.*, .*index.json says None"),
        (lose_a_shard, "lies in None, .*index.json says model-00002"),
        (rename_a_tensor, "lm_head.w lies in model-00002"),
        (one_tensor_in_another_format, "says torch_dtype float32, the weights are float16, float32"),
        (transpose_a_tensor, r"lm_head.weight: \(64, 512\), by config.json \(512, 64\)"),
        (lambda path: set_config(path, use_cache=False), "turns the key-value cache off"),
        (lambda path: set_config(path, torch_dtype="bfloat16"), "says torch_dtype bfloat16, the weights are float32"),
        (lambda path: set_config(path, architectures=["LlamaModel"]), "not LlamaForCausalLM"),
        (lambda path: set_config(path, rms_norm_eps=None), "config.json says no rms_norm_eps"),
        (lambda path: set_config(path, num_hidden_layers=5), "model.layers.4.input_layernorm.weight: missing"),
        (lambda path: set_config(path, num_key_value_heads=4), r"k_proj.weight: \(32, 64\), by config.json \(64, 64\)"),
        (lambda path: set_config(path, tie_word_embeddings=True), "lm_head.weight: .*not expected"),
        (lose_the_tokenizer, "tokenizer.json is missing"),
        (one_piece_too_many, "the tokenizer has an id 512, but there are 512 rows"),
    ],
)
def test_what_others_would_stumble_over_is_named(damage: Callable[[Path], None], reason: str, directory: Path) -> None:
    check_readable(directory)
    damage(directory)
    with pytest.raises(RuntimeError, match=reason):
        check_readable(directory)


def test_long_lists_are_cut(directory: Path) -> None:
    set_config(directory, num_hidden_layers=6)
    with pytest.raises(RuntimeError, match="; and 15 more$"):
        check_readable(directory)


def test_other_architectures_pass_by_what_holds_for_all(tiny_model_dir: Path, tmp_path: Path) -> None:
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 512, "use_cache": True, "torch_dtype": "float32"}
    AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **sizes)).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(tmp_path)
    check_readable(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(RuntimeError, match="tokenizer.json is missing"):
        check_readable(tmp_path)


def test_one_changed_number_of_any_row_is_seen(tiny_model_dir: Path, directory: Path, tmp_path: Path) -> None:
    check_same_weights(tiny_model_dir, directory)
    change_tensors(directory, lambda tensors: tensors["lm_head.weight"][511, 63].mul_(1.001))
    with pytest.raises(RuntimeError, match="lm_head.weight: not written as the checkpoint has it"):
        check_same_weights(tiny_model_dir, directory)


def test_converted_weights_are_the_cast_of_the_old_ones(tiny_model_dir: Path, tmp_path: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_model_dir, torch_dtype=torch.bfloat16).save_pretrained(tmp_path)
    check_same_weights(tiny_model_dir, tmp_path)
    with pytest.raises(RuntimeError, match="not written as the checkpoint has it"):
        check_same_weights(tmp_path, tiny_model_dir)  # what is lost does not come back


def test_invented_tensor_is_named(tiny_model_dir: Path, directory: Path) -> None:
    change_tensors(directory, lambda tensors: tensors.update({"model.extra": torch.zeros(2)}))
    with pytest.raises(RuntimeError, match="model.extra: written, but not in the checkpoint"):
        check_same_weights(tiny_model_dir, directory)


@pytest.mark.parametrize("tied", [False, True])
def test_logits_are_those_of_a_llama_written_from_the_paper(tied: bool, tmp_path: Path) -> None:
    torch.manual_seed(3)
    settings = {**SIZES, "vocab_size": 96, "rope_theta": 500.0, "tie_word_embeddings": tied, "initializer_range": 0.2}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **settings)).eval()
    model.save_pretrained(tmp_path)
    ids = torch.randint(0, 96, (40,))
    theirs, ours = model_probe(model, ids, probe_positions(40)), plain_logits(tmp_path, ids)
    nats = -ours.log_softmax(-1)[:-1].gather(1, ids[1:, None]).squeeze(1)
    plain = Probe(ids, nats, theirs.positions, ours[theirs.positions])
    assert difference(theirs, plain).relative < 1e-5
    ours[:, 7] += 0.01
    assert difference(theirs, Probe(ids, nats, theirs.positions, ours[theirs.positions])).relative > 1e-5
