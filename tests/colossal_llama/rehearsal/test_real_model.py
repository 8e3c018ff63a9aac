"""Headers against config.json: a model that was copied in half is found without reading a weight."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from colossal_llama.rehearsal.real_model import check_weights
from tokenizer_tools.command import UserError


@pytest.fixture
def model_dir(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """The tiny model in three files."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.save_pretrained(tmp_path / "model", max_shard_size="300KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    return tmp_path / "model"


def check(directory: Path) -> str:
    return check_weights(directory, AutoConfig.from_pretrained(directory))


def test_a_whole_model_passes(model_dir: Path) -> None:
    num_files = len(list(model_dir.glob("*.safetensors")))
    assert check(model_dir) == f"39 tensors in {num_files} file(s), 0.0 GB, are there"


def test_a_missing_file_is_named(model_dir: Path) -> None:
    gone = sorted(model_dir.glob("*.safetensors"))[-1]
    gone.unlink()
    with pytest.raises(UserError, match=gone.name):
        check(model_dir)


def test_a_cut_file_is_named(model_dir: Path) -> None:
    cut = sorted(model_dir.glob("*.safetensors"))[0]
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(UserError, match=cut.name):
        check(model_dir)


def test_shapes_are_those_of_the_config(model_dir: Path) -> None:
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps(config | {"intermediate_size": 96, "num_hidden_layers": 5}))
    with pytest.raises(UserError) as caught:
        check(model_dir)
    assert "model.layers.0.mlp.gate_proj.weight has the shape [128, 64], not [96, 64]" in str(caught.value)
    assert "and 18 more, by its config.json" in str(caught.value), "3 x 4 shapes and 9 tensors, 3 of them named"


def test_a_tied_matrix_is_stored_once(model_dir: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(model_dir)
    config.tie_word_embeddings = True
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "tied")
    assert check(tmp_path / "tied").startswith("38 tensors")
    config.tie_word_embeddings = False
    config.save_pretrained(tmp_path / "tied")
    with pytest.raises(UserError, match=r"lm_head.weight is missing, by its config.json"):
        check(tmp_path / "tied")


def test_pickles_are_not_read(model_dir: Path, tmp_path: Path) -> None:
    weights = {name: one for path in model_dir.glob("*.safetensors") for name, one in load_file(path).items()}
    (tmp_path / "old").mkdir()
    shutil.copy(model_dir / "config.json", tmp_path / "old")
    torch.save(weights, tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(UserError, match="safetensors only"):
        check(tmp_path / "old")


def test_names_without_the_base_models_prefix_count(tmp_path: Path) -> None:
    """As the hub's gpt2 has them."""
    config = AutoConfig.for_model("gpt2", n_embd=16, n_head=2, n_layer=1, vocab_size=50)
    model = AutoModelForCausalLM.from_config(config)
    config.save_pretrained(tmp_path)
    weights = {name.removeprefix("transformer."): one for name, one in model.named_parameters()}
    save_file(weights, tmp_path / "model.safetensors")
    assert "are there" in check(tmp_path)
