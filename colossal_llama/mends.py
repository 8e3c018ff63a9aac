"""Defects of colossalai 0.5.0 that train without an error and give wrong numbers, mended on every device.

Each mend names the line, looks for it and stops with a RuntimeError when it has changed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from colossal_llama.upstream import require_line

Shards = dict[str, torch.Tensor]


def mend_ring_gather() -> None:
    """--sp_mode ring: the gathered input is kept for the weight gradients, but with a rank's own shard in place of its
    neighbour's (shardformer/layer/_operation.py:470 appends `send_tensors` where it computes with `recv_tensors`)."""
    from colossalai.shardformer.layer import _operation

    if _operation._ring_as_gather is not ring_as_gather:
        require_line(
            _operation._ring_as_gather, "input_tensors.append(send_tensors)\n    output_tensors.append(func(**recv_"
        )
        _operation._ring_as_gather = ring_as_gather


def ring_as_gather(
    func: Callable[..., torch.Tensor],
    input_to_gather: Shards,
    input_local: Shards,
    process_group: dist.ProcessGroup,
    gather_dim: int = 1,
    keep_item: bool = False,
) -> tuple[torch.Tensor, Shards]:
    """func of every rank's shard, joined along `gather_dim`, and the joined shards; each hop overlaps one func call."""
    ranks = dist.get_process_group_ranks(process_group)
    size, own = len(ranks), dist.get_rank(process_group)
    shards, outputs = [input_to_gather], []
    for hop in range(size):
        arriving: Shards = {}
        requests = []
        if hop < size - 1:
            arriving = {name: torch.empty_like(shard) for name, shard in shards[-1].items()}
            operations = []
            for name, shard in shards[-1].items():
                operations.append(dist.P2POp(dist.irecv, arriving[name], ranks[(own + 1) % size], group=process_group))
                operations.append(dist.P2POp(dist.isend, shard, ranks[(own - 1) % size], group=process_group))
            requests = dist.batch_isend_irecv(operations)
        outputs.append(func(**shards[-1], **input_local))
        for request in requests:
            request.wait()
        if arriving:
            shards.append(arriving)
    order = [(rank - own) % size for rank in range(size)]  # hop h brought the shard of rank own + h
    gathered = {name: torch.cat([shards[hop][name] for hop in order], dim=gather_dim) for name in input_to_gather}
    return torch.cat([outputs[hop] for hop in order], dim=gather_dim), gathered


def mend_shared_gradients() -> None:
    """Tied embeddings under --pp: `execute_pipeline` adds up their gradients also after an evaluation, which has none
    (booster/plugin/hybrid_parallel_plugin.py:135 hands None to all_reduce)."""
    from colossalai.booster.plugin.hybrid_parallel_plugin import HybridParallelModule

    add_up = HybridParallelModule.sync_shared_params
    if add_up.__module__ == __name__:  # mended before
        return
    require_line(add_up, "dist.all_reduce(param.grad, group=group)")

    def sync_shared_gradients(model: Any) -> None:
        if torch.is_grad_enabled():
            add_up(model)

    HybridParallelModule.sync_shared_params = sync_shared_gradients


def keep_rotary_frequencies_fp32(model: nn.Module) -> None:
    """zero, gemini and 3d cast every buffer to 16 bit (zero/gemini/gemini_ddp.py:882, booster/plugin/
    low_level_zero_plugin.py:83): the rotary angles are then off by up to radians at long positions."""
    for module in model.modules():
        if hasattr(module, "rope_init_fn"):
            device = module.inv_freq.device
            module.inv_freq = module.rope_init_fn(module.config, torch.device("cpu"))[0].to(device)


def cast_gradients_to_fp32(optimizer: torch.optim.Optimizer) -> None:
    """HybridAdam drops `div_scale` for bf16 gradients in CPU memory (nn/optimizer/hybrid_adam.py:126), and gemini clips
    only through it: without this cast gemini on a CPU, gemini_auto and offloading never clip."""

    def cast(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for param in group["params"]:
                if param.grad is not None and param.device.type == "cpu":
                    param.grad = param.grad.to(param.dtype)

    optimizer.register_step_pre_hook(cast)


def add_gradients_in_fp32(optimizer: Any) -> None:
    """ZeRO 2 adds up the gradients of micro-batches in the 16 bits in which they arrive (zero/low_level/bookkeeping/
    gradient_store.py:76). Here the first one is kept in fp32: 2 bytes a parameter more, shared out over the ranks."""
    from colossalai.zero.low_level import LowLevelZeroOptimizer

    if not isinstance(optimizer, LowLevelZeroOptimizer) or not optimizer._partition_grads:
        return
    for store in optimizer.pg_to_grad_store.values():
        require_line(type(store).append_gradients_by_param_id, "self._grads_of_params[group_id][param_id] = [grad]")
        require_line(type(store).add_gradients_by_param_id, "[param_id][grad_idx].add_(grad)")
        store.append_gradients_by_param_id = partial(_append_in_fp32, store.append_gradients_by_param_id)


def _append_in_fp32(append: Callable[..., None], grad: torch.Tensor, group_id: int, param_id: int) -> None:
    append(grad.float(), group_id, param_id)
