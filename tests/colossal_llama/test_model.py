"""A model directory in, a model ready to train out; a broken one is refused with its name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from colossal_llama.model import embedding_parameters, freeze_non_embeddings, load_model, num_parameters
from tests.colossal_llama.runs import weights_of
from tokenizer_tools.command import UserError

Weights = dict[str, torch.Tensor]


def test_weights_and_settings_are_those_of_the_directory(tiny_model_dir: Path) -> None:
    model = load_model(tiny_model_dir, "auto", "sdpa", use_grad_checkpoint=False)
    saved = weights_of(tiny_model_dir)
    state = model.state_dict()
    assert saved.keys() == state.keys()
    assert all(torch.equal(saved[name], state[name]) and saved[name].dtype == state[name].dtype for name in saved)
    assert model.training
    assert not model.config.use_cache
    assert not model.is_gradient_checkpointing
    halved = load_model(tiny_model_dir, torch.bfloat16, "eager", use_grad_checkpoint=True)
    assert {parameter.dtype for parameter in halved.parameters()} == {torch.bfloat16}
    assert halved.is_gradient_checkpointing
    assert halved.config._attn_implementation == "eager"


def lose_a_weight(weights: Weights) -> None:
    del weights["model.layers.1.mlp.up_proj.weight"]


def misshape_a_weight(weights: Weights) -> None:
    weights["lm_head.weight"] = weights["lm_head.weight"][:100].clone()


@pytest.mark.parametrize(
    ("damage", "name"),
    [(lose_a_weight, "model.layers.1.mlp.up_proj.weight"), (misshape_a_weight, "lm_head.weight")],
)
def test_model_with_wrong_weights_is_refused(
    damage: Callable[[Weights], None], name: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(tiny_model_dir, copy)
    for path in copy.glob("*.safetensors"):
        weights = load_file(path)
        if name in weights:
            damage(weights)
            save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        load_model(copy, "auto", "sdpa", use_grad_checkpoint=False)
    assert str(copy) in str(caught.value)
    assert name in str(caught.value)


def test_pickled_weights_are_not_read(tiny_model_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(tiny_model_dir, copy)
    weights = weights_of(copy)
    for path in [*copy.glob("*.safetensors"), *copy.glob("*.index.json")]:
        path.unlink()
    torch.save(weights, copy / "pytorch_model.bin")
    with pytest.raises(UserError, match="not a readable model"):
        load_model(copy, "auto", "sdpa", use_grad_checkpoint=False)


def test_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no-such-thing"}))
    with pytest.raises(UserError, match="not a readable model"):
        load_model(tmp_path, "auto", "sdpa", use_grad_checkpoint=False)


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_embeddings_train_when_the_rest_is_frozen(tied: bool) -> None:
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=tied,
    )
    model = LlamaForCausalLM(config)
    layer = 4 * 16 * 16 + 3 * 16 * 24 + 2 * 16
    embeddings = 32 * 16 if tied else 2 * 32 * 16
    assert num_parameters(model) == embeddings + 2 * layer + 16
    freeze_non_embeddings(model)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == embeddings
    assert [parameter.shape for parameter in embedding_parameters(model)] == [(32, 16), (32, 16)]


def test_a_saved_model_may_use_the_cache_that_training_does_without(zero2_run: Path) -> None:
    assert AutoConfig.from_pretrained(zero2_run / "modeling").use_cache
