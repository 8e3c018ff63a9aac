"""One optimizer step, with one signature for every plugin; the only file that knows what a pipeline does differently.

The loss is a mean over tokens: the sum over the loss-bearing tokens of the whole global batch divided by their number.
Plugins average gradients over `layout.num_averaged` ranks and add them over micro-batches, so each micro-batch's summed
loss is scaled by num_averaged / tokens; whatever the split, the gradient is that of one big batch.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from colossalai.booster import Booster
from colossalai.booster.plugin import HybridParallelPlugin, TorchDDPPlugin

from colossal_llama.batch import IGNORED, Batch, joined
from colossal_llama.cluster import Layout, all_reduce_sum
from colossal_llama.document_mask import DocumentMask, model_inputs
from colossal_llama.guard import Guard
from colossal_llama.head import LossHead
from colossal_llama.loss import TokenScores, next_token_targets
from colossal_llama.text_bytes import TextBytes

SUMS = ("tokens", "nats", "correct", "text_nats", "bytes")
"""Columns of `Stepper.evaluate`; text_nats are those of tokens that spell text, which `bytes` counts."""


@dataclass(frozen=True)
class StepResult:
    """Figures of one step, still on the device: read them when the log line is due, not before."""

    loss: torch.Tensor
    """Mean over the loss-bearing tokens of the global batch."""
    num_tokens: torch.Tensor
    """Loss-bearing tokens of the global batch."""
    grad_norm: torch.Tensor | float
    """Global gradient norm before clipping."""
    is_bad: torch.Tensor
    """1 if the guard found the step bad, else 0."""
    category_nats: torch.Tensor
    """[categories] summed loss."""
    category_tokens: torch.Tensor
    """[categories] loss-bearing tokens."""
    row_nats: torch.Tensor
    """[rows of the step] summed loss."""
    row_tokens: torch.Tensor
    """[rows of the step] loss-bearing tokens."""
    row_ids: torch.Tensor
    """[rows of the step] `Batch.row_ids` as the ranks have read them, float64; wrong where a row was read twice."""


@dataclass(frozen=True)
class StepSettings:
    """What a run decides about its steps once and for all."""

    max_grad_norm: float
    autocast_bf16: bool
    document_mask: DocumentMask
    room_per_step: int
    """Rows that the ranks' micro-batches hold together, blank ones included."""
    num_categories: int


class Stepper:
    """Runs a boosted model, whose head answers with the summed loss, over the micro-batches of a step."""

    def __init__(
        self,
        booster: Booster,
        model: Any,
        optimizer: Any,
        head: LossHead | None,
        guard: Guard,
        layout: Layout,
        device: torch.device,
        settings: StepSettings,
    ) -> None:
        self.booster, self.model, self.optimizer = booster, model, optimizer
        self._head, self.guard = head, guard
        self.layout, self._device, self._settings = layout, device, settings
        self._row_places: torch.Tensor | None = None
        plugin = booster.plugin
        self._is_ddp = isinstance(plugin, TorchDDPPlugin)
        is_3d = isinstance(plugin, HybridParallelPlugin)
        self.is_pipeline = is_3d and plugin.pp_size > 1
        # One reduction a step where the plugin allows it; ZeRO 2 and gemini must reduce after every backward pass.
        self._can_delay_reduction = self._is_ddp or (is_3d and plugin.zero_stage < 2)

    def set_learning_rates(self, lr: float, embeds_lr: float) -> None:
        """For the next step: of the embeddings, if they have a parameter group of their own, and of the rest."""
        for group in self.optimizer.param_groups:
            group["lr"] = embeds_lr if group["is_embedding"] else lr

    def train(self, micro_batches: list[Batch], first_row: int) -> StepResult:
        """Forward, backward and one optimizer step over all of this rank's micro-batches.

        `first_row` is the number of the global batch's first row.
        """
        batches = [batch.to(self._device) for batch in micro_batches]
        num_tokens = self._count_tokens(batches)
        scale = self.layout.num_averaged / num_tokens.clamp(min=1)
        passes = self._pipeline(batches, scale) if self.is_pipeline else self._plain(batches, scale)
        by_category, by_row = self._training_sums(batches, first_row, passes)
        loss = (by_category[0].sum() / num_tokens.clamp(min=1)).float()
        norm = None
        if self._is_ddp:
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._settings.max_grad_norm)
        self.guard.judge(loss, norm)
        self.optimizer.step()
        is_bad = self.guard.verdict(loss)
        self.optimizer.zero_grad()
        return StepResult(loss, num_tokens, self.guard.grad_norm, is_bad, *by_category, *by_row)

    @torch.no_grad()
    def evaluate(self, micro_batches: list[Batch], num_categories: int, text: TextBytes) -> torch.Tensor:
        """Sums of the global batch for each category, float64 [categories, len(SUMS)], without touching the model.

        Take as many micro-batches of the same size as in training: a pipeline keeps the shapes it has seen.
        """
        batches = [batch.to(self._device) for batch in micro_batches]
        passes = self.score(batches)
        rows = joined(batches)
        sums = torch.zeros(num_categories, len(SUMS), dtype=torch.float64, device=self._device)
        if self.layout.owns_loss:
            nats = torch.cat([scores.nats for scores in passes])
            correct = torch.cat([scores.correct for scores in passes if scores.correct is not None])
            is_scored = self._targets(rows.labels) != IGNORED
            num_bytes, is_text = (self._targets(v) for v in text.count(rows.input_ids, rows.position_ids))
            columns = (is_scored, nats, correct, nats * (is_text == 1), num_bytes * is_scored)
            stacked = torch.stack([column.flatten().double() for column in columns], dim=1)
            sums.index_add_(0, self._targets(rows.categories).clamp(min=0).flatten(), stacked)
        return all_reduce_sum(sums)

    @torch.no_grad()
    def score(self, micro_batches: list[Batch]) -> list[TokenScores]:
        """What each pass's predictions were worth, without touching the model; nothing where no head is.

        A pipeline keeps the shapes it has seen: give it as many micro-batches of the same size as in training.
        """
        batches = [batch.to(self._device) for batch in micro_batches]
        self.model.eval()
        if self.is_pipeline:
            passes = self._pipeline(batches, torch.ones((), device=self._device))
        else:
            passes = [self._pass(batch)[1] for batch in batches]
        self.model.train()
        return passes

    def _targets(self, values: torch.Tensor) -> torch.Tensor:
        """What belongs to the token that each position predicts, in this rank's slice of the sequence."""
        return next_token_targets(values, self.layout.sequence_rank, self.layout.sequence_size)

    def _count_tokens(self, batches: list[Batch]) -> torch.Tensor:
        """Loss-bearing tokens of the global batch; a row's first token is never predicted."""
        own = torch.stack([(batch.labels[:, 1:] != IGNORED).sum() for batch in batches]).sum()
        return all_reduce_sum(own * self.layout.owns_rows)

    def _training_sums(
        self, batches: list[Batch], first_row: int, passes: list[TokenScores]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Over all ranks, float64: summed loss and number of tokens [2, categories]; the same and the ids [3, rows]."""
        sizes = (self._settings.num_categories, self._settings.room_per_step)
        sums = torch.zeros(3, sum(sizes), dtype=torch.float64, device=self._device)
        rows = joined(batches)
        if self._row_places is None:  # the same in every step, and to copy them would be to wait for the device
            places = [number - first_row for number in rows.row_numbers]
            self._row_places = sizes[0] + torch.tensor(places, device=self._device)
        if self.layout.owns_rows:
            sums[2].index_add_(0, self._row_places, rows.row_ids.double())
        if self.layout.owns_loss:
            nats = torch.cat([scores.nats for scores in passes]).double()
            tokens = (self._targets(rows.labels) != IGNORED).double()
            category = self._targets(rows.categories).clamp(min=0).flatten()
            for line, values in enumerate((nats, tokens)):
                sums[line].index_add_(0, category, values.flatten()).index_add_(0, self._row_places, values.sum(1))
        by_category, by_row = all_reduce_sum(sums).split(sizes, dim=1)
        return by_category[:2], by_row

    def _pass(self, batch: Batch) -> tuple[torch.Tensor, TokenScores]:
        """(summed loss, scores) of one forward pass."""
        assert self._head is not None, "without a pipeline every rank holds the head"
        self._head.expect([self._targets(batch.labels)])
        with self._autocast():
            loss_sum = self.model(**model_inputs(batch, self._settings.document_mask)).logits
        return loss_sum, self._head.take()[0]

    def _autocast(self) -> AbstractContextManager[Any]:
        if not self._settings.autocast_bf16:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=torch.bfloat16)

    def _plain(self, batches: list[Batch], scale: torch.Tensor) -> list[TokenScores]:
        passes = []
        for index, batch in enumerate(batches):
            with self._delayed_reduction(is_last=index == len(batches) - 1):
                loss_sum, scores = self._pass(batch)
                self.booster.backward(loss_sum * scale, self.optimizer)
            passes.append(scores)
        return passes

    def _delayed_reduction(self, is_last: bool) -> AbstractContextManager[Any]:
        if is_last or not self._can_delay_reduction:
            return nullcontext()
        return self.booster.no_sync(self.model, self.optimizer)

    def _pipeline(self, batches: list[Batch], scale: torch.Tensor) -> list[TokenScores]:
        """All rows of the step at once: the schedule cuts them into its own micro-batches and adds their gradients."""
        rows = joined(batches)
        microbatch_size = self.booster.plugin.scheduler.microbatch_size
        num_microbatches = len(rows.labels) // microbatch_size
        if self._head is not None:
            self._head.expect(list(self._targets(rows.labels).split(microbatch_size)))

        def criterion(outputs: Any, _: Any) -> torch.Tensor:
            return outputs.logits * scale * num_microbatches  # the schedule divides by it (one_f_one_b.py:272)

        optimizer = self.optimizer if torch.is_grad_enabled() else None
        source = iter([model_inputs(rows, self._settings.document_mask)])
        self.booster.execute_pipeline(source, self.model, criterion, optimizer, return_loss=False)
        return self._head.take() if self._head is not None else []
