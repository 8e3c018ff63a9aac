"""How long a run takes: rows, stages and a cluster come in; steps, seconds, GPU hours and a price go out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from colossal_llama.config import TrainConfig
from colossal_llama.division import pipeline_microbatch_size
from colossal_llama.flops import flops_per_position, matrix_parameters
from colossal_llama.planning.cluster import PlannedCluster
from colossal_llama.planning.model_shape import EMBEDDING, HEAD, ModelShape
from colossal_llama.planning.trained import TrainedSet, is_linear

TERA = 10**12
DEFAULT_MFU = 0.37
MFU_SOURCE = "what 8.5 B tokens of LLaMA-2 7B in 15 h on 64 A800 come to"


@dataclass(frozen=True)
class Efficiency:
    """The share of the peak that is counted on (MFU), and why."""

    mfu: float
    source: str


def efficiency(config: TrainConfig, mfu: float | None) -> Efficiency:
    """`mfu` as it is, or the default, with what recomputation and a pipeline's idle time take off it."""
    if mfu is not None:
        return Efficiency(mfu, "--mfu")
    share, source = DEFAULT_MFU, MFU_SOURCE
    if config.use_grad_checkpoint:
        share *= 3 / 4
        source += "; x 3/4 for the second forward pass of --use_grad_checkpoint"
    if config.pp > 1:
        rows = pipeline_microbatch_size(config.micro_batch_size, config.accumulation_steps, config.pp)
        num_microbatches = config.micro_batch_size * config.accumulation_steps // rows
        share *= num_microbatches / (num_microbatches + config.pp - 1)
        source += f"; x {num_microbatches}/{num_microbatches + config.pp - 1} for the idle time of --pp {config.pp}"
    return Efficiency(share, source)


def position_flops(shape: ModelShape, trained: TrainedSet, length: int, num_old_rows: int = 0) -> int:
    """Operations of one position, forward and backward, as train.py counts them for the MFU of its log."""
    _, head = matrix_parameters(shape)
    num_added = sum(tensor.numel for tensor in trained.added)
    num_trained = num_added + sum(
        tensor.numel for tensor in shape.tensors() if trained.trains(tensor) and is_linear(tensor)
    )
    if (EMBEDDING if shape.tie_word_embeddings else HEAD) in trained.names:
        num_trained += head
    if trained.kind == "new_rows":
        num_trained -= num_old_rows * shape.hidden_size
    return flops_per_position(shape, length, num_trained, num_added)


def seconds_per_step(flops: float, positions: int, cluster: PlannedCluster, mfu: float) -> float:
    """Of one optimizer step over `positions` positions of `flops` each."""
    return flops * positions / (cluster.num_gpus * cluster.peak_tflops * TERA * mfu)


def implied_mfu(flops: float, positions_per_second: float, num_gpus: int, peak_tflops: float) -> float:
    """The MFU behind a published speed."""
    return flops * positions_per_second / (num_gpus * peak_tflops * TERA)


@dataclass(frozen=True)
class Amount:
    """What there is to read: one epoch's rows, and tokens of them without padding."""

    num_rows: int
    num_tokens: int
    row_length: int
    source: str


def num_steps(amount: Amount, rows_per_step: int, num_epochs: int, max_steps: int | None) -> int:
    """Optimizer steps of the run; the last one may be filled up with blank rows."""
    steps = math.ceil(amount.num_rows * num_epochs / rows_per_step)
    return steps if max_steps is None else min(steps, max_steps)
