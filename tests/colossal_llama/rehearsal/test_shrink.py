"""A shrunken model is the same model with small numbers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from colossal_llama.model import load_model
from colossal_llama.rehearsal.shrink import shrunken, write_shrunken
from colossal_llama.row_health import num_old_rows
from tokenizer_tools.command import UserError
from tokenizer_tools.lineage import refuse_swapped

REAL: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-2-7b": ("llama", {"vocab_size": 6910}),
    "llama-2-70b": ("llama", {"hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8}),
    "llama-3": (
        "llama",
        {
            "num_key_value_heads": 8,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        },
    ),
    "tied": ("llama", {"tie_word_embeddings": True, "attention_bias": True}),
    "mistral": ("mistral", {}),
    "wide heads": ("mistral", {"hidden_size": 5120, "head_dim": 128}),
    "qwen2": ("qwen2", {"vocab_size": 999, "num_key_value_heads": 4, "num_attention_heads": 28, "hidden_size": 3584}),
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {"hidden_size": 2048, "num_attention_heads": 16}),
    "gemma": ("gemma", {"vocab_size": 999}),
    "phi3, long": (
        "phi3",
        {
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
        },
    ),
}


def named_shapes(config: Any) -> dict[str, int]:
    """{name with its layer left out: number of dimensions}"""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return {re.sub(r"\.\d+\.", ".N.", name): one.dim() for name, one in model.named_parameters()}


@pytest.mark.parametrize(("kind", "sizes"), REAL.values(), ids=REAL)
@pytest.mark.parametrize("divisor", [1, 4])
def test_it_has_the_same_tensors_and_computes(kind: str, sizes: dict[str, Any], divisor: int) -> None:
    real = AutoConfig.for_model(kind, **sizes)
    small = shrunken(real, divisor, num_layers=3)
    assert type(small) is type(real)
    assert named_shapes(small) == named_shapes(real)
    assert small.num_hidden_layers == 3
    for name in ("vocab_size", "tie_word_embeddings", "max_position_embeddings", "sliding_window", "attention_bias"):
        assert getattr(small, name, None) == getattr(real, name, None)
    assert small.num_attention_heads % divisor == 0
    assert small.hidden_size <= 256
    model = AutoModelForCausalLM.from_config(small)
    assert model(input_ids=torch.arange(40).unsqueeze(0)).logits.shape == (1, 40, real.vocab_size)


@given(st.integers(0, 6), st.integers(0, 3), st.sampled_from([1, 2, 3, 4, 8]), st.sampled_from([64, 128]))
def test_heads_keep_their_ratio_and_widths_can_be_divided(
    doublings: int, groups: int, divisor: int, head_dim: int
) -> None:
    key_value_heads = 2**doublings
    heads = key_value_heads * 2**groups
    real = LlamaConfig(hidden_size=heads * head_dim, num_attention_heads=heads, num_key_value_heads=key_value_heads)
    small = shrunken(real, divisor, num_layers=2)
    assert small.num_attention_heads == small.num_key_value_heads * 2**groups
    assert small.num_key_value_heads % divisor == 0
    assert small.intermediate_size % divisor == 0
    assert small.hidden_size == small.num_attention_heads * small.head_dim
    assert small.head_dim % 2 == 0
    assert small.hidden_size <= 128


def test_it_is_written_as_init_model_writes_a_grown_model(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    small = shrunken(LlamaConfig(vocab_size=512, torch_dtype="bfloat16"), 1, 1)
    num_parameters = write_shrunken(small, tiny_tokenizer_dir, 300, tmp_path / "model")
    assert num_old_rows(tmp_path / "model") == 300
    refuse_swapped(tmp_path / "model", "model")
    model = load_model(tmp_path / "model", "auto", "sdpa", use_grad_checkpoint=False)
    assert model.dtype == torch.bfloat16
    assert model.num_parameters() == num_parameters
    assert (tmp_path / "model" / "tokenizer.model").read_bytes() == (
        tiny_tokenizer_dir / "tokenizer.model"
    ).read_bytes()
    assert model.config.num_hidden_layers == 2


def test_without_new_rows_it_has_none(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    write_shrunken(shrunken(LlamaConfig(vocab_size=512), 1, 1), tiny_tokenizer_dir, None, tmp_path / "model")
    assert num_old_rows(tmp_path / "model") is None


def test_a_model_that_cannot_be_shrunken_says_so() -> None:
    neo = AutoConfig.for_model("gpt_neo", attention_types=[[["global", "local"], 12]])
    with pytest.raises(UserError, match="a gpt_neo model: cannot be shrunken for a rehearsal"):
        shrunken(neo, 1, 2)
