"""Where a run begins or goes on: flags come in; a model directory and, if there is one, a checkpoint go out."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from colossal_llama.checkpoint import Checkpoint, latest_checkpoint, open_checkpoint
from colossal_llama.config import TrainConfig
from tokenizer_tools.command import UserError
from tokenizer_tools.outputs import write_json

RUN_CONFIG = "train_config.json"


@dataclass(frozen=True)
class Start:
    """Where the weights come from and where the rows go on."""

    model_dir: Path
    checkpoint: Checkpoint | None


def find_start(config: TrainConfig) -> Start:
    """The same command line starts a run and resumes it: a complete checkpoint in --save_dir wins over everything else.

    Then --load_checkpoint: a whole checkpoint goes on, any other model directory gives its weights alone. Then
    --pretrained. Raises UserError if --save_dir holds something that is not a run.
    """
    if config.save_dir.is_dir() and any(config.save_dir.iterdir()) and not _is_run(config.save_dir):
        raise UserError(f"--save_dir {config.save_dir}: is not empty and holds no run; choose another directory")
    checkpoint = None if config.overwrite else latest_checkpoint(config.save_dir)
    given = config.load_checkpoint
    if given is not None and _is_run(given):
        raise UserError(f"--load_checkpoint {given}: is a run; name one of its epoch-E_step-S folders")
    if checkpoint is None and given is not None and (given / "running_states.json").is_file():
        checkpoint = open_checkpoint(given)
    if checkpoint is not None:
        return Start(checkpoint.modeling, checkpoint)
    return Start(given or config.pretrained, None)


def _is_run(directory: Path) -> bool:
    """Whether train.py has written this directory."""
    return (directory / RUN_CONFIG).is_file()


def open_save_dir(config: TrainConfig) -> None:
    """The last thing before the first step: with --overwrite the old run goes only now that the new one can begin."""
    if config.overwrite and config.save_dir.is_dir():
        shutil.rmtree(config.save_dir)
    write_json(config.save_dir / RUN_CONFIG, config.as_json())
    if config.config_file is not None:
        write_json(config.config_file, config.as_json())


def latest_start(config: TrainConfig) -> Start:
    """The beginning of a stage: where the stage before has ended."""
    checkpoint = latest_checkpoint(config.save_dir)
    assert checkpoint is not None, "every stage ends with a checkpoint"
    return Start(checkpoint.modeling, checkpoint)
