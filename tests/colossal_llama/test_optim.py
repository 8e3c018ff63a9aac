"""The schedule against its formula, and which parameters decay."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from colossal_llama.model import freeze_non_embeddings
from colossal_llama.optim import default_warmup_steps, lr_at, parameter_groups

TOTAL, WARMUP, PEAK = 12, 3, 6e-4


def test_schedule_is_the_formula() -> None:
    expected = [2e-4, 4e-4, 6e-4]
    expected += [6e-5 + 5.4e-4 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(9)]
    assert [lr_at(step, TOTAL, WARMUP, PEAK) for step in range(TOTAL)] == pytest.approx(expected, rel=1e-12)


def test_endpoints_are_exact() -> None:
    assert lr_at(0, TOTAL, WARMUP, PEAK) == PEAK / 3
    assert lr_at(WARMUP - 1, TOTAL, WARMUP, PEAK) == PEAK
    assert lr_at(WARMUP, TOTAL, WARMUP, PEAK) == PEAK
    assert lr_at(TOTAL - 1, TOTAL, WARMUP, PEAK) == pytest.approx(0.1 * PEAK, rel=1e-15)
    assert lr_at(10**6, TOTAL, WARMUP, PEAK) == lr_at(TOTAL - 1, TOTAL, WARMUP, PEAK)
    assert lr_at(0, TOTAL, 0, PEAK) == PEAK


@given(total=st.integers(1, 300), warmup=st.integers(0, 300), peak=st.floats(1e-8, 1.0))
def test_schedule_rises_only_in_warm_up(total: int, warmup: int, peak: float) -> None:
    warmup = min(warmup, total)
    curve = [lr_at(step, total, warmup, peak) for step in range(total + 20)]
    assert all(0 < lr <= peak for lr in curve)
    assert all(before < after for before, after in zip(curve[:warmup], curve[1:warmup], strict=False))
    after_warmup = curve[max(0, warmup - 1) :]
    assert all(before >= after for before, after in zip(after_warmup, after_warmup[1:], strict=False))
    assert min(curve[warmup:]) >= 0.1 * peak * (1 - 1e-12)


@pytest.mark.parametrize(("total", "warmup"), [(0, 0), (39, 0), (40, 1), (1000, 25), (1039, 25)])
def test_default_warm_up_is_a_fortieth(total: int, warmup: int) -> None:
    assert default_warmup_steps(total) == warmup


@pytest.fixture
def model() -> LlamaForCausalLM:
    """Two layers whose attention has biases."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        attention_bias=True,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config)


def test_norms_and_biases_do_not_decay(model: LlamaForCausalLM) -> None:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decaying, other = parameter_groups(model, 0.3)
    assert (decaying["weight_decay"], other["weight_decay"]) == (0.3, 0.0)
    not_decaying = {names[id(parameter)] for parameter in other["params"]}
    assert not_decaying == {name for name in names.values() if "norm" in name or name.endswith("bias")}
    assert len(not_decaying) == 2 * (2 + 4) + 1
    assert {names[id(parameter)] for parameter in decaying["params"]} == set(names.values()) - not_decaying


def test_frozen_parameters_are_left_out_and_no_group_is_empty(model: LlamaForCausalLM) -> None:
    freeze_non_embeddings(model)
    (group,) = parameter_groups(model, 0.3)
    expected = [model.model.embed_tokens.weight, model.lm_head.weight]
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in expected]
    for parameter in expected:
        parameter.requires_grad_(False)
    assert parameter_groups(model, 0.3) == []
