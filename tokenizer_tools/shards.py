"""The weights of a model directory: its files come in one by one, and go out with some matrices grown.

A file without a matrix that grows is copied as it is; of the others only the growing matrices are ever in memory.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tqdm import tqdm

from tokenizer_tools.command import UserError
from tokenizer_tools.outputs import read_json, write_json
from tokenizer_tools.weight_files import (
    TensorInfo,
    WeightFile,
    copy_bytes,
    open_weights,
    tensor_bytes,
    write_safetensors,
)

if TYPE_CHECKING:
    import torch

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SOURCES = (SINGLE_FILE, INDEX_FILE, "pytorch_model.bin", "pytorch_model.bin.index.json")  # as transformers prefers them
GIGABYTE = 10**9


@dataclass(frozen=True)
class Weights:
    """The weights of a model: its files in order, the index that names them, and which tensor is in which file."""

    directory: Path
    files: list[WeightFile]
    index: dict[str, Any] | None
    file_of: dict[str, WeightFile]

    def info(self, name: str) -> TensorInfo:
        """What the header says of a tensor. Raises KeyError if the model has none of that name."""
        return self.file_of[name].infos[name]


def read_weights(directory: Path) -> Weights:
    """Open the weights of a model directory, headers only.

    Raises UserError if there are none, if the index names an absent file or tensor, or for a file cut or broken.
    """
    first = next((name for name in SOURCES if (directory / name).is_file()), None)
    if first is None:
        raise UserError(f"{directory}: holds none of {', '.join(SOURCES)}; name a complete model directory")
    index = read_json(directory / first, "the index of a sharded model") if first.endswith(".json") else None
    names = [first] if index is None else _files_of_index(directory / first, index)
    files = [open_weights(directory / name) for name in names]
    weights = Weights(directory, files, index, {name: file for file in files for name in file.infos})
    for tensor, name in (index or {}).get("weight_map", {}).items():
        if tensor not in weights.file_of or weights.file_of[tensor].path.name != name:
            raise UserError(f"{directory / first}: {tensor} is not in {name}; fetch the model again")
    return weights


def _files_of_index(path: Path, index: dict[str, Any]) -> list[str]:
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{path}: names no file in its weight_map; fetch the model again")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise UserError(f"{path}: names {name!r}, which is no file beside it; fetch the model again")
    files = sorted(set(names.values()))
    missing = [name for name in files if not (path.parent / name).is_file()]
    if missing:
        raise UserError(
            f"{path.parent / missing[0]}: no such file, but {path.name} names it ({len(missing)} of {len(files)} files "
            "are missing); fetch the model again"
        )
    return files


@dataclass(frozen=True)
class Plan:
    """What is to be written: per file its name and its tensors, the grown ones with their new shapes."""

    files: list[tuple[WeightFile, str, dict[str, TensorInfo]]]
    grown: Mapping[str, int]

    @property
    def num_bytes(self) -> int:
        """The size of all tensors together."""
        return sum(info.num_bytes for _, _, infos in self.files for info in infos.values())

    @property
    def num_parameters(self) -> int:
        """The numbers in all tensors together."""
        return sum(math.prod(info.shape) for _, _, infos in self.files for info in infos.values())


def make_plan(weights: Weights, grown: Mapping[str, int], dropped: Iterable[str] = ()) -> Plan:
    """The same files as safetensors, with `grown` {matrix: new number of rows} and without the tensors `dropped`."""
    files = []
    for number, file in enumerate(weights.files, start=1):
        infos = {name: info for name, info in file.infos.items() if name not in dropped}
        for name in infos.keys() & grown.keys():
            old_rows, *rest = infos[name].shape
            num_bytes = infos[name].num_bytes // old_rows * grown[name]
            infos[name] = replace(infos[name], shape=(grown[name], *rest), num_bytes=num_bytes)
        target = file.path.name
        if file.path.suffix != ".safetensors":
            target = (
                SINGLE_FILE if weights.index is None else f"model-{number:05}-of-{len(weights.files):05}.safetensors"
            )
        files.append((file, target, infos))
    return Plan(files, grown)


def check_space(plan: Plan, directory: Path) -> None:
    """Raise UserError if the disk of `directory` has no room for the plan's tensors."""
    free = shutil.disk_usage(directory).free
    if free < plan.num_bytes:
        raise UserError(
            f"{directory}: no space left for the model: it needs {plan.num_bytes / GIGABYTE:.3g} GB, "
            f"{free / GIGABYTE:.3g} GB are free; free some or choose another disk"
        )


def write_weights(
    plan: Plan, target: Path, rows_of: Callable[[str, WeightFile], Iterable[torch.Tensor]], index: dict[str, Any] | None
) -> None:
    """Carry out the plan in the directory `target`. `rows_of(name, file)` yields the rows of a grown matrix in order.

    An `index` goes out with the new sizes and file names.
    """
    with tqdm(total=plan.num_bytes, desc="weights", unit="B", unit_scale=True, disable=None) as bar:
        for file, name, infos in plan.files:
            if file.path.suffix == ".safetensors" and not infos.keys() & plan.grown.keys():
                with (target / name).open("wb") as output:
                    bar.update(copy_bytes(file.path, 0, file.path.stat().st_size, output))
            else:
                write_safetensors(
                    target / name,
                    infos,
                    file.metadata,
                    partial(_write_tensor, file, rows_of, plan, bar),
                    last=plan.grown,
                )
    if index is not None:
        write_json(target / INDEX_FILE, _new_index(plan, index))


def _write_tensor(
    file: WeightFile,
    rows_of: Callable[[str, WeightFile], Iterable[torch.Tensor]],
    plan: Plan,
    bar: tqdm,
    name: str,
    output: BinaryIO,
) -> int:
    """Write a tensor, grown or as it was; returns its bytes."""
    if name in plan.grown:
        num_bytes = sum(output.write(tensor_bytes(rows)) for rows in rows_of(name, file))
    else:
        num_bytes = file.copy(name, output)
    bar.update(num_bytes)
    return num_bytes


def _new_index(plan: Plan, index: dict[str, Any]) -> dict[str, Any]:
    metadata = index.get("metadata", {}) | {"total_size": plan.num_bytes}
    if "total_parameters" in metadata:
        metadata["total_parameters"] = plan.num_parameters
    weight_map = {tensor: name for _, name, infos in plan.files for tensor in sorted(infos)}
    return index | {"metadata": metadata, "weight_map": weight_map}
