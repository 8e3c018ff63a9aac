"""What one rank holds of the model under --tp and --pp: a shape comes in, tensors with this rank's entries go out.

Layers are dealt out as colossalai's stage_manager.distribute_layers does it: equal parts, what is left over to the
middle stages.
"""

from __future__ import annotations

from dataclasses import dataclass

from colossal_llama.planning.model_shape import EMBEDDING, ModelShape, Tensor

ROW_PARALLEL = ("o_proj", "down_proj")
"""Divided along their input: every rank has their whole bias."""


@dataclass(frozen=True)
class Held:
    """A parameter, and how many of its entries lie on a rank."""

    tensor: Tensor
    numel: int


def layers_per_stage(num_layers: int, num_stages: int) -> list[int]:
    """Decoder layers of each pipeline stage."""
    share, rest = divmod(num_layers, num_stages)
    first = num_stages // 2 - rest // 2
    return [share + (first <= stage < first + rest) for stage in range(num_stages)]


def held_by(shape: ModelShape, tp: int = 1, pp: int = 1, stage: int = 0) -> list[Held]:
    """What a rank of pipeline stage `stage` holds, in the model's order. Tied embeddings lie on both end stages."""
    counts = layers_per_stage(shape.num_hidden_layers, pp)
    first = sum(counts[:stage])
    layers = range(first, first + counts[stage])
    is_last = stage == pp - 1
    found = []
    for tensor in shape.tensors():
        if tensor.name == EMBEDDING:
            is_here = stage == 0 or (is_last and shape.tie_word_embeddings)
        else:
            is_here = tensor.layer in layers if tensor.layer is not None else is_last
        if is_here:
            found.append(Held(tensor, tensor.numel // (tp if is_divided(tensor) else 1)))
    return found


def is_divided(tensor: Tensor) -> bool:
    """Whether tensor parallelism divides it: every matrix, and the biases behind column-parallel layers."""
    if len(tensor.shape) == 2:
        return True
    is_bias = tensor.name.endswith(".bias")
    return is_bias and tensor.name.split(".")[-2] not in ROW_PARALLEL
