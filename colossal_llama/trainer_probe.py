"""A boosted model as it trains, under any plugin, comes in; its `Probe` goes out, on rank 0.

This is the trainer's word, before any weight is gathered, converted or written: what readers of the files must repeat.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812  the name everybody knows

from colossal_llama.batch import Batch, document_borders
from colossal_llama.cluster import Layout, all_reduce_sum
from colossal_llama.head import bare_model
from colossal_llama.probe import MOST_TOKENS, Probe, probe_positions
from colossal_llama.step import Stepper


def trainer_probe(
    stepper: Stepper, row: torch.Tensor, micro_batch_size: int, accumulation_steps: int, device: torch.device
) -> Probe | None:
    """Score `row`, int64 [row_length], in a batch of `micro_batch_size` rows. All ranks call it; None but on rank 0.

    Neither parameters, gradients, random numbers nor the training mode change. Not before the first training step
    (`plugins.can_evaluate_first`).
    """
    layout, length = stepper.layout, min(len(row), MOST_TOKENS)
    positions = probe_positions(length)
    slice_length = len(row) // layout.sequence_size
    first = layout.sequence_rank * slice_length
    is_here = (positions >= first) & (positions < first + slice_length)
    batches = [_batch(row, micro_batch_size)] * (accumulation_steps if stepper.is_pipeline else 1)
    with _logit_rows(stepper.model, (positions[is_here] - first).to(device)) as seen:
        passes = stepper.score(batches)
    nats = torch.zeros(len(row), device=device)
    logits = torch.zeros(len(positions), bare_model(stepper.model).config.vocab_size, device=device)
    if passes:
        whole = _over_vocabulary(seen[0], layout)
        if layout.owns_loss and layout.dp_rank == 0:
            nats[first : first + slice_length] = passes[0].nats[0]
            logits[is_here.to(device)] = whole
    all_reduce_sum(nats)
    all_reduce_sum(logits)
    if dist.get_rank() != 0:
        return None
    return Probe(row[:length].clone(), nats[: length - 1].cpu(), positions, logits.cpu())


def _batch(row: torch.Tensor, num_rows: int) -> Batch:
    """`row` over and over, one document a row, every token with a label."""
    rows = row.repeat(num_rows, 1)
    position_ids = torch.arange(len(row)).repeat(num_rows, 1)
    return Batch(
        input_ids=rows,
        labels=rows,
        position_ids=position_ids,
        categories=torch.zeros_like(rows),
        document_borders=document_borders(position_ids),
        row_ids=rows.new_zeros(num_rows),
        row_numbers=list(range(num_rows)),
    )


@contextmanager
def _logit_rows(model: Any, positions: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Collect, of each pass through the output head, the first row's logits at `positions`, fp32 [positions, V of this
    rank]: the head itself answers with a loss and holds no whole logits. Stays empty where no head is."""
    seen: list[torch.Tensor] = []

    def compute(module: Any, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        # inside the pass, where gemini fetches the weight and autocast chooses the number format
        hidden = inputs[0][0, positions]
        seen.append(F.linear(hidden.to(module.weight.dtype), module.weight).float())

    head = bare_model(model).get_output_embeddings()
    hook = None if head is None else head.register_forward_hook(compute)
    try:
        yield seen
    finally:
        if hook is not None:
            hook.remove()


def _over_vocabulary(logits: torch.Tensor, layout: Layout) -> torch.Tensor:
    """[rows, this rank's slice of the vocabulary] -> [rows, vocabulary]."""
    if layout.tp_group is None:
        return logits
    slices = [torch.empty_like(logits) for _ in range(dist.get_world_size(layout.tp_group))]
    dist.all_gather(slices, logits.contiguous(), group=layout.tp_group)
    return torch.cat(slices, dim=1)
