"""Tensors by formula against transformers' own models on the meta device, which hold no memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from colossal_llama.planning.holdings import held_by, layers_per_stage
from colossal_llama.planning.model_shape import ModelShape, read_model_shape, shape_of
from tokenizer_tools.command import UserError

LLAMA2_7B = {"model_type": "llama", "vocab_size": 32000, "rms_norm_eps": 1e-05}


@st.composite
def configs(draw: st.DrawFn) -> Any:
    """A small transformers config of any of the three kinds."""
    kind = draw(st.sampled_from(["llama", "mistral", "qwen2"]))
    heads_a_group, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    sizes: dict[str, Any] = {
        "vocab_size": draw(st.integers(1, 300)),
        "num_attention_heads": heads_a_group * groups,
        "num_key_value_heads": groups,
        "hidden_size": heads_a_group * groups * 2 * draw(st.integers(1, 8)),
        "intermediate_size": draw(st.integers(1, 60)),
        "num_hidden_layers": draw(st.integers(1, 4)),
        "tie_word_embeddings": draw(st.booleans()),
    }
    if kind != "qwen2" and draw(st.booleans()):
        sizes["head_dim"] = 2 * draw(st.integers(1, 16))
    if kind == "llama":
        sizes |= {"attention_bias": draw(st.booleans()), "mlp_bias": draw(st.booleans())}
        if heads_a_group == 1 and draw(st.booleans()):
            del sizes["num_key_value_heads"]
    return AutoConfig.for_model(kind, **sizes)


def meta_model(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


@settings(max_examples=60)
@given(configs(), st.booleans())
def test_tensors_are_those_of_the_model(config: Any, is_brief: bool) -> None:
    model = meta_model(config)
    saved = config.to_diff_dict() if is_brief else config.to_dict()  # brief: without what is the class's default
    shape = shape_of(json.loads(json.dumps(saved)), "here")
    real = [(name, tuple(parameter.shape)) for name, parameter in model.named_parameters()]
    assert [(tensor.name, tensor.shape) for tensor in shape.tensors()] == real
    assert shape.num_parameters == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_what_a_config_does_not_say_is_the_default_of_its_class(kind: str) -> None:
    model = meta_model(AutoConfig.for_model(kind))
    assert shape_of({"model_type": kind}, "here").num_parameters == model.num_parameters()


@pytest.mark.parametrize(("vocab_size", "num_parameters"), [(32_000, 6_738_415_616), (69_104, 7_042_371_584)])
def test_llama_2_7b_before_and_after(vocab_size: int, num_parameters: int) -> None:
    """6,738,415,616 is Meta's own count; 37,104 rows more in two matrices of 4,096 columns."""
    assert num_parameters == 6_738_415_616 + (vocab_size - 32_000) * 4096 * 2
    shape = shape_of({**LLAMA2_7B, "vocab_size": vocab_size}, "here")
    model = meta_model(AutoConfig.for_model("llama", vocab_size=vocab_size))
    assert shape.num_parameters == num_parameters == model.num_parameters()


@given(configs(), st.sampled_from([1, 2, 3, 4]), st.integers(1, 4))
def test_ranks_hold_the_model_together(config: Any, tp: int, pp: int) -> None:
    shape = shape_of(config.to_dict(), "here")
    pp = min(pp, shape.num_hidden_layers)
    stages = [held_by(shape, 1, pp, stage) for stage in range(pp)]
    names = [one.tensor.name for held in stages for one in held]
    twice = ["model.embed_tokens.weight"] if pp > 1 and shape.tie_word_embeddings else []
    assert sorted(names) == sorted([*(tensor.name for tensor in shape.tensors()), *twice])
    whole = {one.tensor.name: one.numel for one in held_by(shape)}
    for one in held_by(shape, tp):
        is_shared = one.tensor.name.endswith(("norm.weight", "o_proj.bias", "down_proj.bias"))
        assert one.numel == (whole[one.tensor.name] if is_shared else whole[one.tensor.name] // tp)
    assert [len({one.tensor.layer for one in held} - {None}) for held in stages] == layers_per_stage(
        shape.num_hidden_layers, pp
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "gemma2"}', "a model of type gemma2; a plan is made for llama, mistral, qwen2 alone"),
        ('{"model_type": "llama", "hidden_size": "x"}', "hidden_size x: must be a positive whole number"),
        ("{", "not readable as JSON"),
        ("[]", "holds list"),
    ],
)
def test_no_config_of_a_model_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_model_shape(tmp_path)
    with pytest.raises(UserError, match="No such file"):
        read_model_shape(tmp_path / "nowhere.json")


def test_a_directory_and_its_config_are_the_same(tiny_model_dir: Path) -> None:
    shape = read_model_shape(tiny_model_dir)
    assert isinstance(shape, ModelShape) and shape == read_model_shape(tiny_model_dir / "config.json")
