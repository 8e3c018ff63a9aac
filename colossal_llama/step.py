"""One optimizer step, with one signature for every plugin; the only file that knows what a pipeline does differently.

The loss is a mean over tokens: the sum over the loss-bearing tokens of the whole global batch divided by their number.
Plugins average gradients over `layout.num_averaged` ranks and add them over micro-batches, so each micro-batch's summed
loss is scaled by num_averaged / tokens; whatever the split, the gradient is that of one big batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from colossalai.booster import Booster
from colossalai.booster.plugin import HybridParallelPlugin, TorchDDPPlugin

from colossal_llama.batch import IGNORED, Batch
from colossal_llama.cluster import Layout, all_reduce_sum
from colossal_llama.loss import cross_entropy_sum, next_token_targets


@dataclass(frozen=True)
class StepResult:
    """Scalars of one step, still on the device: read them when the log line is due, not before."""

    loss: torch.Tensor
    """Mean over the loss-bearing tokens of the global batch."""
    num_tokens: torch.Tensor
    """Loss-bearing tokens of the global batch."""
    grad_norm: torch.Tensor | float
    """Global gradient norm before clipping."""


class Stepper:
    """Runs a boosted model over the micro-batches of a step."""

    def __init__(
        self,
        booster: Booster,
        model: Any,
        optimizer: Any,
        layout: Layout,
        device: torch.device,
        max_grad_norm: float,
        autocast_bf16: bool,
    ) -> None:
        self.booster, self.model, self.optimizer = booster, model, optimizer
        self.layout, self._device = layout, device
        self._max_grad_norm = max_grad_norm
        self._autocast_bf16 = autocast_bf16
        plugin = booster.plugin
        self._is_ddp = isinstance(plugin, TorchDDPPlugin)
        is_3d = isinstance(plugin, HybridParallelPlugin)
        self._is_pipeline = is_3d and plugin.pp_size > 1
        # One reduction a step where the plugin allows it; ZeRO 2 and gemini must reduce after every backward pass.
        self._can_delay_reduction = self._is_ddp or (is_3d and plugin.zero_stage < 2)

    def train(self, micro_batches: list[Batch], lr: float) -> StepResult:
        """Forward, backward and one optimizer step at learning rate `lr` over all of this rank's micro-batches."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batches = [batch.to(self._device) for batch in micro_batches]
        num_tokens = self._count_tokens(batches)
        scale = self.layout.num_averaged / num_tokens.clamp(min=1)
        forward_backward = self._pipeline if self._is_pipeline else self._plain
        loss_sum = forward_backward(batches, scale)
        if self._is_ddp:
            grad_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._max_grad_norm)
        self.optimizer.step()
        if not self._is_ddp:
            grad_norm = self.optimizer.get_grad_norm()
            if grad_norm is None:  # fp16: the gradients overflowed and the step was skipped
                grad_norm = float("nan")
        self.optimizer.zero_grad()
        return StepResult(self._total(loss_sum) / num_tokens.clamp(min=1), num_tokens, grad_norm)

    @torch.no_grad()
    def evaluate(self, micro_batches: list[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
        """(summed loss, number of tokens) of the global batch, without touching the model.

        Take as many micro-batches of the same size as in training: a pipeline keeps the shapes it has seen.
        """
        batches = [batch.to(self._device) for batch in micro_batches]
        num_tokens = self._count_tokens(batches)
        self.model.eval()
        if self._is_pipeline:
            loss_sum = self._pipeline(batches, torch.ones((), device=self._device))
        else:
            loss_sum = torch.stack([self._loss_sum(self._logits(batch), batch) for batch in batches]).sum()
        self.model.train()
        return self._total(loss_sum), num_tokens

    def _count_tokens(self, batches: list[Batch]) -> torch.Tensor:
        """Loss-bearing tokens of the global batch; a row's first token is never predicted."""
        own = torch.stack([(batch.labels[:, 1:] != IGNORED).sum() for batch in batches]).sum()
        return all_reduce_sum(own * self.layout.owns_rows)

    def _total(self, loss_sum: torch.Tensor) -> torch.Tensor:
        return all_reduce_sum(loss_sum.detach() * self.layout.owns_loss)

    def _logits(self, batch: Batch) -> torch.Tensor:
        with self._autocast():
            return self.model(input_ids=batch.input_ids).logits

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self._autocast_bf16:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)

    def _loss_sum(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        targets = next_token_targets(batch.labels, self.layout.sequence_rank, self.layout.sequence_size)
        return cross_entropy_sum(logits, targets, self.layout.tp_group)

    def _plain(self, batches: list[Batch], scale: torch.Tensor) -> torch.Tensor:
        total = torch.zeros((), device=self._device)
        for index, batch in enumerate(batches):
            with self._delayed_reduction(is_last=index == len(batches) - 1):
                loss_sum = self._loss_sum(self._logits(batch), batch)
                self.booster.backward(loss_sum * scale, self.optimizer)
            total += loss_sum.detach()
        return total

    def _delayed_reduction(self, is_last: bool) -> AbstractContextManager[Any]:
        if is_last or not self._can_delay_reduction:
            return nullcontext()
        return self.booster.no_sync(self.model, self.optimizer)

    def _pipeline(self, batches: list[Batch], scale: torch.Tensor) -> torch.Tensor:
        """All rows of the step at once: the schedule cuts them into its own micro-batches and adds their gradients."""
        rows = Batch(torch.cat([b.input_ids for b in batches]), torch.cat([b.labels for b in batches]))
        schedule = self.booster.plugin.scheduler
        labels = _microbatches(rows.labels, schedule.microbatch_size)
        num_microbatches = len(rows.labels) // schedule.microbatch_size
        total = torch.zeros((), device=self._device)

        def criterion(outputs: Any, _: Any) -> torch.Tensor:
            nonlocal total
            loss_sum = self._loss_sum(outputs.logits, Batch(rows.input_ids, next(labels)))
            total = total + loss_sum.detach()
            return loss_sum * scale * num_microbatches  # the schedule divides by it (one_f_one_b.py:272)

        optimizer = self.optimizer if torch.is_grad_enabled() else None
        source = iter([{"input_ids": rows.input_ids}])
        self.booster.execute_pipeline(source, self.model, criterion, optimizer, return_loss=False)
        return total


def _microbatches(labels: torch.Tensor, microbatch_size: int) -> Iterator[torch.Tensor]:
    """The labels in the order in which the schedule asks for their loss."""
    return iter(labels.split(microbatch_size))
