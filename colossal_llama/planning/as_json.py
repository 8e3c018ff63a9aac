"""A plan for programs: everything in it under names that carry their units."""

from __future__ import annotations

import dataclasses
from typing import Any

from colossal_llama.planning.break_even import BreakEven
from colossal_llama.planning.report import COSTS, disk_bytes, write_seconds
from colossal_llama.planning.run_needs import PluginNeeds, RunNeeds, StageNeeds


def as_json(needs: RunNeeds) -> dict[str, Any]:
    """Plain JSON values. `fits` and `plugin` are of the run as its flags say it."""
    price = needs.config.price_per_gpu_hour
    return {
        "fits": needs.fits,
        "plugin": needs.config.plugin,
        "num_parameters": needs.shape.num_parameters,
        "cluster": dataclasses.asdict(needs.cluster),
        "data": dataclasses.asdict(needs.amount),
        "rows_per_step": needs.rows_per_step,
        "positions_per_step": needs.room_per_step * needs.amount.row_length,
        "num_steps": needs.stages[-1].stage.end_step,
        "mfu": needs.efficiency.mfu,
        "mfu_source": needs.efficiency.source,
        "hours": needs.seconds / 3600,
        "gpu_hours": needs.gpu_hours,
        "price": None if price is None else needs.gpu_hours * price,
        "disk_bytes": disk_bytes(needs),
        "host_memory_bytes": dataclasses.asdict(needs.host),
        "memory": [_plugin(one) for one in needs.plugins],
        "stages": [_stage(needs, one) for one in needs.stages],
        "vocabulary": None if needs.break_even is None else _vocabulary(needs.break_even),
    }


def _plugin(one: PluginNeeds) -> dict[str, Any]:
    memory = one.memory
    found: dict[str, Any] = {"plugin": one.plugin, "trains": one.kind, "fits": one.fits, "refused": one.refused}
    if memory is not None:
        found["bytes"] = {**memory.parts, "total": memory.total, "usable": one.usable_bytes, "update": memory.update}
        found["host_optimizer_bytes"] = memory.host_optimizer
        found["pipeline_stage"] = memory.pipeline_stage
        found["largest_micro_batch_size"] = one.largest_micro_batch
    return found


def _stage(needs: RunNeeds, one: StageNeeds) -> dict[str, Any]:
    return {
        "trains": one.stage.train,
        "num_trained": one.num_trained,
        "num_steps": one.stage.num_steps,
        "flops_per_position": one.flops_per_position,
        "step_seconds": one.step_seconds,
        "hours": one.seconds / 3600,
        "checkpoint_bytes": one.checkpoint_bytes,
        "weights_bytes": one.weights_bytes,
        "optimizer_bytes": one.optimizer_bytes,
        "num_saves": one.num_saves,
        "write_seconds": write_seconds(needs, one),
    }


def _vocabulary(pays: BreakEven) -> dict[str, Any]:
    return {
        "before": dataclasses.asdict(pays.before),
        "after": dataclasses.asdict(pays.after),
        "tokens_per_character": pays.tokens_per_character,
        "saving": pays.saving,
        "needed_saving": {cost: pays.needed_saving(cost) for cost in COSTS},
        "per_character": {cost: pays.per_character(cost) for cost in COSTS},
    }
