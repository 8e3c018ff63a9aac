"""What a real run would read, without its weights: flags come in; data, config and headers of files go out.

`find_data` and `find_model` are checks of the verdict: what they return says as a string what was found.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from colossal_llama import lora
from colossal_llama.architectures import check_architecture
from colossal_llama.config import TrainConfig
from colossal_llama.division import check_world, dp_size, model_parallel_size
from colossal_llama.model import load_config
from colossal_llama.progress import Progress
from colossal_llama.rehearsal.real_model import check_weights
from colossal_llama.row_health import num_old_rows
from colossal_llama.run_plan import make_plan
from colossal_llama.start import find_start
from data_tools.bins import open_bins
from tokenizer_tools.command import UserError
from tokenizer_tools.lineage import refuse_swapped

PLANNED_PROCESSES = (8, 64)


@dataclass(frozen=True)
class Data:
    """Rows of one epoch of --dataset, and the longest row of it and of the evaluation sets, in tokens."""

    num_rows: int
    row_length: int
    line: str

    def __str__(self) -> str:
        return self.line


@dataclass(frozen=True)
class Model:
    """Where the real run would begin."""

    directory: Path
    hf_config: Any
    """transformers' config of it."""
    num_old: int | None
    """Rows of the old vocabulary; None if init_model has added none."""
    notes: list[str]
    """What the user has to know and what is no failure."""
    line: str

    def __str__(self) -> str:
        return self.line


def without_what_is_to_come(config: TrainConfig) -> tuple[TrainConfig, list[str]]:
    """`config` without a --load_checkpoint that an earlier run has yet to write, and a note about it."""
    given = config.load_checkpoint
    if given is None or given.exists():
        return config, []
    note = f"--load_checkpoint {given}: not there yet; the run will refuse to start until it is. Rehearsed without it"
    return replace(config, load_checkpoint=None), [f"warning: {note}"]


def find_data(config: TrainConfig) -> Data:
    """Open --dataset and the evaluation sets."""
    bins = open_bins(config.dataset)
    lengths = [bins.max_length, *(open_bins([path]).max_length for path in config.eval_sets.values())]
    num_tokens = sum(one.num_tokens for one in bins.bins)
    line = f"{bins.num_rows:,} rows of up to {bins.max_length:,} tokens, {num_tokens:,} in all"
    if config.eval_sets:
        line += f"; evaluation sets: {', '.join(config.eval_sets)}"
    return Data(bins.num_rows, max(lengths), line)


def find_model(config: TrainConfig, data: Data) -> Model:
    """What the real run would begin from, checked by its config and by the headers of its files."""
    begins = find_start(config)
    hf_config = load_config(begins.model_dir)
    notes = [f"warning: {line}" for line in check_architecture(hf_config, config, data.row_length)]
    check_world(config, model_parallel_size(config), hf_config.vocab_size, data.row_length)
    refuse_swapped(begins.model_dir, "tokenizer")
    if begins.checkpoint is not None:
        step = begins.checkpoint.progress.step
        notes.append(f"the real run would go on from {begins.checkpoint.path}, after step {step}; not rehearsed")
    directories = {config.pretrained, begins.model_dir if begins.checkpoint is None else config.pretrained}
    lines = [
        f"{directory}: {check_weights(directory, load_config(directory))}"
        for directory in sorted(directories)
        if not lora.is_adapter(directory)
    ]
    return Model(begins.model_dir, hf_config, num_old_rows(config.pretrained), notes, "; ".join(lines))


def planned(config: TrainConfig, data: Data) -> list[str]:
    """Steps of the real run on some numbers of processes, or why its stages do not fit there."""
    lines = []
    for processes in PLANNED_PROCESSES:
        room_per_step = config.micro_batch_size * config.accumulation_steps * dp_size(config, processes)
        rows_per_step = config.global_batch_size or room_per_step
        if processes % model_parallel_size(config):
            continue
        try:
            plan = make_plan(config, Progress(seed=config.seed), data.num_rows, rows_per_step)
        except UserError as error:
            lines.append(f"warning: on {processes} processes: {error}")
        else:
            lines.append(f"the real run on {processes} processes: {plan.total_steps:,} steps of {rows_per_step:,} rows")
    return lines
