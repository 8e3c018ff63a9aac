"""What a step takes: rows of ids, labels, positions and categories, where documents begin, and the rows' numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

IGNORED = -100  # the label of a token that is not trained on


@dataclass(frozen=True)
class Batch:
    """Rows of one micro-batch; a tensor is int64 [rows, row_length] where nothing else is said.

    Rows are padded on the right: causal attention never lets a token see the padding, so no mask is needed for it.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    """Not shifted; IGNORED where nothing is learnt, with masked documents also at the first token of each of them."""
    position_ids: torch.Tensor
    """0, 1, ... and again from 0 at the first token of every document of the row; padding is a document of its own."""
    categories: torch.Tensor
    """Index into Bins.categories of the document of each token; 0 on padding, which carries no label."""
    document_borders: torch.Tensor
    """int32 [documents + 1]: where each document begins if the rows lie end to end, and the end; found on the host."""
    row_ids: torch.Tensor
    """[rows] place of each row in the dataset, all bins end to end, from 1 on; 0 for a blank row."""
    row_numbers: list[int]
    """[rows] number of each row in the order of the run; from the end of the step or the run on they are blank."""

    def to(self, device: torch.device) -> Batch:
        """The same on `device`; the copy runs in the background if the batch is pinned."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin(self) -> Batch:
        """The same in page-locked memory, from which an accelerator copies by itself; needs an accelerator."""
        return self._with(torch.Tensor.pin_memory)

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return Batch(
            change(self.input_ids),
            change(self.labels),
            change(self.position_ids),
            change(self.categories),
            change(self.document_borders),
            change(self.row_ids),
            self.row_numbers,
        )


def joined(batches: Sequence[Batch]) -> Batch:
    """The rows of several micro-batches as one, in their order."""
    sizes = [batch.input_ids.numel() for batch in batches]
    offsets = [sum(sizes[:index]) for index in range(len(sizes))]
    firsts = [batch.document_borders[:-1] + offset for batch, offset in zip(batches, offsets, strict=True)]
    return Batch(
        torch.cat([batch.input_ids for batch in batches]),
        torch.cat([batch.labels for batch in batches]),
        torch.cat([batch.position_ids for batch in batches]),
        torch.cat([batch.categories for batch in batches]),
        torch.cat([*firsts, batches[-1].document_borders[-1:] + offsets[-1]]),
        torch.cat([batch.row_ids for batch in batches]),
        [number for batch in batches for number in batch.row_numbers],
    )


def document_borders(position_ids: torch.Tensor) -> torch.Tensor:
    """[rows, length] -> int32 [documents + 1], see `Batch`. For a tensor of the host: a device would be waited for."""
    flat = position_ids.flatten()
    starts = (flat == 0).nonzero().flatten()
    return torch.cat([starts, starts.new_tensor([flat.numel()])]).int()
