"""Whether new rows learn: two model directories, the start's and a checkpoint's, come in; how far rows moved goes out.

Only the embedding matrices are read, a few thousand rows at a time, from the safetensors files of either directory.
Beside them: which ids training has seen so far, counted while it runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from colossal_llama.cluster import all_reduce_sum, main_rank_logger
from tokenizer_tools.command import UserError
from tokenizer_tools.grow_model import INPUT, OUTPUT
from tokenizer_tools.outputs import read_json
from tokenizer_tools.shards import INDEX_FILE, SINGLE_FILE, read_weights
from tokenizer_tools.tokenizer_files import MANIFEST

CHUNK_ENTRIES = 2**21  # of a matrix at a time: 8 MB in fp32
SEEN_IDS_FILE = "seen_ids.safetensors"
SEEN = "seen"
MATRIX_LABELS = {INPUT: "input", OUTPUT: "output"}


class SeenIds:
    """Which ids have stood in a training row, as input; a bool for each id of the vocabulary.

    Padding counts as the id that it is made of. `device` is where the ids of `update` lie.
    """

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._seen = torch.zeros(vocab_size, dtype=torch.bool, device=device)

    def update(self, input_ids: torch.Tensor) -> None:
        """Take the ids (int64, any shape) of rows of this rank. Nothing waits for the device."""
        self._seen.index_fill_(0, input_ids.flatten(), True)

    def merged(self, device: torch.device) -> torch.Tensor:
        """bool [vocabulary] on the CPU: what any rank has seen. All ranks call it; `device` is that of collectives."""
        return all_reduce_sum(self._seen.to(device, torch.int32)).cpu() > 0

    def load(self, directory: Path) -> None:
        """Add what `write_seen_ids` has left in a checkpoint; nothing if it has none for this vocabulary."""
        path = directory / SEEN_IDS_FILE
        if not path.is_file():
            return
        with safe_open(path, "pt") as file:
            saved = file.get_tensor(SEEN)
        if saved.shape == self._seen.shape:
            self._seen |= saved.to(self._seen.device)


def write_seen_ids(directory: Path, seen: torch.Tensor) -> None:
    """Put the bool vector of `SeenIds.merged` into a checkpoint that is being written."""
    save_file({SEEN: seen}, directory / SEEN_IDS_FILE)


@dataclass
class Moves:
    """Rows of one kind in one matrix, added up chunk by chunk."""

    rows: int = 0
    unchanged: int = 0
    entries: int = 0
    squared_change: float = 0.0

    def add(self, start: torch.Tensor, now: torch.Tensor) -> None:
        """Take the same rows [rows, hidden] of both models. The start is rounded to the type that `now` is saved in."""
        start = start.to(now.dtype)
        self.rows += len(now)
        self.entries += now.numel()
        self.unchanged += int((start == now).all(dim=1).sum())
        self.squared_change += (now.float() - start.float()).square().sum(dtype=torch.float64).item()

    def figures(self) -> dict[str, float]:
        """Number of rows, of those equal to their start bit for bit, and the root mean square of an entry's change."""
        return {
            "rows": self.rows,
            "unchanged": self.unchanged,
            "update_rms": math.sqrt(self.squared_change / max(1, self.entries)),
        }


def num_old_rows(start: Path) -> int | None:
    """Rows that the model in `start` had before init_model added new ones; None if init_model added none."""
    if not (start / MANIFEST).is_file():
        return None
    sizes = read_json(start / MANIFEST, "the manifest of init_model").get("vocab_size", {})
    before, after = sizes.get("before", 0), sizes.get("after", 0)
    return before if 0 < before < after else None


def row_health(start: Path, modeling: Path, seen: torch.Tensor) -> dict[str, Any] | None:
    """Rows of the checkpoint's model in `modeling` against those it had in `start`, and the share of new ids `seen`.

    {"new_ids_seen": share, "input": {"new": {"rows", "unchanged", "update_rms"}, "old": {...}}, "output": {...}};
    "output" is absent where the matrices are tied. None where there are no new rows to speak of (`start` is not grown)
    or no whole matrices (a LoRA checkpoint), and, with a warning, if a file cannot be read.
    """
    try:
        num_old = num_old_rows(start)
        if num_old is None or not any((modeling / name).is_file() for name in (SINGLE_FILE, INDEX_FILE)):
            return None
        health: dict[str, Any] = {"new_ids_seen": seen[num_old:].double().mean().item()}
        for name, label in MATRIX_LABELS.items():
            moves = _compare(start, modeling, name, num_old)
            if moves:
                health[label] = {kind: one.figures() for kind, one in moves.items()}
        return health
    except (UserError, OSError, SafetensorError) as error:
        main_rank_logger(__name__).warning(f"health of the new rows: {error}; the run goes on without it")
        return None


def _compare(start: Path, modeling: Path, name: str, num_old: int) -> dict[str, Moves]:
    """{"new": ..., "old": ...} of one matrix; {} where a model has none of that name."""
    start_file, file = (read_weights(directory).file_of.get(name) for directory in (start, modeling))
    if start_file is None or file is None:
        return {}
    shapes = [one.infos[name].shape for one in (start_file, file)]
    if shapes[0] != shapes[1]:
        raise UserError(f"{modeling}: {name} has the shape {shapes[1]}, in {start} it has {shapes[0]}")
    moves = {"new": Moves(), "old": Moves()}
    for first, last in _chunks(num_old, *shapes[1]):
        rows = (_rows(one.path, name, first, last) for one in (start_file, file))
        moves["old" if last <= num_old else "new"].add(*rows)
    return moves


def _rows(path: Path, name: str, first: int, last: int) -> torch.Tensor:
    """Rows `first` to `last` of a matrix. Opened anew each time: what is read of a mapped file counts as our memory."""
    with safe_open(path, "pt") as file:
        return file.get_slice(name)[first:last]


def _chunks(num_old: int, num_rows: int, hidden: int) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of chunks of rows, none of which holds both old and new ones."""
    size = max(1, CHUNK_ENTRIES // hidden)
    for begin, end in ((0, num_old), (num_old, num_rows)):
        for first in range(begin, end, size):
            yield first, min(first + size, end)


def health_line(health: dict[str, Any]) -> str:
    """The health of `row_health` in one line of the log."""
    words = [f"new rows: {health['new_ids_seen']:.1%} of their ids seen"]
    for label in MATRIX_LABELS.values():
        if label in health:
            new, old = health[label]["new"], health[label]["old"]
            words.append(
                f"{label} moved by {new['update_rms']:.1e} (old rows {old['update_rms']:.1e}), "
                f"{new['unchanged']:,} of {new['rows']:,} not at all"
            )
    return "; ".join(words)
