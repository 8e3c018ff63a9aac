"""Operations and hours against published runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from colossal_llama.config import TrainConfig
from colossal_llama.flops import flops_per_position, trained_and_added
from colossal_llama.lora import LoraSettings, wrap
from colossal_llama.model import freeze_non_embeddings
from colossal_llama.planning.cluster import PlannedCluster
from colossal_llama.planning.model_shape import shape_of
from colossal_llama.planning.speed import (
    DEFAULT_MFU,
    Amount,
    efficiency,
    implied_mfu,
    num_steps,
    position_flops,
    seconds_per_step,
)
from colossal_llama.planning.trained import trained_set

# llm-foundry, scripts/train/benchmarking/README.md at commit c90b9b31, first table of H100 in BF16: 128 GPUs, rows of
# 2,048. Theirs are MPT models: two matrices of 4 x width in the feed-forward layer, tied embeddings of 50,432 pieces.
MPT_ROWS, MPT_PIECES, H100_TFLOPS = 2048, 50_432, 989.5
MPT = [  # width, layers, parameters, tokens/s/GPU, MFU in %
    (4096, 32, 6_658_859_008, 10_475, 45.71),
    (5120, 40, 12_853_954_560, 5_080, 42.18),
    (7168, 48, 29_975_214_080, 2_199, 41.85),
    (8192, 80, 64_862_437_376, 1_058, 43.36),
]
STORY = {"model_type": "llama", "vocab_size": 69_104}  # LLaMA-2 7B with 37,104 new rows
STORY_TOKENS, STORY_GPUS, STORY_SECONDS, A800_TFLOPS = 8.5e9, 64, 15 * 3600, 312


@pytest.mark.parametrize(("width", "layers", "num_parameters", "tokens_per_second", "mfu"), MPT)
def test_mfu_of_llm_foundry(width: int, layers: int, num_parameters: int, tokens_per_second: int, mfu: float) -> None:
    """To 0.1 %: they count every parameter, norms and learned positions too; here only what multiplies."""
    theirs = 6 * num_parameters + 12 * layers * width * MPT_ROWS
    # their tokens/s are rounded down to whole ones
    assert 100 * implied_mfu(theirs, tokens_per_second, 1, H100_TFLOPS) == pytest.approx(mfu, abs=0.045)
    # three matrices of 8/3 x width are as much as their two of 4 x width
    sizes = {"hidden_size": width, "intermediate_size": round(width * 8 / 3), "num_hidden_layers": layers}
    heads = {"num_attention_heads": width // 128, "vocab_size": MPT_PIECES, "tie_word_embeddings": True}
    ours = flops_per_position(shape_of({"model_type": "llama", **sizes, **heads}, "here"), MPT_ROWS)
    assert ours == pytest.approx(theirs, rel=2e-3) and ours < theirs
    assert 100 * implied_mfu(ours, tokens_per_second, 1, H100_TFLOPS) == pytest.approx(mfu, abs=0.1)


def test_what_the_story_of_64_a800_implies() -> None:
    """8.5 B tokens in 15 hours, as loosely as it was told, are 37 % of the peak; so the default plans 15 hours."""
    flops = flops_per_position(shape_of(STORY, "here"), 4096)
    mfu = implied_mfu(flops, STORY_TOKENS / STORY_SECONDS, STORY_GPUS, A800_TFLOPS)
    assert mfu == pytest.approx(0.3704, abs=5e-4)
    assert pytest.approx(mfu, abs=5e-3) == DEFAULT_MFU
    cluster = PlannedCluster(STORY_GPUS, 8, "A800-80G", 0, 0, A800_TFLOPS, "")
    seconds = seconds_per_step(flops, 64 * 4096, cluster, mfu) * STORY_TOKENS / (64 * 4096)
    assert seconds == pytest.approx(STORY_SECONDS)


@pytest.mark.parametrize("tied", [True, False])
def test_a_stage_counts_what_train_py_counts(tied: bool) -> None:
    sizes: dict[str, Any] = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 80, "num_hidden_layers": 2}
    sizes |= {"model_type": "llama", "num_attention_heads": 4, "tie_word_embeddings": tied}
    shape = shape_of(sizes, "here")
    config = TrainConfig(Path(), [], lora_rank=4, lora_targets=["q_proj", "up_proj"])
    for kind in ("all", "embeds", "lora"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**sizes))
        if kind == "embeds":
            freeze_non_embeddings(model)
        if kind == "lora":
            whole = ("embed_tokens", "lm_head")
            model = wrap(model, LoraSettings(4, 8.0, ("q_proj", "up_proj"), 0.0, whole, 0))
        counted = flops_per_position(model.config, 32, *trained_and_added(model))
        assert position_flops(shape, trained_set(shape, kind, config), 32) == counted, kind  # type: ignore[arg-type]
    new_rows, embeds = (trained_set(shape, kind, config) for kind in ("new_rows", "embeds"))  # type: ignore[arg-type]
    assert position_flops(shape, embeds, 32) - position_flops(shape, new_rows, 32, 90) == 2 * 90 * 64


def test_the_default_pays_for_recomputation_and_for_a_pipeline_s_idle_time() -> None:
    flags = {"plugin": "3d", "pp": 4, "accumulation_steps": 12}
    plain, again, piped = (
        efficiency(TrainConfig(Path(), [], **more), None)  # type: ignore[arg-type]
        for more in ({}, {"use_grad_checkpoint": True}, flags)
    )
    assert plain.mfu == DEFAULT_MFU
    assert again.mfu == pytest.approx(DEFAULT_MFU * 3 / 4)
    assert piped.mfu == pytest.approx(DEFAULT_MFU * 12 / 15)
    assert efficiency(TrainConfig(Path(), [], **flags), 0.5).mfu == 0.5  # type: ignore[arg-type]


def test_steps_are_those_of_all_rows() -> None:
    amount = Amount(num_rows=100, num_tokens=1, row_length=8, source="")
    assert [num_steps(amount, 32, epochs, most) for epochs, most in ((1, None), (2, None), (2, 5))] == [4, 7, 5]
