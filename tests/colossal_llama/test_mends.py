"""Mended defects of colossalai, each against plain arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests.conftest import argv_of

Ranks = Callable[..., list[Any]]


def gathered_by_ring(gather_dim: int) -> list[np.ndarray]:
    """This rank's shards, the joined outputs and the joined inputs."""
    from colossal_llama.mends import ring_as_gather

    dist.init_process_group("gloo")
    generator = torch.Generator().manual_seed(dist.get_rank())
    shards = {name: torch.randn(2, 3, 4, generator=generator) for name in ("query", "key")}
    weight = torch.arange(4.0)

    def scaled_sum(query: torch.Tensor, key: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return (query + 2 * key) * weight

    joined, inputs = ring_as_gather(scaled_sum, shards, {"weight": weight}, dist.group.WORLD, gather_dim)
    return [tensor.numpy() for tensor in (*shards.values(), joined, inputs["query"], inputs["key"])]


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("gather_dim", [0, 1])
def test_ring_gives_what_plain_concatenation_gives(ranks: Ranks, world_size: int, gather_dim: int) -> None:
    results = ranks(gathered_by_ring, world_size, gather_dim)
    query = np.concatenate([result[0] for result in results], axis=gather_dim)
    key = np.concatenate([result[1] for result in results], axis=gather_dim)
    for _, _, joined, gathered_query, gathered_key in results:
        np.testing.assert_array_equal(gathered_query, query)
        np.testing.assert_array_equal(gathered_key, key)
        np.testing.assert_allclose(joined, (query + 2 * key) * np.arange(4.0), rtol=1e-6)


def hybrid_adam_with_bf16_gradients(mended: bool) -> tuple[np.ndarray, np.ndarray]:
    """Weights after two steps whose gradients are to be divided by 16: HybridAdam's and AdamW's."""
    from colossalai.nn.optimizer import HybridAdam

    from colossal_llama.mends import cast_gradients_to_fp32

    own = torch.nn.Parameter(torch.linspace(-1, 1, 20))
    theirs = torch.nn.Parameter(own.detach().clone())
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-1, "weight_decay": 0.1}  # eps: the scale must show
    optimizer, reference = HybridAdam([own], **settings), torch.optim.AdamW([theirs], **settings)
    if mended:
        cast_gradients_to_fp32(optimizer)
    for step in range(2):
        gradient = torch.linspace(2, -1 - step, 20).bfloat16()
        theirs.grad = gradient.float() / 16
        reference.step()
        own.grad = None
        # gemini's way: a gradient of another dtype than its fp32 weight, through `.data`
        own.grad = torch.zeros(20)
        own.grad.data = gradient
        optimizer.step(div_scale=16.0)
    return own.detach().numpy(), theirs.detach().numpy()


def test_bf16_gradients_are_divided_by_the_clip(ranks: Ranks) -> None:
    ((own, theirs),) = ranks(hybrid_adam_with_bf16_gradients, 1, True)
    np.testing.assert_allclose(own, theirs, rtol=1e-5, atol=1e-6)
    ((unmended, theirs),) = ranks(hybrid_adam_with_bf16_gradients, 1, False)
    assert np.abs(unmended - theirs).max() > 1e-3, "colossalai is right by itself now: the mend can go"


def rotary_frequencies(argv: list[str]) -> tuple[str, str, np.ndarray]:
    """Dtypes of weights and frequencies, and the frequencies, of the model that a run would train."""
    from colossal_llama.build import build
    from colossal_llama.cluster import launch
    from colossal_llama.config import TrainConfig
    from colossal_llama.engine import board
    from tokenizer_tools.command import parse_config

    with launch(0) as cluster:
        model = board(*build(parse_config(TrainConfig, argv), cluster)).stepper.model
        (rotary,) = [module for module in model.modules() if hasattr(module, "inv_freq")]
        weight = next(parameter for parameter in model.parameters() if parameter.dim() == 2)
        return str(weight.dtype), str(rotary.inv_freq.dtype), rotary.inv_freq.float().numpy()


@pytest.mark.parametrize("plugin", ["zero2", "gemini", "3d"])
def test_rotary_frequencies_stay_fp32_under_bf16(
    plugin: str, ranks: Ranks, flags: dict[str, Any], tmp_path: Path
) -> None:
    argv = argv_of(**{**flags, "plugin": plugin, "save_dir": tmp_path / "run"})
    for weight_dtype, dtype, frequencies in ranks(rotary_frequencies, 1, argv):
        assert (weight_dtype, dtype) == ("torch.bfloat16", "torch.float32")
        head_size = 64 // 4
        expected = [math.pow(10_000.0, -2 * i / head_size) for i in range(head_size // 2)]
        np.testing.assert_allclose(frequencies, expected, rtol=1e-6)


def gradient_of_many_micro_batches(mended: bool) -> float:
    """What zero makes of a gradient of 1 and 64 of 2**-9, which are too small for bf16 to add to 1 one by one."""
    from colossalai.booster import Booster
    from colossalai.booster.plugin import LowLevelZeroPlugin

    from colossal_llama.cluster import launch
    from colossal_llama.mends import add_gradients_in_fp32

    with launch(seed=0):
        plugin = LowLevelZeroPlugin(stage=2, precision="bf16", max_norm=float("inf"), overlap_communication=False)
        layer = torch.nn.Linear(1, 1, bias=False, dtype=torch.bfloat16)
        optimizer = torch.optim.AdamW(layer.parameters(), betas=(0.5, 0.95))
        booster = Booster(plugin=plugin)
        model, optimizer, *_ = booster.boost(layer, optimizer)
        if mended:
            add_gradients_in_fp32(optimizer)
        for value in [1.0] + [2**-9] * 64:
            booster.backward(model(torch.full((1, 1), value, dtype=torch.bfloat16)).sum(), optimizer)
        optimizer.step()
        (state,) = optimizer.optim.state.values()
        return state["exp_avg"].flatten()[0].item() / 0.5


def test_gradients_of_micro_batches_are_added_in_fp32(ranks: Ranks) -> None:
    assert ranks(gradient_of_many_micro_batches, 2, True)[0] == 1.125
    assert ranks(gradient_of_many_micro_batches, 2, False)[0] == 1.0, "colossalai has mended it: drop our mend"
