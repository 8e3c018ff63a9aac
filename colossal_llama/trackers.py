"""Where figures go to be looked at as curves: TensorBoard files, Weights & Biases. Named numbers of a step come in.

torch and wandb are imported inside the classes: the flags are checked before anything heavy is loaded.
"""

from __future__ import annotations

import importlib.util
import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from tokenizer_tools.outputs import write_whole_file

log = logging.getLogger(__name__)

RUN_ID_FILE = "wandb_run_id"


class Tracker(Protocol):
    """Takes the figures of a run. May raise anything: its caller goes on without it."""

    name: str

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take the named numbers of one step."""
        ...

    def close(self) -> None:
        """Hand over what is still held."""
        ...


class TensorBoard:
    """Event files in `directory`; figures of steps after `step` are purged, a resumed run writes them again."""

    name = "TensorBoard"

    def __init__(self, directory: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._directory = directory
        self._writer: SummaryWriter | None = SummaryWriter(str(directory), purge_step=step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take the named numbers of one step."""
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            self._writer = SummaryWriter(str(self._directory))
        try:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()
        except Exception:  # a writer that failed once, on a full disk for one, repeats its error for ever
            self._writer = None
            raise

    def close(self) -> None:
        """Write what is still held."""
        if self._writer is not None:
            self._writer.close()


class WeightsAndBiases:
    """One run of a W&B project, the same one when training is resumed in `save_dir`. `settings` is the run's config."""

    name = "Weights & Biases"

    def __init__(self, project: str, save_dir: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        self._run = wandb.init(
            project=project,
            id=_run_id(save_dir),
            name=save_dir.resolve().name,
            dir=str(save_dir),
            config=dict(settings),
            resume="allow",
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take the named numbers of one step. W&B keeps the first of a step that a resumed run repeats."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Upload what is still held."""
        self._run.finish()


def missing_package(project: str | None) -> list[str]:
    """What is wrong with --wandb_project on this machine, for the check of the flags: nothing or one problem."""
    if project is None:
        return []
    found = importlib.util.find_spec("wandb")
    if found is not None and found.origin is not None:  # without an origin it is W&B's own folder of runs, no package
        return []
    return [f"--wandb_project {project}: the package wandb is not installed; pip install wandb, or leave the flag away"]


def open_wandb(project: str | None, save_dir: Path, settings: Mapping[str, Any]) -> list[Tracker]:
    """W&B if a project is named. Without a network or an account there the run goes on without it, and says so."""
    if project is None:
        return []
    try:
        return [WeightsAndBiases(project, save_dir, settings)]
    except Exception as error:  # wandb has errors of its own for each way in which its server cannot be used
        reason = " ".join(str(error).split())
        log.warning(
            f"--wandb_project {project}: {reason}; the run goes on without Weights & Biases "
            "(`wandb login` first, or WANDB_MODE=offline to keep the figures on the disk)"
        )
        return []


def _run_id(save_dir: Path) -> str:
    """The id of this run at W&B, kept in `save_dir` from its first start on."""
    path = save_dir / RUN_ID_FILE
    if not path.is_file():
        write_whole_file(path, uuid.uuid4().hex + "\n")
    return path.read_text(encoding="utf-8").strip()
