"""Weights, gradients, optimizer and checkpoint by formula against what boosted models really hold, byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.config import TrainConfig
from colossal_llama.planning.checkpoint_size import checkpoint_bytes
from colossal_llama.planning.holdings import held_by, layers_per_stage
from colossal_llama.planning.memory import Memory, ModelData, largest_micro_batch, model_data, rank_memory
from colossal_llama.planning.model_shape import ModelShape, read_model_shape, shape_of
from colossal_llama.planning.trained import trained_set

Ranks = Callable[..., list[Any]]
Case = tuple[str, dict[str, Any]]

CASTS = 2 * 4 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)  # 16-bit copies of the matrices of 4 layers
LORA = {"lora_rank": 4, "lora_targets": ["q_proj", "down_proj"]}
THREE_RANKS: list[Case] = [  # three, so that ZeRO has to fill up what they do not divide
    ("embeds", {"plugin": "zero2", "accumulation_steps": 2}),
    ("lora", {"plugin": "zero2", "mixed_precision": "fp32", **LORA}),
    ("all", {"plugin": "zero2_cpu"}),
    ("embeds", {"plugin": "ddp"}),
    ("embeds", {"plugin": "gemini"}),
]
TWO_RANKS: list[Case] = [
    ("all", {"plugin": "3d", "tp": 2, "zero": 0}),
    ("all", {"plugin": "3d", "zero": 1}),
    ("all", {"plugin": "3d", "pp": 2, "zero": 0, "mixed_precision": "fp32", "accumulation_steps": 2}),
]


def boosted(config: TrainConfig, trains: str) -> tuple[Any, Any, Any, int]:
    """(booster, model, optimizer, bytes of a checkpoint) as engine.py makes them."""
    from colossal_llama import lora, mends, optim, plugins
    from colossal_llama.checkpoint_writer import CheckpointWriter
    from colossal_llama.model import freeze_non_embeddings, load_model, num_parameters
    from colossal_llama.weights import adapter_files, model_files

    base: Any = load_model(config.pretrained, plugins.model_dtype(config), "sdpa", use_grad_checkpoint=False)
    if trains == "embeds":
        freeze_non_embeddings(base)
    if trains == "lora":
        whole = tuple(config.lora_modules_to_save)
        base = lora.wrap(base, lora.LoraSettings(config.lora_rank, 8.0, tuple(config.lora_targets), 0.0, whole, 0))
    plugin = plugins.make_plugin(config, num_parameters(base), base.config.hidden_size)
    optimizer: Any = optim.make_optimizer(base, 1e-3, 0.1, config.plugin == "gemini")
    trained = optim.trained_shapes(base, optimizer)
    booster, model, optimizer = plugins.boost(plugin, base, optimizer)
    if config.accumulation_steps > 1:
        mends.add_gradients_in_fp32(optimizer)
    files = adapter_files(model) if trains == "lora" else model_files(booster, model)
    writer = CheckpointWriter(booster, model, optimizer, trained, files, {}, Path(), 0)
    return booster, model, optimizer, writer.num_bytes


def bytes_of(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def holdings(config: TrainConfig, trains: str, place: list[Any]) -> dict[str, int]:
    """What this rank really holds after a step, in bytes; before it under a pipeline, which needs a schedule."""
    from colossal_llama.optimizer_state import master_weights, trained_tensors

    booster, model, optimizer, checkpoint = boosted(config, trains)
    place += [booster, model, optimizer]
    found = {"checkpoint": checkpoint, "weights": bytes_of(p for p in model.parameters() if p.device.type != "meta")}
    if config.pp == 1:
        loss = model(input_ids=torch.arange(8).unsqueeze(0)).logits.float().sum()
        booster.backward(loss, optimizer)
        stores = getattr(optimizer, "pg_to_grad_store", {}).values()
        found["gradients"] = bytes_of(
            grad
            for store in stores
            for of_group in store._grads_of_params.values()
            for grads in of_group.values()
            for grad in grads
        )
        optimizer.step()
        states = (optimizer.optim.state[tensor] for tensor in trained_tensors(optimizer).values())
        found["moments"] = bytes_of(state[kind] for state in states for kind in ("exp_avg", "exp_avg_sq") if state)
    found["masters"] = bytes_of(master_weights(model, optimizer).values())
    return found


def holdings_of_all(model_dir: Path, cases: list[Case]) -> list[dict[str, int]]:
    """One case after another in the same processes."""
    from colossal_llama.cluster import launch, release

    found = []
    with launch(0):
        for trains, flags in cases:
            place: list[Any] = []
            found.append(holdings(TrainConfig(model_dir, [], **flags), trains, place))
            release(place)
    return found


@pytest.mark.parametrize(("num_ranks", "cases"), [(3, THREE_RANKS), (2, TWO_RANKS)])
def test_bytes_are_those_of_boosted_models(
    num_ranks: int, cases: list[Case], ranks: Ranks, tiny_model_dir: Path
) -> None:
    shape = read_model_shape(tiny_model_dir)
    every_rank = ranks(holdings_of_all, num_ranks, tiny_model_dir, cases)
    for number, (trains, flags) in enumerate(cases):
        found = [one[number] for one in every_rank]
        config = TrainConfig(tiny_model_dir, [], **flags)
        trained = trained_set(shape, trains, config)  # type: ignore[arg-type]
        assert {one["checkpoint"] for one in found} == {checkpoint_bytes(shape, trained, config)}, (trains, flags)
        shards = num_ranks // (config.tp * config.pp)
        stages = [rank if config.pp > 1 else 0 for rank in range(num_ranks)]
        planned = [model_data(held_by(shape, config.tp, config.pp, stage), trained, config, shards) for stage in stages]
        for rank in range(num_ranks):
            if config.plugin != "gemini":
                check_rank(found[rank], planned[rank], config, f"{trains} {flags} rank {rank}")
        if config.plugin == "gemini":  # its chunks cut parameters where they like: only all ranks together are even
            frozen = sum(tensor.numel for tensor in shape.tensors() if not trained.trains(tensor))
            states = sum(one["moments"] + one["masters"] for one in found)
            assert states == 12 * (shape.num_parameters - frozen)
            assert 0 <= sum(one.optimizer for one in planned) - states <= 12 * num_ranks * len(trained.names)


def check_rank(found: dict[str, int], planned: ModelData, config: TrainConfig, where: str) -> None:
    """All that one rank holds."""
    has_casts = config.plugin == "ddp" and config.mixed_precision == "bf16"  # of autocast, gone between two passes
    assert found["weights"] == planned.weights - has_casts * CASTS, where
    if "moments" in found:
        optimizer = planned.optimizer + planned.host_optimizer
        masters = found["masters"] if config.plugin != "ddp" else 0
        assert found["moments"] + masters == optimizer, where
    if found.get("gradients"):
        assert found["gradients"] == planned.gradients, where


# --- arithmetic -------------------------------------------------------------------------------------------------------

SEVEN_B = shape_of({"model_type": "llama", "vocab_size": 69_104}, "here")
FLAGS = {"micro_batch_size": 1, "max_length": 4096}


def planned(trains: str = "all", num_gpus: int = 64, shape: ModelShape = SEVEN_B, **flags: Any) -> Memory:
    config = TrainConfig(Path(), [], **{**FLAGS, **flags})
    return rank_memory(shape, trained_set(shape, trains, config), config, num_gpus, 4096)  # type: ignore[arg-type]


def test_what_is_shared_out_and_what_is_not() -> None:
    size = SEVEN_B.num_parameters
    zero2, offloaded, gemini = (planned(plugin=plugin) for plugin in ("zero2", "zero2_cpu", "gemini"))
    assert (zero2.weights, zero2.optimizer) == (2 * size, 12 * size // 64)
    assert (offloaded.optimizer, offloaded.host_optimizer) == (0, zero2.optimizer + zero2.update)
    assert (gemini.weights, gemini.gradients, gemini.optimizer) == (2 * size // 64, 0, 12 * size // 64)
    assert planned(plugin="gemini", accumulation_steps=2).gradients == 2 * size // 64
    ddp = planned(plugin="ddp", mixed_precision="fp32")
    assert (ddp.weights, ddp.gradients, ddp.optimizer, ddp.buffers) == (4 * size, 4 * size, 8 * size, 4 * size)


def test_fp32_weights_are_their_own_masters_under_3d_without_zero() -> None:
    size = SEVEN_B.num_parameters
    whole, half = (planned(plugin="3d", zero=0, mixed_precision=precision) for precision in ("fp32", "bf16"))
    assert (whole.weights, whole.gradients, whole.optimizer, whole.update) == (4 * size, 4 * size, 8 * size, 0)
    assert (half.weights, half.gradients, half.optimizer, half.update) == (2 * size, 2 * size, 12 * size, 4 * size)
    assert half.total == 16 * size + max(half.activations + half.logits + half.buffers, half.update)


def test_what_is_frozen_has_no_gradients_and_no_optimizer_but_gemini_leaves_it_whole() -> None:
    ends = 2 * 69_104 * 4096
    for plugin in ("zero2", "gemini"):
        embeds = planned("embeds", plugin=plugin)
        assert embeds.optimizer == 12 * ends // 64
        assert embeds.activations < planned(plugin=plugin).activations
    assert planned("embeds", plugin="gemini").weights == 2 * (SEVEN_B.num_parameters - ends) + 2 * ends // 64


def test_the_head_of_new_rows_alone_needs_less() -> None:
    config = TrainConfig(Path(), [], plugin="zero2", train="new_rows")
    trained = trained_set(SEVEN_B, "new_rows", config)
    every, new = (rank_memory(SEVEN_B, trained, config, 8, 4096, first).logits for first in (0, 32_000))
    assert every - new == 4 * 32_000 * 4096


def test_a_pipeline_s_first_stage_has_most_micro_batches_in_flight() -> None:
    one = planned(plugin="3d", pp=4, accumulation_steps=8)
    assert one.pipeline_stage == 0
    assert one.activations > 4 * 8 * planned(plugin="3d", use_grad_checkpoint=True).activations / 32
    assert planned(plugin="3d", pp=2, accumulation_steps=2).weights < planned(plugin="3d").weights


def dealt_out() -> dict[tuple[int, int], list[int]]:
    """What colossalai says of any number of layers and stages."""
    from colossalai.pipeline.stage_manager import PipelineStageManager

    one_chunk = SimpleNamespace(num_layers_per_stage=None, num_model_chunks=1)
    deal: Any = PipelineStageManager.distribute_layers
    return {(layers, stages): deal(one_chunk, layers, stages) for layers in range(1, 50) for stages in range(1, 17)}


def test_layers_are_dealt_out_as_colossalai_does(ranks: Ranks) -> None:
    (counts,) = ranks(dealt_out, 1)
    assert {key: layers_per_stage(*key) for key in counts} == counts


@given(st.integers(0, 5000), st.integers(1, 50), st.integers(0, 10_000))
def test_the_largest_micro_batch_is_the_last_that_fits(fixed: int, per_row: int, usable: int) -> None:
    rows = largest_micro_batch(lambda number: fixed + number * per_row, usable, most=200)
    assert rows == max([0, *(n for n in range(1, 201) if fixed + n * per_row <= usable)])
