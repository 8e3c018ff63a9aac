"""Optimizer, parameter groups and the schedule, a pure function of the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

BETAS = (0.9, 0.95)  # the usual pair of LLaMA pre-training (Touvron et al. 2023, arXiv:2302.13971)
WARMUP_SHARE = 0.025
FLOOR_SHARE = 0.1


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices decay, norms and biases (one dimension) do not. None is empty."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, lr: float, weight_decay: float, for_gemini: bool) -> torch.optim.Optimizer:
    """AdamW. Gemini takes only colossalai's own (zero/gemini/gemini_optimizer.py:121); the others need no compiler."""
    groups = parameter_groups(model, weight_decay)
    if not for_gemini:
        return torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=True)
    from colossalai.nn.optimizer import HybridAdam

    from colossal_llama.mends import cast_gradients_to_fp32

    optimizer = HybridAdam(groups, lr=lr, betas=BETAS)
    cast_gradients_to_fp32(optimizer)
    return optimizer


def default_warmup_steps(total_steps: int) -> int:
    """0.025 of all steps, rounded down, as the pipeline's flag has always meant it."""
    return int(WARMUP_SHARE * total_steps)


def lr_at(step: int, total_steps: int, warmup_steps: int, peak_lr: float) -> float:
    """Learning rate of `step` (0 is the first): linear warm-up, cosine to 0.1 of the peak, then flat.

    The peak is reached at step `warmup_steps - 1`, the floor at step `total_steps - 1`; later steps stay at the floor.
    """
    if step < warmup_steps:
        return peak_lr * ((step + 1) / warmup_steps)  # exactly the peak at the end
    decay_steps = max(1, total_steps - 1 - warmup_steps)
    progress = min(1.0, (step - warmup_steps) / decay_steps)
    return peak_lr * (FLOOR_SHARE + (1 - FLOOR_SHARE) * 0.5 * (1 + math.cos(math.pi * progress)))
