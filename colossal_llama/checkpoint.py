"""Checkpoints on disk: where they lie, whether they are whole, which one a run goes on from. `checkpoint_writer` makes
them.

<save_dir>/epoch-E_step-S/
    modeling/             Hugging Face safetensors with the tokenizer
    optimizer/            each rank's parts of AdamW's moments and of the fp32 weights; parts.json says what they are of
    lr_scheduler          the schedule's plan and position, JSON
    running_states.json   Progress
    train_config.json     the resolved flags; lineage.json: what the run was made from
    manifest.json         plugin and world size, and the size and sha256 of every file: written last
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from colossal_llama.cluster import main_rank_logger, on_main, together
from colossal_llama.optimizer_state import load_states
from colossal_llama.progress import Progress
from colossal_llama.saved_parts import Shapes
from tokenizer_tools.command import UserError
from tokenizer_tools.lineage import hash_files
from tokenizer_tools.outputs import read_json
from tokenizer_tools.tokenizer_files import MANIFEST

VERSION = 3
NAME = re.compile(r"epoch-(\d+)_step-(\d+)")
LATEST = "latest"
MODELING = "modeling"
OPTIMIZER = "optimizer"
STATES = "running_states.json"
BEFORE = "before"
"""In the manifest: the name of the checkpoint from which the run had come, beside this one; null for none."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    progress: Progress
    manifest: dict[str, Any]

    @property
    def modeling(self) -> Path:
        """Its Hugging Face model directory."""
        return self.path / MODELING


def open_checkpoint(path: Path) -> Checkpoint:
    """Raises UserError if `path` is not a complete checkpoint, as far as names and sizes tell."""
    manifest = read_json(path / MANIFEST, "the manifest of a complete checkpoint")
    if manifest.get("version") != VERSION:
        raise UserError(
            f"{path}: checkpoint version {manifest.get('version')}, this code reads {VERSION}; pass its `{MODELING}` "
            f"folder to --load_checkpoint with a new --save_dir to start from its weights"
        )
    if not _has_files(manifest):
        raise UserError(f"{path / MANIFEST}: names no files with their sizes and sha256; the checkpoint is damaged")
    for name, size in manifest["sizes_bytes"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            raise UserError(f"{file}: missing or not {size} bytes long; the checkpoint is damaged")
    return Checkpoint(path, Progress.from_json(read_json(path / STATES, "a run's progress")), manifest)


def _has_files(manifest: dict[str, Any]) -> bool:
    sizes, digests = manifest.get("sizes_bytes"), manifest.get("sha256")
    return isinstance(sizes, dict) and isinstance(digests, dict) and bool(sizes) and sizes.keys() == digests.keys()


def latest_checkpoint(save_dir: Path) -> Checkpoint | None:
    """The checkpoint that `<save_dir>/latest` names, or None if there is none yet.

    Where it names none, or one with a file missing or cut, the newest sound one before it, with a warning.
    Raises UserError if there are checkpoints, and none of them is sound.
    """
    complete = complete_checkpoints(save_dir) if save_dir.is_dir() else []
    pointer = save_dir / LATEST
    name = pointer.read_text(encoding="utf-8", errors="replace").strip() if pointer.is_file() else ""
    if name and name == Path(name).name and (save_dir / name).is_dir():  # its owner may have renamed it
        line = [save_dir / name, *_before(save_dir / name)]
        candidates = line + [one for one in _with_fewer_steps(save_dir / name) if one not in line]
    else:
        candidates = complete[::-1]
        if name or complete:
            main_rank_logger(__name__).warning(f"{pointer}: names no checkpoint ({name!r}); the newest one counts")
    problems: list[str] = []
    for path in candidates:
        try:
            checkpoint = open_checkpoint(path)
        except UserError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            main_rank_logger(__name__).warning(f"{problem}; going back to {path.name}")
        return checkpoint
    if problems or name:
        problem = problems[0] if problems else f"{pointer}: names {name!r}, which is not there"
        raise UserError(f"{problem}, and there is none before it; restore it, or start anew with --overwrite")
    return None


def complete_checkpoints(save_dir: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    named = (path for path in save_dir.iterdir() if NAME.fullmatch(path.name))
    return sorted((path for path in named if (path / MANIFEST).is_file()), key=lambda path: (_steps_of(path), path))


def _before(path: Path) -> list[Path]:
    """Complete checkpoints that led to this one, newest first: by its manifest, or those with fewer steps without one.

    Others may lie there, of a branch that its owner has left by writing an older name into `latest`.
    """
    line: list[Path] = []
    while (path / MANIFEST).is_file():
        try:
            before = read_json(path / MANIFEST, "a checkpoint's manifest").get(BEFORE)
        except UserError:
            return line or _with_fewer_steps(path)
        path = path.with_name(str(before))
        if before is None or path in line or not (path / MANIFEST).is_file():
            return line
        line.append(path)
    return _with_fewer_steps(path)


def _with_fewer_steps(path: Path) -> list[Path]:
    match = NAME.fullmatch(path.name)
    if match is None:  # renamed by its owner
        return []
    return [one for one in complete_checkpoints(path.parent) if _steps_of(one) < int(match[2])][::-1]


def _steps_of(path: Path) -> int:
    match = NAME.fullmatch(path.name)
    assert match is not None, f"{path} is not named like a checkpoint"
    return int(match[2])


def too_old(newest: Path, keep: int) -> list[Path]:
    """Complete checkpoints that --keep_checkpoints gives up: those with fewer steps than `newest`, but for the last
    ones that led to it. 0 keeps all.

    Later ones stay: they are of a run that was killed before they became `latest`, or of a branch.
    """
    if not keep or not NAME.fullmatch(newest.name):
        return []
    keeping = [newest, *_before(newest)][:keep]
    return [one for one in _with_fewer_steps(newest) if one not in keeping]


def sound_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """`checkpoint` if all its files are those that were saved, else the newest one before it of which that holds.

    Every file is read once, shared out over the ranks, which all call this. Warns of what is damaged; raises UserError
    if nothing sound is left.
    """
    damaged = damaged_file(checkpoint)
    if damaged is None:
        return checkpoint
    for older in on_main(lambda: _opened(_before(checkpoint.path))):  # what a host sees of another's writes may be old
        if damaged_file(older) is None:
            main_rank_logger(__name__).warning(
                f"{checkpoint.path / damaged}: not the file that was saved (sha256); going back to {older.path.name}"
            )
            return older
    raise UserError(
        f"{checkpoint.path / damaged}: not the file that was saved (sha256), and no sound checkpoint lies before it; "
        f"restore it, or start anew with --overwrite"
    )


def _opened(paths: list[Path]) -> list[Checkpoint]:
    """Those of `paths` that can be opened; a warning for each other one."""
    found = []
    for path in paths:
        try:
            found.append(open_checkpoint(path))
        except UserError as error:
            main_rank_logger(__name__).warning(f"{error}")
    return found


def damaged_file(checkpoint: Checkpoint) -> str | None:
    """The first file whose sha256 is not that of the manifest. All ranks of a run call it and share the reading."""
    digests: dict[str, str] = checkpoint.manifest["sha256"]
    sizes = checkpoint.manifest["sizes_bytes"]
    if not dist.is_initialized():
        return _first_damaged(checkpoint.path, digests, sorted(digests))
    by_size = sorted(digests, key=lambda name: (-sizes[name], name))
    own = by_size[dist.get_rank() :: dist.get_world_size()]
    found: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, together(lambda: _first_damaged(checkpoint.path, digests, own)))
    return min((name for name in found if name is not None), default=None)


def check_hashes(checkpoint: Checkpoint) -> None:
    """Raise UserError unless every file is the one that was saved."""
    damaged = damaged_file(checkpoint)
    if damaged is not None:
        raise UserError(f"{checkpoint.path / damaged}: not the file that was saved (sha256); the checkpoint is damaged")


def _first_damaged(directory: Path, digests: dict[str, str], names: list[str]) -> str | None:
    present = hash_files([directory / name for name in names])
    return next((name for name, digest in zip(names, present, strict=True) if digest != digests[name]), None)


def load_optimizer(
    checkpoint: Checkpoint, booster: Any, model: Any, optimizer: Any, trained: Shapes, with_moments: bool = True
) -> None:
    """fp32 weights and AdamW's state of `checkpoint` into a boosted optimizer whose model holds its weights.

    The optimizer may train other parameters than the checkpoint's did (`trained`: names and shapes in Booster's id
    order): those that trained before go on, the others begin. Without `with_moments` all moments begin anew.
    The options of the parameter groups (weight decay and the like) stay those of the present run. All ranks call it.
    """
    directory = checkpoint.path / OPTIMIZER
    count = together(lambda: load_states(directory, booster, model, optimizer, trained, with_moments))
    if with_moments and count < len(trained):
        main_rank_logger(__name__).info(
            f"AdamW's moments of {count} of {len(trained)} parameter tensors go on, the others begin"
        )
