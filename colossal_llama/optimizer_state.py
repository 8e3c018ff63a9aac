"""What a boosted optimizer holds, by parameter name: AdamW's state, and the fp32 weights behind 16-bit ones.

In: a boosted model and optimizer, and `names`: the names of the parameters that the optimizer trains, in Booster's id
order (parameter group after group, over the whole model, whatever part of it this rank holds).
Out: Booster's optimizer files with the fp32 weights in them, which Booster alone leaves out; and such files back in an
optimizer, name by name: of any plugin, any number of ranks, and of a stage that trained other parameters.

Booster's own load_optimizer is not used: it refuses another set of parameters, and replaces the groups' options.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tokenizer_tools.command import UserError
from tokenizer_tools.outputs import read_json

PARAM_NAMES = "param_names.json"
INDEX = "pytorch_optim.bin.index.json"  # Booster's index of an optimizer directory: parameter id -> file
MASTER = "master"

State = dict[str, Any]
"""Of one parameter: AdamW's `step`, `exp_avg` and `exp_avg_sq`, none before the first step, and `master`, the fp32
weights, if the plugin keeps them beside 16-bit ones. On disk the tensors have the parameter's full shape."""


def saved_names(optimizer_dir: Path) -> list[str]:
    """The names under which a checkpoint's optimizer directory keeps its states, in the order of their ids."""
    names: list[str] = read_json(optimizer_dir / PARAM_NAMES, "the names of a checkpoint's trained parameters")["names"]
    return names


def trained_tensors(optimizer: Any) -> dict[int, torch.Tensor]:
    """Booster's id -> the tensor that this rank's inner optimizer steps, for every parameter it holds a part of.

    ddp, 3d: the parameter or its tp slice (fp32). ZeRO: a flat fp32 shard. gemini: a stand-in for a part of a chunk.
    """
    if _is_gemini(optimizer):
        return dict(optimizer.id_to_fake_params)
    tensors = [tensor for group in optimizer.optim.param_groups for tensor in group["params"]]
    if not _is_3d(optimizer):  # ddp and ZeRO: every rank holds a part of every parameter
        return dict(enumerate(tensors))
    ids = optimizer.param_info["param2id"]
    return {ids[id(_working(optimizer, tensor))]: tensor for tensor in tensors}


def _is_gemini(optimizer: Any) -> bool:
    """Asked of its attributes, as below: a checkpoint is also read where colossalai should not be imported (export)."""
    return hasattr(optimizer, "id_to_fake_params")


def _is_3d(optimizer: Any) -> bool:
    return hasattr(optimizer, "param_info")


def _working(optimizer: Any, tensor: torch.Tensor) -> torch.Tensor:
    """The model's own parameter behind a tensor that a 3d optimizer steps."""
    masters = optimizer.get_master_to_working_map()
    working: torch.Tensor = tensor if masters is None else masters[id(tensor)]
    return working


def master_weights(model: nn.Module, optimizer: Any, names: list[str]) -> dict[str, torch.Tensor]:
    """Name -> this rank's fp32 weights; empty where the plugin trains the model's own fp32 weights."""
    if _is_gemini(optimizer):
        return {names[i]: _chunk_part(optimizer, stand_in) for i, stand_in in optimizer.id_to_fake_params.items()}
    own_weights = {id(parameter) for parameter in model.parameters()}
    return {names[i]: t for i, t in sorted(trained_tensors(optimizer).items()) if id(t) not in own_weights}


def _chunk_part(optimizer: Any, stand_in: torch.Tensor) -> torch.Tensor:
    """This rank's fp32 weights of one parameter, inside gemini's chunk."""
    begin, end = optimizer.param_to_range[stand_in]
    part: torch.Tensor = optimizer.param_to_chunk16[stand_in].paired_chunk.payload[begin:end]
    return part


@contextmanager
def masters_among_states(model: nn.Module, optimizer: Any, names: list[str]) -> Iterator[None]:
    """While this is open, Booster's save_optimizer gathers and writes the fp32 weights as it does the moments."""
    states, masters = optimizer.optim.state, master_weights(model, optimizer, names)
    tensors = [(tensor, names[i]) for i, tensor in trained_tensors(optimizer).items() if names[i] in masters]
    for tensor, name in tensors:
        states[tensor][MASTER] = masters[name].detach()
    try:
        yield
    finally:
        for tensor, _ in tensors:
            del states[tensor][MASTER]


def load_states(
    optimizer_dir: Path, booster: Any, model: nn.Module, optimizer: Any, names: list[str], with_moments: bool
) -> int:
    """fp32 weights, and if `with_moments` AdamW's state, of every parameter that trained before; the others begin.

    The boosted model must hold the checkpoint's weights. Returns how many of `names` have trained before.
    Raises UserError for a file that cannot be read.
    """
    before = {name: i for i, name in enumerate(saved_names(optimizer_dir))}
    id_now = {before[name]: i for i, name in enumerate(names) if name in before}
    own, masters = trained_tensors(optimizer), master_weights(model, optimizer, names)
    steps: dict[int, int] = {}
    for id_before, state in _saved_states(optimizer_dir):
        i = id_now.get(id_before)
        if i is None:
            continue
        steps[i] = int(state.get("step", 0))
        if i in own:
            part = _own_part(booster, optimizer, i, own[i], state)
            if MASTER in part:
                masters.get(names[i], own[i]).data.copy_(part.pop(MASTER))
            if with_moments:
                optimizer.optim.state[own[i]] = part
    if with_moments and _is_gemini(optimizer):
        _one_step_a_group(optimizer, steps)
    return len(id_now)


def _saved_states(optimizer_dir: Path) -> Iterator[tuple[int, State]]:
    """(id, state) of every parameter. Files are mapped: of a large one only the parts that are used are read."""
    index = read_json(optimizer_dir / INDEX, "Booster's index of an optimizer")
    for name in sorted(set(index["weight_map"].values())):
        try:
            states = torch.load(optimizer_dir / name, map_location="cpu", mmap=True, weights_only=True)
        except Exception as error:  # torch raises whatever it meets in a broken file
            raise UserError(
                f"{optimizer_dir / name}: not a readable optimizer file; the checkpoint is damaged"
            ) from error
        for i, state in states.items():
            if state:  # gemini lists a parameter that has none yet
                yield int(i), state


def _own_part(booster: Any, optimizer: Any, i: int, tensor: torch.Tensor, state: State) -> State:
    """This rank's part of a parameter's state, as the inner optimizer wants it beside `tensor`."""
    full = {name: value for name, value in state.items() if name != "step"}
    if _is_gemini(optimizer):
        _, begin, size = optimizer.get_offsets(i)
        part = {
            name: value.flatten()[begin : begin + size].to(tensor.device, copy=True) for name, value in full.items()
        }
    elif _is_3d(optimizer):
        working = _working(optimizer, tensor)
        part = booster.checkpoint_io.shard_from_complete_optimizer_state(
            full,
            current_shape=working.shape,
            original_shape=optimizer.param_info["param2shape"][id(working)],
            device=tensor.device,
            dtype=tensor.dtype,
            inplace=False,
        )
    else:
        part = {
            name: (value if value.shape == tensor.shape else _flat_shard(value)).to(tensor.device, copy=True)
            for name, value in full.items()
        }
    if "step" not in state:
        return part
    step = float(state["step"])  # HybridAdam counts in int; torch's fused AdamW wants fp32 beside the parameter
    return {"step": int(step) if _is_gemini(optimizer) else torch.tensor(step, device=tensor.device), **part}


def _flat_shard(value: torch.Tensor) -> torch.Tensor:
    """This rank's part of `value` as ZeRO cuts it: flat, filled up with zeros to equal parts."""
    flat, world_size = value.flatten(), dist.get_world_size()
    filled = nn.functional.pad(flat, (0, -flat.numel() % world_size))
    return filled.chunk(world_size)[dist.get_rank()]


def _one_step_a_group(optimizer: Any, steps: dict[int, int]) -> None:
    """Split groups whose parameters have done different numbers of steps.

    HybridAdam's fused kernel corrects the bias of a whole group with the step of its last parameter
    (nn/optimizer/hybrid_adam.py:149).
    """
    groups, backups = [], []
    for group, backup in zip(optimizer.optim.param_groups, optimizer.param_groups_backup, strict=True):
        for step in sorted({steps.get(i, 0) for i in backup["params"]}):
            ids = [i for i in backup["params"] if steps.get(i, 0) == step]
            stand_ins = [optimizer.id_to_fake_params[i] for i in ids if i in optimizer.id_to_fake_params]
            groups.append({**group, "params": stand_ins})
            backups.append({**backup, "params": ids})
    optimizer.optim.param_groups = groups
    optimizer.param_groups_backup = backups
