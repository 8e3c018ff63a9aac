"""How a run's ranks and rows are divided: flags and how many ranks come in, sizes or a UserError go out. No torch."""

from __future__ import annotations

import math
from dataclasses import replace

from colossal_llama.config import TP_SHARED_SP_MODES, TrainConfig
from tokenizer_tools.command import UserError


def pipeline_microbatch_size(micro_batch_size: int, accumulation_steps: int, pp: int) -> int:
    """The largest micro-batch of at most `micro_batch_size` rows that cuts a rank's rows into at least `pp` parts."""
    num_rows = micro_batch_size * accumulation_steps
    return max(size for size in range(1, micro_batch_size + 1) if num_rows % size == 0 and num_rows // size >= pp)


def dp_size(config: TrainConfig, world_size: int) -> int:
    """How many groups of ranks read rows of their own."""
    return world_size // model_parallel_size(config)


def accumulating(config: TrainConfig, num_readers: int) -> TrainConfig:
    """`config` with the --accumulation_steps that --global_batch_size asks of `num_readers` data-parallel ranks."""
    if config.global_batch_size is None:
        return config
    num_micro_batches = math.ceil(config.global_batch_size / (config.micro_batch_size * num_readers))
    of_pipeline = math.ceil(config.pp / config.micro_batch_size)  # a schedule with fewer rows than stages fails
    return replace(config, accumulation_steps=max(num_micro_batches, of_pipeline))


def model_parallel_size(config: TrainConfig) -> int:
    """Ranks that read the same rows; 1 without 3d, where no size is above 1."""
    return config.tp * config.pp * (1 if config.sp_mode in TP_SHARED_SP_MODES else config.sp)


def check_world(config: TrainConfig, world_size: int, vocab_size: int, row_length: int) -> None:
    """Raise UserError if this many ranks, this vocabulary or this row length cannot be divided as asked."""
    if config.plugin != "3d":
        return
    ranks = model_parallel_size(config)
    if world_size % ranks:
        raise UserError(
            f"{world_size} process(es): --tp {config.tp} x --pp {config.pp} x --sp "
            f"{ranks // config.tp // config.pp} needs a multiple of {ranks}; change --nproc_per_node or these sizes"
        )
    if vocab_size % config.tp:
        raise UserError(
            f"vocabulary of {vocab_size} pieces with --tp {config.tp}: each rank needs an equal slice; "
            f"use a --tp that divides it or expand with `init_tokenizer --pad_vocab_to_multiple_of {config.tp}`"
        )
    if row_length % config.sp:
        raise UserError(
            f"rows of {row_length} tokens with --sp {config.sp}: each rank needs an equal slice; "
            f"prepare the data with a --max_length that is a multiple of {config.sp}"
        )
