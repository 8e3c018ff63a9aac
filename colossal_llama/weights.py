"""A boosted model -> the files of a Hugging Face model directory: planned once, then copied to host memory at a save.

Each file has one rank that writes it: a rank that holds all of its tensors anyway or gets them when they are gathered.
The plan is made when a stage begins, by all ranks together; `ModelFiles.take` is called by all ranks at each save.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from colossalai.booster import Booster
from colossalai.booster.plugin import GeminiPlugin, HybridParallelPlugin
from transformers.utils import GENERATION_CONFIG_NAME

from colossal_llama import lora
from colossal_llama.head import bare_model
from tokenizer_tools.outputs import write_json
from tokenizer_tools.shards import INDEX_FILE, SINGLE_FILE

LARGEST_FILE_BYTES = 5 * 10**9  # transformers' own limit

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Held:
    """A tensor that a rank could write: its name and size."""

    name: str
    num_bytes: int


@dataclass(frozen=True)
class PlannedFile:
    """One file, the rank that writes it, and what is in it."""

    name: str
    rank: int
    tensors: tuple[Held, ...]


def plan_files(held: list[list[Held]], largest_bytes: int = LARGEST_FILE_BYTES) -> list[PlannedFile]:
    """Whose files hold what, from what each rank holds. Pure; the same answer on every rank.

    A tensor goes into a file with others that the same ranks hold, in their order; files of the same holders are
    spread over these ranks, so that hosts write side by side.
    """
    holders: dict[Held, list[int]] = {}
    for rank, own in enumerate(held):
        for tensor in own:
            holders.setdefault(tensor, []).append(rank)
    groups: dict[tuple[int, ...], list[list[Held]]] = {}
    for tensor, ranks in holders.items():
        files = groups.setdefault(tuple(ranks), [[]])
        if files[-1] and sum(other.num_bytes for other in files[-1]) + tensor.num_bytes > largest_bytes:
            files.append([])
        files[-1].append(tensor)
    planned = [
        (ranks[number * len(ranks) // len(files)], tuple(file))
        for ranks, files in groups.items()
        for number, file in enumerate(files)
    ]
    if len(planned) == 1:
        return [PlannedFile(SINGLE_FILE, *planned[0])]
    return [
        PlannedFile(f"model-{number:05d}-of-{len(planned):05d}.safetensors", rank, file)
        for number, (rank, file) in enumerate(planned, start=1)
    ]


@dataclass(frozen=True)
class ModelFiles:
    """What a save writes into the model's directory. `take` and `num_bytes` are this rank's; rank 0 writes beside."""

    take: Callable[[], dict[str, Tensors]]
    """Collective: copies in host memory of what this rank writes, file by file."""
    num_bytes: int
    write_beside: Callable[[Path], None]
    """The configuration and the index of the files, into an existing directory."""


def model_files(booster: Booster, model: Any) -> ModelFiles:
    """The weights of a whole model, in the number format in which it computes. All ranks call it."""
    return _planned(bare_model(model), lambda: gathered(booster, model))


def merged_files(model: Any) -> ModelFiles:
    """The base with its LoRA adapter merged in, in its own memory: it can train no further. All ranks call it."""
    merged = lora.merge_in_place(bare_model(model))
    return _planned(merged, lambda: iter(merged.state_dict().items()))


def _planned(base: Any, tensors: Callable[[], Iterator[tuple[str, torch.Tensor]]]) -> ModelFiles:
    tied = set(base._tied_weights_keys or ()) if base.config.tie_word_embeddings else set()
    own = [Held(name, tensor.numel() * tensor.element_size()) for name, tensor in tensors() if name not in tied]
    held: list[list[Held]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(held, own)
    files = plan_files(held)
    own_files = {tensor.name: file.name for file in files if file.rank == dist.get_rank() for tensor in file.tensors}

    def take() -> dict[str, Tensors]:
        taken: dict[str, Tensors] = {}
        for name, tensor in tensors():
            if name in own_files:
                taken.setdefault(own_files[name], {})[name] = tensor.detach().to("cpu", copy=True).contiguous()
        return taken

    def write_beside(directory: Path) -> None:
        config = copy.deepcopy(base.config)
        config.use_cache = True  # only training must do without it
        config.save_pretrained(directory)
        if base.generation_config is not None:
            # save_pretrained refuses what many models came with (a temperature without sampling)
            base.generation_config.to_json_file(directory / GENERATION_CONFIG_NAME, use_diff=True)
        if len(files) > 1:
            weight_map = {tensor.name: file.name for file in files for tensor in file.tensors}
            total_size = sum(tensor.num_bytes for file in files for tensor in file.tensors)
            index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
            write_json(directory / INDEX_FILE, index)

    own_bytes = sum(tensor.num_bytes for file in files if file.rank == dist.get_rank() for tensor in file.tensors)
    return ModelFiles(take, own_bytes, write_beside)


def gathered(booster: Booster, model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, whole tensor) of every weight, on the ranks that may write it. Collective: run it to its end."""
    if isinstance(booster.plugin, GeminiPlugin):
        for shard, _ in model.state_dict_shard(only_rank_0=True):
            if dist.get_rank() == 0:
                yield from shard.items()
    elif isinstance(booster.plugin, HybridParallelPlugin):
        from colossalai.checkpoint_io.utils import gather_distributed_param

        for name, parameter in bare_model(model).named_parameters():
            yield name, gather_distributed_param(parameter)
    else:
        yield from bare_model(model).state_dict().items()


def adapter_files(model: Any) -> ModelFiles:
    """A LoRA adapter, which rank 0 writes: all ranks hold it, and it is small."""
    adapted = bare_model(model)

    def tensors() -> Tensors:
        return lora.adapter_tensors(adapted) if dist.get_rank() == 0 else {}

    def take() -> dict[str, Tensors]:
        # safetensors takes no memory twice, and of tied embeddings both are written: readers know nothing of the tie
        copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors().items()}
        return {lora.WEIGHTS: copies} if copies else {}

    own_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors().values())
    return ModelFiles(take, own_bytes, lambda directory: lora.write_adapter_config(adapted, directory))
