"""Hidden states, the output matrix and targets -> the summed cross entropy and its gradients, chunk by chunk.

No tensor of tokens x vocabulary ever exists: the logits of a chunk of tokens become nats and gradients at once. Sums
are fp32 under every parallel layout: colossalai's own loss is a mean per micro-batch, summed in 16 bits without tp
(shardformer/layer/loss.py:217) and NaN for a micro-batch without labels. Here it is a sum, 0 if there is no label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812  the name everybody knows
from torch.autograd.function import once_differentiable
from torch.overrides import handle_torch_function, has_torch_function

from colossal_llama.batch import IGNORED

CHUNK_LOGITS_BYTES = 2**27
"""Size of a chunk's fp32 logits. Smaller chunks are slower: each adds to all of the weight's gradient."""
WEIGHT_ROWS_AT_ONCE = 8192
"""Rows of the weight's gradient that a chunk adds to at once, so that its products need little memory."""


@dataclass(frozen=True)
class TokenScores:
    """What each position's prediction was worth."""

    nats: torch.Tensor
    """-log p(target), fp32 [rows, length]; 0 where the target is IGNORED. Carries no gradient."""
    correct: torch.Tensor | None
    """Whether the likeliest token is the target, bool [rows, length]; of equally likely ones the lowest id counts."""


@dataclass(frozen=True)
class _Head:
    """How the output matrix is divided and trained, and how much of the work is taken at once."""

    tp_group: dist.ProcessGroup | None
    first_trained_row: int
    chunk_tokens: int
    with_accuracy: bool
    has_gradients: bool

    def row_offset(self, num_rows: int) -> int:
        """Number of this rank's first row in the whole vocabulary."""
        return 0 if self.tp_group is None else num_rows * dist.get_rank(self.tp_group)

    def all_reduce(self, values: torch.Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> torch.Tensor:
        """`values` over all slices of the vocabulary, in place."""
        if self.tp_group is not None:
            dist.all_reduce(values, op=op, group=self.tp_group)
        return values


def next_token_targets(labels: torch.Tensor, sequence_rank: int = 0, sequence_size: int = 1) -> torch.Tensor:
    """labels [rows, length] -> what each position predicts [rows, length / sequence_size], this rank's slice of it.

    The last position of a row predicts nothing.
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return targets.chunk(sequence_size, dim=1)[sequence_rank]


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    tp_group: dist.ProcessGroup | None = None,
    first_trained_row: int = 0,
    with_accuracy: bool = False,
    chunk_tokens: int | None = None,
) -> tuple[torch.Tensor, TokenScores]:
    """Sum over tokens of -log softmax(weight @ hidden)[target], a scalar in fp32 that can be differentiated once.

    hidden [rows, length, H]; weight [V, H], with `tp_group` this rank's equal slice of the vocabulary; both of one
    float type (under autocast of any). targets int64 [rows, length], IGNORED where nothing is predicted. The gradient
    of the weight's rows below `first_trained_row` (counted in the whole vocabulary) is exactly 0; that of `hidden` is
    complete, on every rank of `tp_group`. `chunk_tokens` are taken at a time, by default as many as CHUNK_LOGITS_BYTES
    allow. Sums and the weight's gradient are kept in fp32, or in fp64 if the inputs are.
    """
    if has_torch_function((hidden, weight)):  # gemini's parameters: its hooks fetch the chunk that holds the weight
        return handle_torch_function(
            linear_cross_entropy,
            (hidden, weight),
            hidden,
            weight,
            targets,
            tp_group=tp_group,
            first_trained_row=first_trained_row,
            with_accuracy=with_accuracy,
            chunk_tokens=chunk_tokens,
        )
    if chunk_tokens is None:
        chunk_tokens = max(1, CHUNK_LOGITS_BYTES // (4 * len(weight)))
    head = _Head(tp_group, first_trained_row, chunk_tokens, with_accuracy, torch.is_grad_enabled())
    loss_sum, nats, correct = _LinearCrossEntropy.apply(hidden, weight, targets, head)
    return loss_sum, TokenScores(nats, correct)


class _LinearCrossEntropy(torch.autograd.Function):
    """Everything is done going forward, gradients too; going backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, head: _Head
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        ctx.weight_dtype, ctx.hidden_dtype = weight.dtype, hidden.dtype
        ctx.first_row = min(max(0, head.first_trained_row - head.row_offset(len(weight))), len(weight))
        needs_hidden, needs_weight = (head.has_gradients and needed for needed in ctx.needs_input_grad[:2])
        with torch.autocast(device, enabled=False):
            gradients = _Gradients(
                torch.zeros_like(hidden, dtype=dtype) if needs_hidden else None,
                weight.new_zeros((len(weight) - ctx.first_row, weight.shape[1]), dtype=_sum_dtype(dtype))
                if needs_weight
                else None,
            )
            nats, correct = _walk(hidden, weight.to(dtype), targets, head, gradients)
        if gradients.hidden is not None:
            head.all_reduce(gradients.hidden)
        ctx.save_for_backward(gradients.hidden, gradients.weight)
        ctx.mark_non_differentiable(nats, *([] if correct is None else [correct]))
        return nats.sum(), nats, correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor, *_: Any) -> tuple[torch.Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        if hidden_gradient is not None:
            hidden_gradient = (hidden_gradient.to(scale.dtype) * scale).to(ctx.hidden_dtype)
        if weight_gradient is not None:
            # in place: it is the largest tensor here; torch refuses to go backward a second time after it
            weight_gradient = weight_gradient.mul_(scale).to(ctx.weight_dtype)
            if ctx.first_row:
                weight_gradient = F.pad(weight_gradient, (0, 0, ctx.first_row, 0))
        return hidden_gradient, weight_gradient, None, None


@dataclass(frozen=True)
class _Gradients:
    """What the walk over the chunks fills; None where nobody needs it."""

    hidden: torch.Tensor | None
    """[rows, length, H] in the matrix products' own type."""
    weight: torch.Tensor | None
    """The trained rows [trained, H] in fp32: rounding does not grow with the number of chunks."""


def _sum_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _walk(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, head: _Head, gradients: _Gradients
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(nats, correct) of every position, chunk by chunk; adds to `gradients` on the way."""
    flat_hidden, flat_targets = hidden.flatten(0, -2), targets.flatten()
    nats = hidden.new_zeros(len(flat_targets), dtype=_sum_dtype(weight.dtype))
    correct = torch.zeros_like(flat_targets, dtype=torch.bool) if head.with_accuracy else None
    for start in range(0, len(flat_targets), head.chunk_tokens):
        chunk = slice(start, start + head.chunk_tokens)
        chunk_hidden, chunk_targets = flat_hidden[chunk].to(weight.dtype), flat_targets[chunk]
        logits = (chunk_hidden @ weight.T).to(nats.dtype)
        if correct is not None:
            correct[chunk] = _predicted(logits, head) == chunk_targets
        nats[chunk] = _nats(logits, chunk_targets, head)
        if gradients.hidden is not None or gradients.weight is not None:
            logits_gradient = logits.to(weight.dtype)
            del logits
            _add_gradients(logits_gradient, chunk, chunk_hidden, weight, gradients)
    return nats.view_as(targets), None if correct is None else correct.view_as(targets)


def _nats(logits: torch.Tensor, targets: torch.Tensor, head: _Head) -> torch.Tensor:
    """-log softmax(logits)[target] for logits [tokens, V], 0 where the target is IGNORED; leaves its gradient by the
    logits in their place. To leave such tokens out altogether, the host would have to wait for their number."""
    logits -= head.all_reduce(logits.amax(-1), dist.ReduceOp.MAX).unsqueeze(1)
    is_target = targets != IGNORED
    columns = targets - head.row_offset(logits.shape[1])
    is_here = is_target & (columns >= 0) & (columns < logits.shape[1])
    columns = columns.where(is_here, 0).unsqueeze(1)
    target_logits = logits.gather(1, columns).squeeze(1).where(is_here, 0)
    sums = head.all_reduce(torch.stack([logits.exp_().sum(-1), target_logits]))
    if head.has_gradients:
        logits *= (is_target / sums[0]).unsqueeze(1)
        logits.scatter_add_(1, columns, -is_here.to(logits.dtype).unsqueeze(1))
    return (sums[0].log() - sums[1]).where(is_target, 0)


def _predicted(logits: torch.Tensor, head: _Head) -> torch.Tensor:
    """The id of the largest logit of each token, the lowest id of equal ones."""
    maxima, ids = logits.max(-1)
    ids += head.row_offset(logits.shape[1])
    is_largest = maxima == head.all_reduce(maxima.clone(), dist.ReduceOp.MAX)
    return head.all_reduce(ids.where(is_largest, torch.iinfo(ids.dtype).max), dist.ReduceOp.MIN)


def _add_gradients(
    logits_gradient: torch.Tensor,
    chunk: slice,
    chunk_hidden: torch.Tensor,
    weight: torch.Tensor,
    gradients: _Gradients,
) -> None:
    """A chunk's share in both gradients, from its gradient by the logits [tokens, V]; `chunk` are its positions."""
    if gradients.hidden is not None:
        gradients.hidden.flatten(0, -2)[chunk] = logits_gradient @ weight
    if gradients.weight is not None:
        trained = logits_gradient[:, len(weight) - len(gradients.weight) :]
        for columns, rows in zip(
            trained.split(WEIGHT_ROWS_AT_ONCE, dim=1), gradients.weight.split(WEIGHT_ROWS_AT_ONCE), strict=True
        ):
            rows += columns.T @ chunk_hidden
