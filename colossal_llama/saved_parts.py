"""Parts of an optimizer's state on the disk: which rank saves which, and what was saved, for any other layout to read.

Nothing here knows of optimizers or of other ranks: `optimizer_state` takes parts out of one and puts them back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tokenizer_tools.command import UserError
from tokenizer_tools.outputs import read_json

PARTS_FILE = "parts.json"
STEP, MASTER = "step", "master"
MOMENTS = ("exp_avg", "exp_avg_sq")
BYTES_OF_A_PARAMETER = 12  # two moments and the weight, in fp32

Shapes = Mapping[str, tuple[int, ...]]
State = dict[str, torch.Tensor]
"""Of one part: `exp_avg` and `exp_avg_sq`, flat fp32, `step`, int64 [], none of them before the first step; and
`master`, the fp32 weights."""


@dataclass(frozen=True)
class Part:
    """What one rank holds of a parameter: the slice of `length` at `start` of dimension `dim`, which is the whole
    parameter but under tensor parallelism, and of that slice, flat, what lies from `begin` to `end`."""

    name: str
    dim: int
    start: int
    length: int
    begin: int
    end: int


def share_out(parts: list[dict[int, Part]]) -> list[dict[int, Part]]:
    """Which rank saves which part, where several hold the same: each the one with the least to write so far.

    parts: `own_parts` of every rank. Pure; the same answer on every rank.
    """
    holders: dict[Part, list[int]] = {}
    for rank, own in enumerate(parts):
        for part in own.values():
            holders.setdefault(part, []).append(rank)
    id_of = {part.name: i for own in parts for i, part in own.items()}
    load = [0] * len(parts)
    shares: list[dict[int, Part]] = [{} for _ in parts]
    for part, ranks in holders.items():
        rank = min(ranks, key=lambda r: load[r])
        load[rank] += part.end - part.begin
        shares[rank][id_of[part.name]] = part
    return shares


def parts_table(shares: list[dict[int, Part]], trained: Shapes) -> dict[str, Any]:
    """The content of PARTS_FILE for `shares` as `share_out` gives them."""
    rows = [[rank_file(rank), *vars(part).values()] for rank, own in enumerate(shares) for part in own.values()]
    names = {part.name for own in shares for part in own.values()}
    return {"shapes": {name: list(shape) for name, shape in trained.items() if name in names}, "parts": rows}


def rank_file(rank: int) -> str:
    """Where a rank's parts lie inside the optimizer's directory."""
    return f"rank-{rank:05d}.safetensors"


def size_bytes(parts: Iterable[Part]) -> int:
    """Of the files that hold `parts`, after the first step."""
    return BYTES_OF_A_PARAMETER * sum(part.end - part.begin for part in parts)


class SavedStates:
    """The optimizer's states in a checkpoint. Raises UserError for files that cannot be read."""

    def __init__(self, optimizer_dir: Path) -> None:
        self._directory = optimizer_dir
        table = read_json(optimizer_dir / PARTS_FILE, "the parts of a checkpoint's optimizer")
        self.shapes = {name: tuple(shape) for name, shape in table["shapes"].items()}
        self._parts: dict[str, list[tuple[str, Part]]] = {name: [] for name in self.shapes}
        for file, *fields in table["parts"]:
            part = Part(*fields)
            self._parts[part.name].append((file, part))
        self._open_files: dict[str, Any] = {}

    def step(self, name: str) -> int | None:
        """Steps that a parameter has done; None before the first."""
        file, _ = self._parts[name][0]
        found = self._read(file, f"{name}.{STEP}")
        return None if found is None else int(found)

    def read(self, wanted: Part) -> State:
        """What was saved of a part, flat, without its step: read as it is, or put together from the parts of another
        layout."""
        saved = self._parts[wanted.name]
        kinds = (*MOMENTS, MASTER)
        same = next((file for file, part in saved if part == wanted), None)
        if same is not None:
            found = {kind: self._read(same, f"{wanted.name}.{kind}") for kind in kinds}
        else:
            found = {kind: self._cut(wanted, kind) for kind in kinds}
        return {kind: value for kind, value in found.items() if value is not None}

    def _cut(self, wanted: Part, kind: str) -> torch.Tensor | None:
        shape = self.shapes[wanted.name]
        whole, num_found = torch.empty(shape), 0
        slices: dict[tuple[int, int, int], list[tuple[Part, torch.Tensor]]] = {}
        for file, part in self._parts[wanted.name]:
            value = self._read(file, f"{wanted.name}.{kind}")
            if value is None:
                return None
            slices.setdefault((part.dim, part.start, part.length), []).append((part, value))
        for (dim, start, length), found in slices.items():
            target = whole.narrow(dim, start, length)
            flat = torch.empty(target.numel())
            for part, value in found:
                flat[part.begin : part.end] = value
                num_found += part.end - part.begin
            target.copy_(flat.view_as(target))
        if num_found != whole.numel():
            raise UserError(f"{self._directory}: holds {num_found} of {whole.numel()} values of {wanted.name}; damaged")
        return whole.narrow(wanted.dim, wanted.start, wanted.length).flatten()[wanted.begin : wanted.end]

    def _read(self, file: str, key: str) -> torch.Tensor | None:
        try:
            if file not in self._open_files:
                self._open_files[file] = safe_open(self._directory / file, "pt")
            opened = self._open_files[file]
            return opened.get_tensor(key) if key in opened.keys() else None  # noqa: SIM118  (it is no mapping)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{self._directory / file}: not a readable optimizer file ({error}); damaged") from error
