"""Operations of a step against torch's own counter, and MFU against arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from colossal_llama.flops import Peak, StepCost, flops_per_position, head_width, matrix_parameters, trained_and_added
from colossal_llama.model import freeze_non_embeddings

ROWS, LENGTH = 3, 32
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
KINDS = [
    {"model_type": "llama"},
    {"model_type": "llama", "head_dim": 8, "num_key_value_heads": 4},
    {"model_type": "mistral", "tie_word_embeddings": True},
    {"model_type": "qwen2"},
]


def counted(model: Any) -> int:
    """What torch counts in a forward and backward pass, but for the angles of the rotary embedding.

    Those are a product of [head / 2, 1] by [1, length], once for all rows and forward only.
    """
    ids = torch.randint(0, SIZES["vocab_size"], (ROWS, LENGTH))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    return counter.get_total_flops() - LENGTH * head_width(model.config)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(map(str, kind.values())))
def test_agrees_with_the_counter_of_torch(kind: dict[str, Any]) -> None:
    config = AutoConfig.for_model(**{**SIZES, **kind})
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    assert counted(model) == ROWS * LENGTH * flops_per_position(config, LENGTH)
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    assert sum(matrix_parameters(config)) == sum(module.weight.numel() for module in linear)


def test_a_frozen_body_passes_gradients_on_but_has_none() -> None:
    config = AutoConfig.for_model(model_type="llama", **SIZES)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    freeze_non_embeddings(model)
    trained, added = trained_and_added(model)
    assert (trained, added) == (SIZES["vocab_size"] * SIZES["hidden_size"], 0)
    assert counted(model) == ROWS * LENGTH * flops_per_position(config, LENGTH, trained, added)


def test_adapters_multiply_too() -> None:
    from peft import LoraConfig, get_peft_model

    config = AutoConfig.for_model(model_type="llama", **SIZES)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    lora = LoraConfig(r=4, target_modules=["up_proj"], modules_to_save=["embed_tokens", "lm_head"])
    adapted = get_peft_model(model, lora)
    trained, added = trained_and_added(adapted)
    assert added == SIZES["num_hidden_layers"] * 4 * (SIZES["hidden_size"] + SIZES["intermediate_size"])
    assert trained == added + SIZES["vocab_size"] * SIZES["hidden_size"]
    assert counted(adapted) == ROWS * LENGTH * flops_per_position(config, LENGTH, trained, added)


def test_a_known_model_by_its_known_size() -> None:
    """LLaMA-2 7B has 6,738,415,616 parameters, 32000 x 4096 of them a lookup and 65 x 4096 of them norms."""
    config = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32)
    multiplied = 6_738_415_616 - 32_000 * 4096 - 65 * 4096
    assert flops_per_position(config, 4096) == 6 * multiplied + 12 * 32 * 4096 * 4096


def test_mfu_is_a_share_of_the_peak() -> None:
    cost = StepCost(positions=10, flops=6e12, peak=Peak(3e12, "two of them"))
    assert cost.mfu(seconds=8.0) == pytest.approx(0.25)
    assert StepCost(10, 6e12).mfu(8.0) is None
