"""The flags of a rehearsal: those of the real run come in, small ones with every switch of theirs go out. No torch.

What is said to the user about it are the differences themselves, each with its reason (`changed`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.config import TP_SHARED_SP_MODES, TrainConfig

STEPS_OF_A_STAGE = 3
SAVE_INTERVAL = 2
MICRO_BATCH_TOKENS = 4096
ACCUMULATION_STEPS = 2
EVALUATED_ROWS = 4

WHY = {
    "pretrained": "a model of the same architecture, with small widths and random weights",
    "load_checkpoint": "weights of the real size do not go into it",
    "save_dir": "nothing is written into the real one",
    "tensorboard_dir": "nothing is written into the real one",
    "config_file": "nothing is written there",
    "wandb_project": "the real project is left alone",
    "max_steps": "a few steps of each stage",
    "stages": "a few steps of each stage",
    "warmup_steps": "shorter than a stage",
    "num_epochs": "enough rows for these steps",
    "micro_batch_size": "as much as a CPU computes in a moment",
    "global_batch_size": "as much as a CPU computes in a moment",
    "accumulation_steps": "as much as a CPU computes in a moment",
    "max_eval_samples": "as much as a CPU computes in a moment",
    "eval_interval": "at the end of each stage it is evaluated anyway",
    "save_interval": "a checkpoint inside every stage",
    "keep_checkpoints": "less disk",
    "log_interval": "each step is compared",
    "time_limit": "the kill is the stop that is rehearsed",
    "mixed_precision": "fp16 cannot be right on a CPU",
    "tp": "fewer processes",
    "pp": "fewer processes",
    "sp": "fewer processes, and an exact resume",
}
SILENT = ("rehearse", "overwrite", "restart_data")
"""Of no meaning in an empty --save_dir."""


@dataclass(frozen=True)
class Layout:
    """How some processes stand in for the cluster: `dp_size` groups of them read rows of their own."""

    tp: int
    pp: int
    sp: int
    dp_size: int
    world_size: int

    def divisor(self, sp_mode: str) -> int:
        """What the heads of the model must be a multiple of."""
        return math.lcm(self.tp, self.sp if sp_mode == "all_to_all" else 1)


def num_stages(config: TrainConfig) -> int:
    """Stages of the run: one where --stages names none."""
    return max(1, len(config.stages))


def num_steps(config: TrainConfig) -> int:
    """Steps of the rehearsal."""
    return STEPS_OF_A_STAGE * num_stages(config)


def kill_after(config: TrainConfig) -> int:
    """The rehearsal is killed once it has a checkpoint of a later step than this: one inside its last stage."""
    return STEPS_OF_A_STAGE * (num_stages(config) - 1)


def small_layout(config: TrainConfig, most_processes: int) -> Layout:
    """The layout of `config` on at most `most_processes` processes, if need be with smaller sizes that divide them.

    Two data-parallel groups where there is room for them. But torch's DDP (3d with --zero 0) averages over two ranks at
    most: after a start it adds up those of more in another order than later, and a resume would not be bit for bit.
    """
    shares_tp = config.sp_mode in TP_SHARED_SP_MODES and config.sp > 1
    sizes = {"tp": config.tp, "pp": config.pp, "sp": 1 if shares_tp else config.sp}
    most_averaged = 2 if config.plugin == "3d" and config.zero == 0 else most_processes
    while sizes["sp"] > most_averaged:
        sizes["sp"] = _next_divisor(sizes["sp"])
    while math.prod(sizes.values()) > most_processes and max(sizes.values()) > 1:
        largest = max(sizes, key=lambda name: sizes[name])
        sizes[largest] = _next_divisor(sizes[largest])
    ranks = math.prod(sizes.values())
    sp = sizes["tp"] if shares_tp else sizes["sp"]
    dp_size = 2 if 2 * ranks <= most_processes and 2 * sizes["sp"] <= most_averaged else 1
    return Layout(sizes["tp"], sizes["pp"], sp, dp_size, dp_size * ranks)


def _next_divisor(size: int) -> int:
    """The largest proper divisor."""
    return next(divisor for divisor in range(size // 2, 0, -1) if size % divisor == 0)


def rehearsed(
    config: TrainConfig, layout: Layout, row_length: int, num_rows: int, pretrained: Path, save_dir: Path
) -> TrainConfig:
    """The flags of a small run with every switch of `config`: the model `pretrained`, the data's own rows.

    row_length, num_rows: of the dataset, rows of one epoch.
    """
    micro_batch_size = max(1, min(config.micro_batch_size, MICRO_BATCH_TOKENS // row_length))
    accumulation_steps = min(config.accumulation_steps, ACCUMULATION_STEPS)
    if layout.pp > 1:  # as many micro-batches as pipeline stages at least
        accumulation_steps = max(accumulation_steps, -(-layout.pp // micro_batch_size))
    global_batch_size = config.global_batch_size
    if global_batch_size is not None:
        few = max(layout.pp, micro_batch_size * ACCUMULATION_STEPS * layout.dp_size)
        global_batch_size = min(global_batch_size, few)
    rows_per_step = global_batch_size or micro_batch_size * accumulation_steps * layout.dp_size
    steps = num_steps(config)
    return dataclasses.replace(
        config,
        rehearse=False,
        overwrite=False,
        restart_data=False,
        pretrained=pretrained,
        load_checkpoint=None,
        save_dir=save_dir,
        tensorboard_dir=None,
        config_file=None,
        wandb_project=None,
        time_limit=None,
        max_steps=steps,
        num_epochs=max(config.num_epochs, -(-steps * rows_per_step // num_rows)),
        stages=[scaled_stage(text) for text in config.stages],
        warmup_steps=config.warmup_steps and 1,
        micro_batch_size=micro_batch_size,
        accumulation_steps=accumulation_steps,
        global_batch_size=global_batch_size,
        max_eval_samples=min(config.max_eval_samples or EVALUATED_ROWS, EVALUATED_ROWS),
        eval_interval=max(config.eval_interval, steps),
        save_interval=SAVE_INTERVAL,
        keep_checkpoints=min(config.keep_checkpoints or SAVE_INTERVAL, SAVE_INTERVAL),
        log_interval=1,
        mixed_precision="bf16" if config.mixed_precision == "fp16" else config.mixed_precision,
        tp=layout.tp,
        pp=layout.pp,
        sp=layout.sp,
    )


def scaled_stage(text: str) -> str:
    """A word of --stages with fewer steps: all,steps=5000,warmup_steps=100 -> all,steps=3,warmup_steps=1"""
    train, *settings = text.split(",")
    return ",".join([train, *map(_scaled, settings)])


def _scaled(setting: str) -> str:
    key, _, value = setting.partition("=")
    small = {"steps": STEPS_OF_A_STAGE, "warmup_steps": min(1, int(value))} if key in ("steps", "warmup_steps") else {}
    return f"{key}={small.get(key, value)}"


def changed(real: TrainConfig, small: TrainConfig) -> Iterator[tuple[str, str]]:
    """(flag with its old and new value, reason) of each flag that the rehearsal does not take as it is.

    Of places only the old value: the new one is gone by the time that somebody reads this.
    """
    for field in dataclasses.fields(TrainConfig):
        old, new = getattr(real, field.name), getattr(small, field.name)
        if old != new and field.name not in SILENT:
            is_place = isinstance(old, Path)
            yield f"--{field.name} {_readable(old)}" + ("" if is_place else f" -> {_readable(new)}"), WHY[field.name]


def _readable(value: object) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "none" if value is None else str(value)
