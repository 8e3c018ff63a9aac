"""The weights of a model directory: its safetensors files come in one by one, and go out with some tensors changed.

Only one shard is in memory at a time, and shards without an embedding matrix are copied as they are.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from tokenizer_tools.command import UserError
from tokenizer_tools.outputs import read_json, write_json

if TYPE_CHECKING:
    import torch

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth")


def holds_weights(directory: Path) -> bool:
    """Whether any file in `directory` is a model's weights, in whichever format."""
    return directory.is_dir() and any(is_weights(path) for path in directory.iterdir())


def is_weights(path: Path) -> bool:
    """Whether a file is a model's weights or their index, by its name."""
    return any(path.match(pattern) for pattern in WEIGHT_PATTERNS)


def list_shards(directory: Path) -> list[str]:
    """Names of the safetensors files of a model. Raises UserError if there are none, or one of the index is missing."""
    if (directory / INDEX_FILE).is_file():
        index = read_json(directory / INDEX_FILE, "the index of a sharded model")
        names = sorted(set(index.get("weight_map", {}).values()))
    else:
        names = [SINGLE_FILE]
    for name in names:
        if not (directory / name).is_file():
            raise UserError(f"{directory / name}: no such file; {_way_out(directory)}")
    if not names:
        raise UserError(f"{directory / INDEX_FILE}: names no file in its weight_map; fetch the model again")
    return names


def _way_out(directory: Path) -> str:
    if any(directory.glob("*.bin")):
        return ".bin weights are not read (pickle); save the model anew as safetensors, with save_pretrained"
    return "name a complete model directory with safetensors weights"


def tensor_shapes(directory: Path, wanted: Collection[str]) -> dict[str, tuple[int, ...]]:
    """{name: shape} of those `wanted` tensors that the model has. Raises UserError for a file that is cut or broken."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for name in list_shards(directory):
        try:
            with safe_open(directory / name, framework="pt") as shard:
                shapes |= {key: tuple(shard.get_slice(key).get_shape()) for key in shard.keys() if key in wanted}  # noqa: SIM118
        except Exception as error:  # safetensors has its own error class, and the file's OSErrors
            raise UserError(f"{directory / name}: not a whole safetensors file ({error}); fetch it again") from None
    return shapes


def rewrite_shards(
    source: Path, target: Path, names: Collection[str], change: Callable[[str, torch.Tensor], torch.Tensor]
) -> None:
    """Write the model of `source` to `target` with `change(name, tensor)` in place of each tensor in `names`."""
    added_bytes = added_parameters = 0
    for name in tqdm(list_shards(source), desc="shards", unit="file", disable=None):
        num_bytes, num_parameters = _rewrite_shard(source / name, target / name, names, change)
        added_bytes += num_bytes
        added_parameters += num_parameters
    if (source / INDEX_FILE).is_file():
        index = read_json(source / INDEX_FILE, "the index of a sharded model")
        metadata = index.setdefault("metadata", {})
        for key, added in (("total_size", added_bytes), ("total_parameters", added_parameters)):
            if key in metadata:
                metadata[key] = int(metadata[key]) + added
        write_json(target / INDEX_FILE, index)


def _rewrite_shard(
    source: Path, target: Path, names: Collection[str], change: Callable[[str, torch.Tensor], torch.Tensor]
) -> tuple[int, int]:
    """Write one shard; returns by how many bytes and by how many parameters it grew."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(source, framework="pt") as shard:
        keys = list(shard.keys())
        if not set(keys) & set(names):
            shutil.copyfile(source, target)
            return 0, 0
        tensors = {key: shard.get_tensor(key) for key in keys}
        metadata = shard.metadata()
    num_bytes = num_parameters = 0
    for key in set(keys) & set(names):
        old, tensors[key] = tensors[key], change(key, tensors[key])
        num_bytes += tensors[key].nbytes - old.nbytes
        num_parameters += tensors[key].numel() - old.numel()
    save_file(tensors, target, metadata=metadata)
    return num_bytes, num_parameters
