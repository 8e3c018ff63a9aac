"""A boosted model comes in; its output head answers with the summed loss where targets are expected, else with logits.

The model is run without labels, and transformers' and colossalai's forward functions then hand on what the head gives
as `.logits`: so no plugin, pipeline or wrapper has to know of the loss.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from colossal_llama.loss import TokenScores, linear_cross_entropy
from tokenizer_tools.command import UserError

LOGIT_CHANGES = ("logit_scale", "logits_scaling", "final_logit_softcapping", "logits_soft_cap")
"""Settings of transformers' models (Cohere; Granite; Gemma 2 and 3; RecurrentGemma) that change logits after the
output head."""


class LossHead:
    """The output head of a model, made to answer with the loss of expected targets."""

    def __init__(self, module: nn.Module, tp_group: dist.ProcessGroup | None, first_trained_row: int) -> None:
        self._module, self._tp_group, self._first_trained_row = module, tp_group, first_trained_row
        self._expected: deque[torch.Tensor] = deque()
        self._scores: list[TokenScores] = []
        self._logits = module.forward
        module.forward = self._answer

    def expect(self, targets: list[torch.Tensor]) -> None:
        """The next forward passes answer with the summed loss, an fp32 scalar.

        targets: int64 [rows, length] for each pass, in order; length is that of the hidden states on this rank.
        """
        self._expected.extend(targets)

    def take(self) -> list[TokenScores]:
        """The scores of every pass since the last call; `correct` is None in training mode.

        Raises RuntimeError if a pass that was announced did not take place.
        """
        if self._expected:
            raise RuntimeError(f"{len(self._expected)} announced forward passes did not reach the output head")
        scores, self._scores = self._scores, []
        return scores

    def _answer(self, hidden: torch.Tensor) -> torch.Tensor:
        if not self._expected:
            return self._logits(hidden)
        loss_sum, scores = linear_cross_entropy(
            hidden,
            self._module.weight,
            self._expected.popleft(),
            self._tp_group,
            self._first_trained_row,
            with_accuracy=not self._module.training,
        )
        self._scores.append(scores)
        return loss_sum


def fits_loss_head(config: Any) -> bool:
    """Whether a model of this transformers config gives out what its output head gives, unchanged."""
    return all(getattr(config, name, None) in (None, 1.0) for name in LOGIT_CHANGES)


def attach_loss_head(
    model: nn.Module, tp_group: dist.ProcessGroup | None = None, first_trained_row: int = 0
) -> LossHead | None:
    """Make the output head of a boosted model a LossHead; None on a rank of a pipeline that holds no head.

    tp_group: the group over which the head's rows are divided equally, if they are. Output rows below
    `first_trained_row` get a gradient of exactly 0. Raises UserError for a model whose loss cannot be had this way.
    """
    bare = bare_model(model)
    name = f"a {bare.config.model_type} model"
    if not fits_loss_head(bare.config):
        raise UserError(
            f"{name}: scales or caps its logits, which the loss here leaves out; train another architecture"
        )
    module = bare.get_output_embeddings()
    if module is None or module.weight is None:  # shardformer/shard/sharder.py:234: unheld layers keep no tensors
        return None
    tp_size = 1 if tp_group is None else dist.get_world_size(tp_group)
    if not _is_plain_matrix(module):
        raise UserError(f"{name}: its output head is more than one matrix; train without an adapter or a bias on it")
    if len(module.weight) * tp_size != bare.config.vocab_size:
        raise RuntimeError(
            f"the output head holds {len(module.weight)} rows on each of {tp_size} ranks, "
            f"which is not the vocabulary of {bare.config.vocab_size}"
        )
    return LossHead(module, tp_group, first_trained_row)


def mask_old_rows(model: nn.Module, first_trained_row: int) -> None:
    """Give the input embedding's rows below `first_trained_row` a gradient of exactly 0, under every plugin.

    A tied output matrix needs the same `first_trained_row` in attach_loss_head.
    """

    def detach_old(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        is_new = (inputs[0] >= first_trained_row).unsqueeze(-1)
        return torch.where(is_new, output, output.detach())

    bare_model(model).get_input_embeddings().register_forward_hook(detach_old)


def bare_model(model: nn.Module) -> Any:
    """The transformers model inside the wrappers of Booster and of torch's DDP; a PeftModel answers like one."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model


def _is_plain_matrix(module: nn.Module) -> bool:
    """Whether `module` computes weight @ hidden and nothing else: a layer without bias that no adapter wraps."""
    if not isinstance(module, nn.Linear):
        from colossalai.shardformer.layer import Linear1D_Col, PaddingLMHead  # seconds; the plain head needs none of it

        if not isinstance(module, Linear1D_Col | PaddingLMHead):
            return False
    return module.bias is None
