"""Checkpoints: complete or absent. Written aside by all ranks, hashed, synced and renamed by rank 0; `latest` names it.

<save_dir>/epoch-E_step-S/
    modeling/             Hugging Face safetensors with the tokenizer
    optimizer/            Booster's optimizer state: moments, independent of the layout
    masters/              fp32 weights of each rank: 16-bit weights alone would lose the low bits (same layout only)
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

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from colossal_llama.cluster import all_agree, main_rank_logger, on_main, together
from colossal_llama.progress import Progress
from tokenizer_tools.command import UserError
from tokenizer_tools.outputs import finish_tree, full_disk_named, read_json, write_json, write_whole_file

VERSION = 1
NAME = re.compile(r"epoch-(\d+)_step-(\d+)")
LATEST = "latest"
MODELING = "modeling"
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
        raise UserError(f"{path}: checkpoint version {manifest.get('version')}, this code reads {VERSION}")
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
    return open_checkpoint(save_dir / pointer.read_text().strip()) if pointer.is_file() else None


def complete_checkpoints(save_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [(match, path) for path in save_dir.iterdir() if (match := NAME.fullmatch(path.name))]
    complete = [(int(match[2]), path) for match, path in found if (path / "manifest.json").is_file()]
    return [path for _, path in sorted(complete)]


class CheckpointWriter:
    """Saves a boosted model of one run."""

    def __init__(self, booster: Any, model: Any, optimizer: Any, tokenizer: Any, save_dir: Path, keep: int) -> None:
        self._booster, self._model, self._optimizer, self._tokenizer = booster, model, optimizer, tokenizer
        self._save_dir, self._keep = save_dir, keep
        self._log = main_rank_logger(__name__)

    def save(self, progress: Progress, schedule: dict[str, Any]) -> Path:
        """Write `epoch-E_step-S`, point `latest` at it, drop what is too old. All ranks call it. Returns its path."""
        target = self._save_dir / f"epoch-{progress.epoch}_step-{progress.step}"
        aside = target.with_name(f".{target.name}{PARTIAL_SUFFIX}")
        on_main(lambda: _make_empty(aside))
        try:
            self._write_parts(aside)
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
            self._write_model(aside)
            on_main(lambda: _replace(aside, target))
        except BaseException:
            _remove_on_main(aside)
            raise
        return target

    def _write_model(self, directory: Path) -> None:
        self._together(lambda: self._booster.save_model(self._model, str(directory), shard=True, use_safetensors=True))
        on_main(lambda: self._write_beside_weights(directory))

    def _write_beside_weights(self, directory: Path) -> None:
        """The tokenizer, and a config that allows the key-value cache: only training must do without it."""
        self._tokenizer.save_pretrained(directory)
        config = read_json(directory / "config.json", "the model's configuration")
        write_json(directory / "config.json", config | {"use_cache": True})

    def _together(self, write: Callable[[], None]) -> None:
        """All ranks write, or raise together; a full disk is the user's to know of, in one line."""

        def named() -> None:
            with full_disk_named(self._save_dir):
                write()

        together(named)

    def _write_parts(self, aside: Path) -> None:
        self._write_model(aside / MODELING)
        optimizer_dir = aside / "optimizer"
        self._together(lambda: self._booster.save_optimizer(self._optimizer, str(optimizer_dir), shard=True))
        self._together(lambda: _save_masters(self._model, self._optimizer, aside / "masters"))

    def _finish(self, aside: Path, target: Path, progress: Progress, schedule: dict[str, Any]) -> None:
        write_json(aside / "lr_scheduler", schedule)
        write_json(aside / "running_states.json", progress.as_json())
        files = sorted(path for path in aside.rglob("*") if path.is_file())
        _check_all_ranks_wrote_here(aside)
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


def load_optimizer(checkpoint: Checkpoint, booster: Any, model: Any, optimizer: Any) -> None:
    """Moments and, where they fit, fp32 weights of `checkpoint` into a boosted optimizer whose model holds its weights.

    The options of the parameter groups (weight decay and the like) stay those of the present run. All ranks call it.
    """
    options = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    together(lambda: booster.load_optimizer(optimizer, str(checkpoint.path / "optimizer")))
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)
    _move_steps_to_parameters(optimizer)
    fits = together(lambda: _masters_fit(model, optimizer, checkpoint.path / "masters"))
    if not all_agree(fits):
        main_rank_logger(__name__).info(
            "another layout than the checkpoint's: fp32 weights are taken from the saved 16-bit ones"
        )
        return
    together(lambda: _load_masters(model, optimizer, checkpoint.path / "masters"))


def _move_steps_to_parameters(optimizer: Any) -> None:
    """Booster loads AdamW's `step` to the CPU and leaves it there; the fused kernel wants it beside its parameter."""
    for parameter, state in getattr(optimizer, "optim", optimizer).state.items():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].to(parameter.device)


def _masters(model: Any, optimizer: Any) -> list[torch.Tensor]:
    """This rank's fp32 weights, in a fixed order; empty where the plugin trains the model's own fp32 weights."""
    manager = getattr(model, "gemini_manager", None)
    if manager is not None:
        groups = manager.chunk_manager.chunk_groups.items()
        return [chunk.paired_chunk.payload for name, group in groups if name.startswith("fp16") for chunk in group]
    if hasattr(optimizer, "_master_param_groups_of_current_rank"):  # ZeRO
        return [p for group in optimizer._master_param_groups_of_current_rank.values() for p in group]
    return list(getattr(optimizer, "working_to_master_map", {}).values())  # 3d without ZeRO


def _rank_file(directory: Path) -> Path:
    return directory / f"rank-{dist.get_rank():05d}-of-{dist.get_world_size():05d}.safetensors"


def _save_masters(model: Any, optimizer: Any, directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    tensors = {f"{i:06d}": t.detach().clone().contiguous().cpu() for i, t in enumerate(_masters(model, optimizer))}
    save_file(tensors, _rank_file(directory))


def _masters_fit(model: Any, optimizer: Any, directory: Path) -> bool:
    """Whether this rank finds its own file, with tensors of its own shapes."""
    if not _rank_file(directory).is_file():
        return False
    with safe_open(_rank_file(directory), "pt") as saved:
        shapes = [tuple(saved.get_slice(name).get_shape()) for name in sorted(saved.keys())]
    return shapes == [tuple(tensor.shape) for tensor in _masters(model, optimizer)]


def _load_masters(model: Any, optimizer: Any, directory: Path) -> None:
    with safe_open(_rank_file(directory), "pt") as saved:
        for name, own in zip(sorted(saved.keys()), _masters(model, optimizer), strict=True):
            own.data.copy_(saved.get_tensor(name))


def _check_all_ranks_wrote_here(aside: Path) -> None:
    """Raise UserError if a rank's file is not where rank 0 looks."""
    num_files = len(list((aside / "masters").iterdir()))
    if num_files != dist.get_world_size():
        raise UserError(
            f"{aside.parent}: {num_files} of {dist.get_world_size()} processes wrote their part of the checkpoint; "
            f"--save_dir must be on a file system that all hosts share"
        )


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
