"""The optimizer: a model comes in, AdamW over its trainable parameters in groups goes out.

A group says `is_embedding`, so that the step can write the learning rate of the embeddings into theirs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

BETAS = (0.9, 0.95)  # the usual pair of LLaMA pre-training (Touvron et al. 2023, arXiv:2302.13971)


def parameter_groups(
    model: PreTrainedModel, lr: float, embeds_lr: float, weight_decay: float, decay_embeddings: bool = True
) -> list[dict[str, Any]]:
    """Trainable parameters in as few groups as their settings allow, none of them empty.

    Matrices decay, norms and biases (one dimension) do not. The input and output embeddings are matrices too, and have
    a group of their own only if their learning rate differs from `lr`. They do not decay where only new rows of them
    train (`decay_embeddings` off): decay would move the old rows as well, which have no gradient.
    """
    embeddings = {id(layer.weight) for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        is_embedding = id(parameter) in embeddings
        decays = parameter.dim() >= 2 and (decay_embeddings or not is_embedding)
        if parameter.requires_grad:
            key = (is_embedding and embeds_lr != lr, weight_decay if decays else 0.0)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "lr": embeds_lr if apart else lr, "weight_decay": decay, "is_embedding": apart}
        for (apart, decay), parameters in sorted(groups.items(), key=lambda item: (item[0][0], -item[0][1]))
    ]


def make_optimizer(
    model: PreTrainedModel,
    lr: float,
    weight_decay: float,
    for_gemini: bool,
    embeds_lr: float | None = None,
    decay_embeddings: bool = True,
) -> torch.optim.Optimizer:
    """AdamW. Gemini takes only colossalai's own (zero/gemini/gemini_optimizer.py:121); the others need no compiler.

    `embeds_lr`: the learning rate of the embeddings; None for that of the rest. For the groups see `parameter_groups`.
    """
    groups = parameter_groups(model, lr, lr if embeds_lr is None else embeds_lr, weight_decay, decay_embeddings)
    if not for_gemini:
        return torch.optim.AdamW(groups, lr=lr, betas=BETAS, fused=True)
    from colossalai.nn.optimizer import HybridAdam

    from colossal_llama.mends import cast_gradients_to_fp32

    optimizer = HybridAdam(groups, lr=lr, betas=BETAS)
    cast_gradients_to_fp32(optimizer)
    return optimizer


def trained_shapes(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the optimizer's parameters, group after group: entry i belongs to Booster's id i.

    Take them before Booster does: it replaces the optimizer's parameters by slices, and under a pipeline drops those
    of other stages, while its ids count over the whole model.
    """
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    return {name_of[id(parameter)]: tuple(parameter.shape) for parameter in parameters}
