"""Keeps a bad step out of the weights: the step's loss and gradient norm come in, the optimizer trains or stands still.

A step is bad if its loss or its gradient norm is NaN or infinite, or if its loss leaps above the running mean. Nothing
here waits for the device where the optimizer can be told by a tensor (torch's fused AdamW leaves everything alone where
`found_inf` is 1); gemini's optimizer can only be told by the host, and has waited for its own gradient norm by then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from colossal_llama.loss_scale import KEEPERS

MEMORY = 0.98
"""Weight of the past in the running mean: it looks back about 50 steps."""
STEPS_TO_LEARN = 20
"""Steps before the mean is trusted to name a leap."""


@dataclass(frozen=True)
class RunningLoss:
    """An exponential mean of the accepted losses, as a checkpoint keeps it: `weighted_sum / weight`."""

    weighted_sum: float = 0.0
    weight: float = 0.0


class Guard:
    """Watches one boosted optimizer.

    `spike_threshold` is in nats a token above the running mean; 0 looks for NaN and infinity only. `is_active` False
    judges too, but lets every step train.
    """

    def __init__(
        self, optimizer: Any, spike_threshold: float, is_active: bool, device: torch.device, past: RunningLoss
    ) -> None:
        self._optimizer, self._is_active = optimizer, is_active
        self._spike_threshold = spike_threshold
        self._mean = torch.tensor([past.weighted_sum, past.weight], dtype=torch.float64, device=device)
        self._is_bad = torch.zeros((), dtype=torch.float32, device=device)
        self._given_norm: torch.Tensor | None = None
        self.grad_norm: torch.Tensor | float = math.nan
        """Gradient norm of the last step, before clipping; NaN if Booster left the step out (overflow under fp16)."""
        self._inner: torch.optim.Optimizer = getattr(optimizer, "optim", optimizer)
        self._inner.register_step_pre_hook(self._before_update)

    def judge(self, loss: torch.Tensor, grad_norm: torch.Tensor | None = None) -> None:
        """Take the loss of the step, a scalar that is the same on every rank, before `optimizer.step()`.

        `grad_norm` is given where the boosted optimizer does not know it (ddp).
        """
        weighted_sum, weight = self._mean
        is_bad = ~torch.isfinite(loss)
        if self._spike_threshold:
            has_learnt = weight > 1 - MEMORY ** (STEPS_TO_LEARN - 0.5)  # half a step for rounding
            is_bad |= has_learnt & (loss > weighted_sum / weight.clamp(min=1e-9) + self._spike_threshold)
        self._is_bad = is_bad.float()
        self._given_norm, self.grad_norm = grad_norm, math.nan

    def verdict(self, loss: torch.Tensor) -> torch.Tensor:
        """1 if the step was bad, else 0, after `optimizer.step()`; a good loss enters the running mean.

        A loss of exactly 0 is that of a step without any label, and says nothing.
        """
        entry = torch.stack([loss.double().nan_to_num(0.0, 0.0, 0.0), torch.ones_like(loss, dtype=torch.float64)])
        is_left_out = self._is_bad.bool() | (loss == 0)
        self._mean = torch.where(is_left_out, self._mean, MEMORY * self._mean + (1 - MEMORY) * entry)
        return self._is_bad

    def running_loss(self) -> RunningLoss:
        """For a checkpoint; waits for the device."""
        return RunningLoss(*self._mean.tolist())

    def _before_update(self, inner: Any, *_: Any) -> None:
        """The boosted optimizer knows the gradient norm by now, and has not yet touched a weight."""
        self.grad_norm = self._booster_norm() if self._given_norm is None else self._given_norm
        self._is_bad = torch.maximum(self._is_bad, _is_not_finite(self.grad_norm, self._is_bad))
        if not self._is_active:
            return
        if isinstance(inner, torch.optim.AdamW):
            weights = next((p for group in inner.param_groups for p in group["params"]), self._is_bad)
            inner.found_inf = self._is_bad.to(weights.device)  # type: ignore[attr-defined]  # torch/optim/adamw.py:239
        elif self._is_bad.item():
            for group in inner.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def _booster_norm(self) -> torch.Tensor | float:
        """Booster's gradient norm still carries fp16's loss scale (zero/low_level/low_level_optim.py:709)."""
        norm = self._optimizer.get_grad_norm()
        mixins = (getattr(self._optimizer, name, None) for name in KEEPERS)
        scale = next((mixin.loss_scale for mixin in mixins if mixin and hasattr(mixin, "loss_scale")), 1.0)
        return math.nan if norm is None else norm / scale


def _is_not_finite(norm: Any, like: torch.Tensor) -> torch.Tensor:
    if isinstance(norm, torch.Tensor):
        return (~torch.isfinite(norm)).to(like)
    return torch.full_like(like, not math.isfinite(norm))
