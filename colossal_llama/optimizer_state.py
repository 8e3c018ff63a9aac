"""What a boosted optimizer holds, by parameter name: AdamW's state, and the fp32 weights behind 16-bit ones.

In: a boosted optimizer and `trained`, the names and full shapes of the parameters that it trains, in Booster's id order
(parameter group after group, over the whole model, whatever part of it this rank holds).
Out: which `Part` of which parameter this rank holds, copies of them in host memory for a checkpoint; and a checkpoint's
parts back in an optimizer, name by name: of any plugin, any number of ranks, and of a stage that trained other
parameters. A rank that holds the very part that was saved reads just that one.

Booster's own save_optimizer and load_optimizer are not used: they gather every state on rank 0, leave out the fp32
weights, refuse another set of parameters, and replace the groups' options.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from colossal_llama.saved_parts import MASTER, MOMENTS, STEP, Part, SavedStates, Shapes, State
from tokenizer_tools.command import UserError


def own_parts(booster: Any, optimizer: Any, trained: Shapes) -> dict[int, Part]:
    """Booster's id -> the part of that parameter that this rank steps, where it holds any of it."""
    names = list(trained)
    parts = {
        i: _part(booster, optimizer, i, tensor, names[i], trained[names[i]])
        for i, tensor in sorted(trained_tensors(optimizer).items())
    }
    return {i: part for i, part in parts.items() if part.end > part.begin}


def _part(booster: Any, optimizer: Any, i: int, tensor: torch.Tensor, name: str, shape: tuple[int, ...]) -> Part:
    if _is_gemini(optimizer):
        _, begin, size = map(int, optimizer.get_offsets(i))
        return Part(name, 0, 0, shape[0], begin, begin + size)
    dim, start, length = 0, 0, shape[0]
    place = booster.checkpoint_io if _is_3d(optimizer) else None  # it knows this rank's place in the plugin's groups
    if place is not None:
        own_shape = _working(optimizer, tensor).shape
        dim = next((d for d, size in enumerate(shape) if own_shape[d] != size), 0)
        length = own_shape[dim]
        start = place.tp_rank * length if length != shape[dim] else 0
    numel = math.prod(shape) // shape[dim] * length
    size, begin = tensor.numel(), 0
    if size != numel:  # ZeRO's shards are equal, the last ones filled up with zeros
        begin = size * (dist.get_rank() if place is None else place.dp_rank)
    return Part(name, dim, start, length, min(begin, numel), min(begin + size, numel))


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


def master_weights(model: nn.Module, optimizer: Any) -> dict[int, torch.Tensor]:
    """Booster's id -> this rank's fp32 weights; empty where the plugin trains the model's own fp32 weights."""
    if _is_gemini(optimizer):
        return {i: _chunk_part(optimizer, stand_in) for i, stand_in in optimizer.id_to_fake_params.items()}
    own_weights = {id(parameter) for parameter in model.parameters()}
    return {i: tensor for i, tensor in trained_tensors(optimizer).items() if id(tensor) not in own_weights}


def _chunk_part(optimizer: Any, stand_in: torch.Tensor) -> torch.Tensor:
    """This rank's fp32 weights of one parameter, inside gemini's chunk."""
    begin, end = optimizer.param_to_range[stand_in]
    part: torch.Tensor = optimizer.param_to_chunk16[stand_in].paired_chunk.payload[begin:end]
    return part


def snapshot(model: nn.Module, optimizer: Any, parts: Mapping[int, Part], weights: State) -> State:
    """Copies in host memory of the states of `parts`, under `NAME.KIND`: what one rank puts into a checkpoint.

    weights: copies of model weights that are at hand; where the optimizer trains these very weights, they serve here.
    """
    tensors, masters = trained_tensors(optimizer), master_weights(model, optimizer)
    copies: State = {}
    for i, part in parts.items():
        state = optimizer.optim.state.get(tensors[i], {})
        if state:
            copies[f"{part.name}.{STEP}"] = torch.tensor(int(state[STEP]))
        found = {kind: state[kind] for kind in MOMENTS if kind in state}
        found[MASTER] = masters.get(i, tensors[i])  # if they are the model's own, another plugin may want them apart
        if i not in masters and part.name in weights and weights[part.name].numel() == part.end - part.begin:
            copies[f"{part.name}.{MASTER}"] = weights[part.name].flatten()
            del found[MASTER]
        for kind, value in found.items():
            flat = value.detach().flatten()[: part.end - part.begin]
            copies[f"{part.name}.{kind}"] = flat.to("cpu", torch.float32, copy=True)
    return copies


def load_states(
    optimizer_dir: Path, booster: Any, model: nn.Module, optimizer: Any, trained: Shapes, with_moments: bool
) -> int:
    """fp32 weights, and if `with_moments` AdamW's state, of every parameter that trained before; the others begin.

    The boosted model must hold the checkpoint's weights. Returns how many parameters have trained before.
    Raises UserError for a file that cannot be read, and for a parameter of another shape.
    """
    saved = SavedStates(optimizer_dir)
    tensors, masters = trained_tensors(optimizer), master_weights(model, optimizer)
    goes_on = {i: name for i, name in enumerate(trained) if name in saved.shapes}
    for i, part in own_parts(booster, optimizer, trained).items():
        if i not in goes_on:
            continue
        if saved.shapes[part.name] != trained[part.name]:
            raise UserError(
                f"{optimizer_dir}: {part.name} is {list(saved.shapes[part.name])} there, "
                f"{list(trained[part.name])} in this model; keep the model that the run began with"
            )
        weights = masters.get(i, tensors[i])
        state = {kind: _filled(value, weights) for kind, value in saved.read(part).items()}
        if MASTER in state:
            weights.data.copy_(state[MASTER])
        step = saved.step(part.name)
        if with_moments and step is not None:
            moments = {kind: state[kind] for kind in MOMENTS}
            optimizer.optim.state[tensors[i]] = {STEP: _step(optimizer, tensors[i], step), **moments}
    if with_moments and _is_gemini(optimizer):
        _one_step_a_group(optimizer, {i: saved.step(name) or 0 for i, name in goes_on.items()})
    return len(goes_on)


def _filled(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A part's values as the weights that are stepped: in their shape, on their device, filled up with zeros as ZeRO
    does."""
    filled = nn.functional.pad(value, (0, like.numel() - value.numel()))
    return filled.view(like.shape).to(like.device, torch.float32, copy=True)


def _step(optimizer: Any, tensor: torch.Tensor, step: int) -> Any:
    """HybridAdam counts in int; torch's fused AdamW wants fp32 beside the parameter."""
    return step if _is_gemini(optimizer) else torch.tensor(float(step), device=tensor.device)


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
