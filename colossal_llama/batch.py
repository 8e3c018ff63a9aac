"""What a step takes: rows of ids and labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

IGNORED = -100  # the label of a token that is not trained on


@dataclass(frozen=True)
class Batch:
    """Rows of one micro-batch. input_ids and labels: int64 [rows, row_length]; labels IGNORED where nothing is learnt.

    Rows are padded on the right: causal attention never lets a token see the padding, so no mask is needed.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on `device`."""
        return Batch(self.input_ids.to(device, non_blocking=True), self.labels.to(device, non_blocking=True))
