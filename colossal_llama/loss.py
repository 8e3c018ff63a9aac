"""Logits and labels -> the summed cross entropy of this rank's tokens, in fp32 under every parallel layout.

The model is run without labels on purpose: colossalai's own loss is a mean per micro-batch, summed in 16 bits without
tp (shardformer/layer/loss.py:217) and NaN for a micro-batch without labels. Here it is a sum, 0 if there is no label.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812  the name everybody knows

from colossal_llama.batch import IGNORED


def next_token_targets(labels: torch.Tensor, sequence_rank: int = 0, sequence_size: int = 1) -> torch.Tensor:
    """labels [rows, length] -> what each position predicts [rows, length / sequence_size], this rank's slice of it.

    The last position of a row predicts nothing.
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return targets.chunk(sequence_size, dim=1)[sequence_rank]


def cross_entropy_sum(
    logits: torch.Tensor, targets: torch.Tensor, tp_group: dist.ProcessGroup | None = None
) -> torch.Tensor:
    """Sum over tokens of -log p(target), a scalar in fp32.

    logits [rows, length, vocabulary] in any float type; with `tp_group` its last axis is this rank's equal slice of the
    vocabulary. targets [rows, length], int64, IGNORED where nothing is predicted.
    """
    flat_logits = logits.flatten(0, 1).float()
    flat_targets = targets.flatten()
    if tp_group is None:
        return F.cross_entropy(flat_logits, flat_targets, ignore_index=IGNORED, reduction="sum")
    from colossalai.shardformer.layer import cross_entropy_1d

    return cross_entropy_1d(
        flat_logits, flat_targets, ignore_index=IGNORED, process_group=tp_group, dtype=torch.float32, mode="sum"
    )
