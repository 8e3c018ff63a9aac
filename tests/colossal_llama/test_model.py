"""A model directory in, a model ready to train out; a broken one is refused with its name."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from colossal_llama.model import embedding_parameters, freeze_non_embeddings, load_model, num_parameters
from tests.colossal_llama.runs import weights_of
from tests.conftest import argv_of
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


def calls_of_a_step(argv: list[str]) -> tuple[int, int, int]:
    """(layers computed again, attentions in all, attentions by colossalai's own) of one forward and backward pass."""
    import torch.nn.functional as functional
    from colossalai.shardformer.layer import ColoAttention

    from colossal_llama import plugins
    from colossal_llama.cluster import launch
    from colossal_llama.config import TrainConfig
    from tokenizer_tools.command import parse_config

    config, calls = parse_config(TrainConfig, argv), Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **keywords: Any) -> Any:
            calls[name] += 1
            return function(*args, **keywords)

        return call

    with launch(0):
        attention = plugins.attention_implementation(config)
        model: Any = load_model(config.pretrained, torch.float32, attention, config.use_grad_checkpoint)
        optimizer: Any = torch.optim.AdamW(model.parameters())
        booster, model, optimizer = plugins.boost(
            plugins.make_plugin(config, num_parameters(model), 64), model, optimizer
        )
        for module in model.modules():
            if "_gradient_checkpointing_func" in vars(module):
                module._gradient_checkpointing_func = counted("again", module._gradient_checkpointing_func)
        functional.scaled_dot_product_attention = counted("attention", functional.scaled_dot_product_attention)
        ColoAttention.attention = staticmethod(counted("own", ColoAttention.attention))
        ids = torch.arange(3, 67).repeat(2, 1)
        if config.pp == 1:
            booster.backward(model(input_ids=ids).logits.mean(), optimizer)
        else:
            rows = iter([{"input_ids": ids}])
            booster.execute_pipeline(rows, model, lambda outputs, _: outputs.logits.mean(), optimizer)
        return calls["again"], calls["attention"], calls["own"]


@pytest.mark.parametrize(
    ("world_size", "flags"),
    [(1, {"plugin": "zero2"}), (1, {"plugin": "3d", "zero": 0}), (2, {"plugin": "3d", "zero": 0, "pp": 2})],
    ids=["zero2", "3d", "pp2"],
)
def test_switches_do_what_they_say(
    world_size: int, flags: dict[str, Any], ranks: Callable[..., list[Any]], tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Each rank computes four layers, with --pp 2 it is two of them for two micro-batches; twice with checkpointing."""
    flags = {**flags, "pretrained": tiny_model_dir, "dataset": tmp_path, "mixed_precision": "fp32"}
    if world_size == 2:
        flags |= {"micro_batch_size": 1, "accumulation_steps": 2}
    plain = ranks(calls_of_a_step, world_size, argv_of(**flags))
    assert plain == [(0, 4, 0)] * world_size
    both = ranks(calls_of_a_step, world_size, argv_of(**flags, use_grad_checkpoint=True, use_flash_attn=True))
    assert both == [(4, 8, 8 if flags["plugin"] == "3d" else 0)] * world_size
