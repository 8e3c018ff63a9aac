"""Where a run begins or goes on: flags come in; a model directory and, if there is one, a checkpoint go out.

A directory is what it holds, whatever its name: a checkpoint, a run, a model or an adapter.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from colossal_llama.changes import changed_figures, changed_flags, refusal
from colossal_llama.checkpoint import (
    LATEST,
    MODELING,
    OPTIMIZER,
    STATES,
    Checkpoint,
    latest_checkpoint,
    open_checkpoint,
    sound_checkpoint,
)
from colossal_llama.checkpoint_files import PARTIAL_SUFFIX, hide
from colossal_llama.cluster import main_rank_logger
from colossal_llama.config import TrainConfig
from colossal_llama.progress import Progress
from colossal_llama.run_lock import LOCK
from colossal_llama.run_plan import Plan
from tokenizer_tools.command import UserError
from tokenizer_tools.outputs import read_json, write_json

RUN_CONFIG = "train_config.json"
FIGURES = {
    "total_steps": "steps of the run",
    "next_lr": "learning rate of the next step",
    "next_embeds_lr": "learning rate of the embeddings in the next step",
}
"""What follows from the flags, by its key in a checkpoint's `lr_scheduler`."""

Kind = Literal["checkpoint", "run", "adapter", "model"]


@dataclass(frozen=True)
class Start:
    """Where the weights come from and where the rows go on."""

    model_dir: Path
    checkpoint: Checkpoint | None

    def checkpoint_in(self, save_dir: Path) -> Path | None:
        """Its checkpoint, if that is one of the run in `save_dir`."""
        if self.checkpoint is None or self.checkpoint.path.parent.resolve() != save_dir.resolve():
            return None
        return self.checkpoint.path


def kind_of(directory: Path) -> Kind | None:
    """What lies in `directory`, be it complete or not; None for none of these."""
    if (directory / STATES).is_file() or all((directory / n).is_dir() for n in (MODELING, OPTIMIZER)):
        return "checkpoint"
    if (directory / RUN_CONFIG).is_file() or (directory / LATEST).is_file():
        return "run"
    if (directory / "adapter_config.json").is_file():
        return "adapter"
    return "model" if (directory / "config.json").is_file() else None


def find_start(config: TrainConfig) -> Start:
    """The same command line starts a run and resumes it: a complete checkpoint in --save_dir wins over everything else.

    Then --load_checkpoint: a checkpoint, or the newest of a run, goes on; a model or an adapter gives its weights
    alone. Then --pretrained. Raises UserError if --save_dir holds something that is not a run, or --load_checkpoint
    nothing of these.
    """
    log, given = main_rank_logger(__name__), config.load_checkpoint
    _refuse_other_than_run(config.save_dir)
    checkpoint = None if config.overwrite else latest_checkpoint(config.save_dir)
    if checkpoint is not None and given is not None:
        log.info(
            f"--load_checkpoint {given} is left alone: --save_dir has {checkpoint.path.name}, from which the run goes "
            f"on; to go back to {given}, give a new --save_dir"
        )
    elif given is not None:
        checkpoint = _given_checkpoint(given)
    if checkpoint is not None:
        log.info(f"checkpoint {checkpoint.path}: weights, optimizer and position")
        return Start(checkpoint.modeling, checkpoint)
    if given is not None:
        log.info(f"--load_checkpoint {given}: its weights alone; the optimizer and the rows begin anew")
    return Start(given or config.pretrained, None)


def _refuse_other_than_run(save_dir: Path) -> None:
    if kind_of(save_dir) == "run" or not save_dir.is_dir():
        return
    names = {path.name for path in save_dir.iterdir() if not path.name.endswith(PARTIAL_SUFFIX)}
    if names - {LOCK}:  # beside what a kill at the very start leaves
        raise UserError(f"--save_dir {save_dir}: is not empty and holds no run; choose another directory")


def _given_checkpoint(given: Path) -> Checkpoint | None:
    """What --load_checkpoint goes on from; None if it gives weights alone."""
    kind = kind_of(given)
    if kind is None:
        raise UserError(
            f"--load_checkpoint {given}: holds no checkpoint ({STATES}), run ({LATEST}), model (config.json) "
            f"or adapter (adapter_config.json); name one of these"
        )
    if kind == "checkpoint":
        return open_checkpoint(given)
    checkpoint = latest_checkpoint(given) if kind == "run" else None
    if kind == "run" and checkpoint is None:
        raise UserError(
            f"--load_checkpoint {given}: a run without a complete checkpoint yet; name another one, or leave it away"
        )
    return checkpoint


def sound_start(start: Start) -> Start:
    """`start`, or the sound checkpoint before its own if a file of that is not what was saved. All ranks call it."""
    if start.checkpoint is None:
        return start
    checkpoint = sound_checkpoint(start.checkpoint)
    return Start(checkpoint.modeling, checkpoint)


def going_on(start: Start, now: Progress, restarts_data: bool) -> Start:
    """`start` with its checkpoint's position in a run whose seed, data and tokenizer are those of `now`.

    Raises UserError if they are not the checkpoint's: data and seed may be others where `restarts_data` says so.
    """
    if start.checkpoint is None:
        return start
    before = start.checkpoint.progress
    progress = before.going_on(now, restarts_data)
    if progress is not before:
        names = {"data_fingerprint": "data", "seed": "seed"}
        others = changed_figures(names, before.as_json(), progress.as_json())
        main_rank_logger(__name__).info(
            f"--restart_data: {', '.join(map(str, others))}; rows are read from the first one on, "
            f"{before.num_rows_seen:,} of the old order were"
        )
    return replace(start, checkpoint=replace(start.checkpoint, progress=progress))


def check_changes(start: Start, config: TrainConfig, plan: Plan, world_size: int) -> None:
    """Log every flag that is not the checkpoint's, as old -> new, and what follows from it.

    Raises UserError if it may not change while its stage is in progress.
    """
    if start.checkpoint is None:
        return
    path, progress = start.checkpoint.path, start.checkpoint.progress
    plan.check_goes_on(progress)
    old = read_json(path / RUN_CONFIG, "the flags of a checkpoint's run")
    flags = changed_flags(old, config.as_json(), progress.trained)
    reason = refusal(flags)
    if reason is not None:
        raise UserError(reason)
    processes = changed_figures({"world_size": "processes"}, start.checkpoint.manifest, {"world_size": world_size})
    schedule = read_json(path / "lr_scheduler", "where a checkpoint's schedule stands")
    log = main_rank_logger(__name__)
    for change in (*flags, *processes, *changed_figures(FIGURES, schedule, plan.schedule_after(progress.step))):
        log.info(f"changed: {change}")
    if progress.step >= plan.total_steps:
        log.info(f"nothing is left to train: {_why_nothing_is_left(config, plan, progress)}")


def _why_nothing_is_left(config: TrainConfig, plan: Plan, progress: Progress) -> str:
    if progress.num_rows_seen >= plan.end_row:
        return (
            f"every row was seen {progress.epoch} time(s) by step {progress.step}, --num_epochs is {config.num_epochs}"
        )
    return f"step {progress.step} is done, --max_steps is {config.max_steps}"


def open_save_dir(config: TrainConfig) -> None:
    """The last thing before the first step: with --overwrite the old run goes only now that the new one can begin."""
    if config.overwrite and config.save_dir.is_dir():
        shutil.rmtree(hide(config.save_dir.resolve()))
    write_json(config.save_dir / RUN_CONFIG, config.as_json())
    if config.config_file is not None:
        write_json(config.config_file, config.as_json())


def latest_start(config: TrainConfig) -> Start:
    """The beginning of a stage: where the stage before has ended."""
    checkpoint = latest_checkpoint(config.save_dir)
    assert checkpoint is not None, "every stage ends with a checkpoint"
    return Start(checkpoint.modeling, checkpoint)
