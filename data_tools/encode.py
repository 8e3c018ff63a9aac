"""Text -> ids: records come in, one `Sequence` a record goes out. Pure.

A sequence is BOS + source + target + EOS. Loss is on target and EOS if there is a source, on everything otherwise.
Source and target are encoded apart, so that no token lies across their border and the loss begins exactly there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data_tools.records import Record

if TYPE_CHECKING:
    from tokenizer_tools.tokenizer import TextEncoder

IGNORED_LABEL = -100


@dataclass(frozen=True)
class Sequence:
    """One encoded document. Positions before `loss_start` bear no loss; it is 0 if there is no source."""

    input_ids: list[int]
    loss_start: int


def encode_records(encoder: TextEncoder, records: Iterable[Record]) -> list[Sequence | None]:
    """One sequence a record; None where the target has no token (a normaliser may leave nothing of it)."""
    records = list(records)
    beginnings = encoder.encode_batch([record.source or record.target for record in records])
    continuations = iter(encoder.encode_batch([r.target for r in records if r.source], continuation=True))
    sequences: list[Sequence | None] = []
    for record, beginning in zip(records, beginnings, strict=True):
        prompt_ids = encoder.prefix_ids + beginning if record.source else encoder.prefix_ids
        target_ids = next(continuations) if record.source else beginning
        loss_start = len(prompt_ids) if record.source else 0
        sequence = Sequence(prompt_ids + target_ids + encoder.eos_ids, loss_start)
        sequences.append(sequence if target_ids else None)
    return sequences


def labels_of(input_ids: np.ndarray, num_without_loss: int) -> np.ndarray:
    """Labels [tokens] int32 of ids [tokens]: the ids themselves, IGNORED_LABEL for the first `num_without_loss`."""
    labels = input_ids.astype(np.int32)
    labels[: max(0, num_without_loss)] = IGNORED_LABEL
    return labels
