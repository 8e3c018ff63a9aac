"""Checkpoints: complete or absent. Written aside by all ranks, hashed, synced and renamed by rank 0; `latest` names it.

<save_dir>/epoch-E_step-S/
    modeling/             Hugging Face safetensors with the tokenizer
    optimizer/            Booster's optimizer state, in full shapes whatever the layout: moments, and fp32 weights, as
                          16-bit ones alone would lose the low bits; param_names.json says whose they are
    lr_scheduler          the schedule's plan and position, JSON
    running_states.json   Progress
    manifest.json         layout, and the sha256 of every file: written last
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from colossal_llama.cluster import main_rank_logger, on_main, together
from colossal_llama.optimizer_state import PARAM_NAMES, load_states, masters_among_states
from colossal_llama.progress import Progress
from tokenizer_tools.command import UserError
from tokenizer_tools.outputs import finish_tree, full_disk_named, read_json, write_json, write_whole_file

VERSION = 2
NAME = re.compile(r"epoch-(\d+)_step-(\d+)")
LATEST = "latest"
MODELING = "modeling"
OPTIMIZER = "optimizer"
MARK = "rank-"
PARTIAL_SUFFIX = ".partial"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    progress: Progress

    @property
    def modeling(self) -> Path:
        """Its Hugging Face model directory."""
        return self.path / MODELING


def open_checkpoint(path: Path) -> Checkpoint:
    """Raises UserError if `path` is not a complete checkpoint."""
    manifest = read_json(path / "manifest.json", "the manifest of a complete checkpoint")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{path}: checkpoint version {manifest.get('version')}, this code reads {VERSION}; pass its `{MODELING}` "
            f"folder to --load_checkpoint with a new --save_dir to start from its weights"
        )
    for name, size in manifest["sizes_bytes"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            raise UserError(
                f"{file}: missing or not {size} bytes long; the checkpoint is damaged, "
                f"write the name of an older one into {path.parent / LATEST}"
            )
    return Checkpoint(path, Progress.from_json(read_json(path / "running_states.json", "a run's progress")))


def check_hashes(checkpoint: Checkpoint) -> None:
    """Raise UserError unless every file is the one that was written. Reads all of it."""
    for name, digest in read_json(checkpoint.path / "manifest.json", "a checkpoint's manifest")["sha256"].items():
        if _sha256(checkpoint.path / name) != digest:
            raise UserError(f"{checkpoint.path / name}: not the file that was saved; the checkpoint is damaged")


def latest_checkpoint(save_dir: Path) -> Checkpoint | None:
    """The checkpoint that `<save_dir>/latest` names, or None if there is none yet."""
    pointer = save_dir / LATEST
    if not pointer.is_file():
        return None
    name = pointer.read_text(encoding="utf-8", errors="replace").strip()
    if not name or not (save_dir / name).is_dir():
        raise UserError(
            f"{pointer}: names no checkpoint ({name!r}); write the name of an epoch-E_step-S folder into it"
        )
    return open_checkpoint(save_dir / name)


def complete_checkpoints(save_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [(match, path) for path in save_dir.iterdir() if (match := NAME.fullmatch(path.name))]
    complete = [(int(match[2]), path) for match, path in found if (path / "manifest.json").is_file()]
    return [path for _, path in sorted(complete)]


class CheckpointWriter:
    """Saves a boosted model of one run. `param_names`: what its optimizer trains, in Booster's id order.

    Where rank 0 holds all weights, `write_weights` puts them into a checkpoint's directory, `write_final_weights` into
    that of the finished model; without them Booster gathers and writes.
    """

    def __init__(
        self,
        booster: Any,
        model: Any,
        optimizer: Any,
        tokenizer: Any,
        save_dir: Path,
        keep: int,
        param_names: list[str],
        write_weights: Callable[[Path], None] | None = None,
        write_final_weights: Callable[[Path], None] | None = None,
    ) -> None:
        self._booster, self._model, self._optimizer, self._tokenizer = booster, model, optimizer, tokenizer
        self._save_dir, self._keep, self._param_names = save_dir, keep, param_names
        self._write_weights, self._write_final_weights = write_weights, write_final_weights
        self._log = main_rank_logger(__name__)

    def save(self, progress: Progress, schedule: dict[str, Any], write_more: Callable[[Path], None]) -> Path:
        """Write `epoch-E_step-S`, point `latest` at it, drop what is too old. All ranks call it. Returns its path.

        `write_more` adds what rank 0 has to add, into the directory that it is given.
        """
        target = self._save_dir / f"epoch-{progress.epoch}_step-{progress.step}"
        aside = target.with_name(f".{target.name}{PARTIAL_SUFFIX}")
        on_main(lambda: _make_empty(aside))
        try:
            self._write_parts(aside)
            self._together(lambda: write_more(aside) if dist.get_rank() == 0 else None)
            on_main(lambda: self._finish(aside, target, progress, schedule))
        except BaseException:
            _remove_on_main(aside)
            raise
        self._log.info(f"saved {target}")
        return target

    def save_final_model(self) -> Path:
        """Write the model alone to `<save_dir>/modeling`, ready for AutoModelForCausalLM.from_pretrained."""
        target = self._save_dir / MODELING
        aside = target.with_name(f".{MODELING}{PARTIAL_SUFFIX}")
        on_main(lambda: _make_empty(aside))
        try:
            self._write_model(aside, self._write_final_weights)
            on_main(lambda: _replace(aside, target))
        except BaseException:
            _remove_on_main(aside)
            raise
        return target

    def _write_model(self, directory: Path, write_whole: Callable[[Path], None] | None) -> None:
        if write_whole is None:
            save_model = self._booster.save_model
            self._together(lambda: save_model(self._model, str(directory), shard=True, use_safetensors=True))
        else:
            self._together(lambda: write_whole(directory) if dist.get_rank() == 0 else None)
        on_main(lambda: self._write_beside_weights(directory))

    def _write_beside_weights(self, directory: Path) -> None:
        """The tokenizer, and a config that allows the key-value cache: only training must do without it."""
        self._tokenizer.save_pretrained(directory)
        if (directory / "config.json").is_file():  # an adapter has none
            config = read_json(directory / "config.json", "the model's configuration")
            write_json(directory / "config.json", config | {"use_cache": True})

    def _together(self, write: Callable[[], None]) -> None:
        """All ranks write, or raise together; a full disk is the user's to know of, in one line."""

        def named() -> None:
            with full_disk_named(self._save_dir):
                write()

        together(named)

    def _write_parts(self, aside: Path) -> None:
        self._write_model(aside / MODELING, self._write_weights)
        with masters_among_states(self._model, self._optimizer, self._param_names):
            self._together(lambda: self._booster.save_optimizer(self._optimizer, str(aside / OPTIMIZER), shard=True))
        self._together(lambda: _leave_mark(aside))

    def _finish(self, aside: Path, target: Path, progress: Progress, schedule: dict[str, Any]) -> None:
        write_json(aside / OPTIMIZER / PARAM_NAMES, {"names": self._param_names})
        write_json(aside / "lr_scheduler", schedule)
        write_json(aside / "running_states.json", progress.as_json())
        _check_all_ranks_wrote_here(aside)
        files = sorted(path for path in aside.rglob("*") if path.is_file())
        manifest = {
            "version": VERSION,
            "world_size": dist.get_world_size(),
            "plugin": type(self._booster.plugin).__name__,
            "sizes_bytes": {str(path.relative_to(aside)): path.stat().st_size for path in files},
            "sha256": {str(path.relative_to(aside)): _sha256(path) for path in files},
        }
        write_json(aside / "manifest.json", manifest)
        _replace(aside, target)
        write_whole_file(self._save_dir / LATEST, target.name + "\n")
        if self._keep:
            for old in complete_checkpoints(self._save_dir)[: -self._keep]:
                if old != target:  # a later one may lie there, complete, whose run was killed before it became `latest`
                    shutil.rmtree(old)


def load_optimizer(
    checkpoint: Checkpoint, booster: Any, model: Any, optimizer: Any, param_names: list[str], with_moments: bool = True
) -> None:
    """fp32 weights and AdamW's state of `checkpoint` into a boosted optimizer whose model holds its weights.

    The optimizer may train other parameters than the checkpoint's did (`param_names`, in Booster's id order): those
    that trained before go on, the others begin. Without `with_moments` all moments begin anew.
    The options of the parameter groups (weight decay and the like) stay those of the present run. All ranks call it.
    """
    directory = checkpoint.path / OPTIMIZER
    count = together(lambda: load_states(directory, booster, model, optimizer, param_names, with_moments))
    if with_moments and count < len(param_names):
        main_rank_logger(__name__).info(
            f"AdamW's moments of {count} of {len(param_names)} parameter tensors go on, the others begin"
        )


def _leave_mark(aside: Path) -> None:
    aside.mkdir(parents=True, exist_ok=True)  # on a file system of its own this rank may have written nothing yet
    (aside / f"{MARK}{dist.get_rank()}").touch()


def _check_all_ranks_wrote_here(aside: Path) -> None:
    """Raise UserError if a rank's mark is not where rank 0 looks."""
    marks = list(aside.glob(f"{MARK}*"))
    if len(marks) != dist.get_world_size():
        raise UserError(
            f"{aside.parent}: {len(marks)} of {dist.get_world_size()} processes wrote their part of the checkpoint; "
            f"--save_dir must be on a file system that all hosts share"
        )
    for mark in marks:
        mark.unlink()


def _remove_on_main(directory: Path) -> None:
    """Rank 0 alone removes: another rank may be stopped while rank 0 is just renaming what it wrote."""
    if dist.get_rank() == 0:
        shutil.rmtree(directory, ignore_errors=True)


def _make_empty(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def _replace(aside: Path, target: Path) -> None:
    finish_tree(aside)
    if target.exists():
        shutil.rmtree(target)
    aside.rename(target)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()
