"""A boosted model and its optimizer come in; complete checkpoints go out, written while the training goes on.

`begin` copies what each rank has to write into host memory and starts a thread on every rank, which writes, syncs and
hashes that rank's own files into a hidden folder. When all ranks have said that theirs are done, `publish` lets rank 0
write the manifest, rename the folder, point `latest` at it and drop what is too old. Until then the checkpoint does not
exist. The copies are this rank's share of the fp32 states (12 bytes a parameter, shared out), and on the few ranks that
write weight files up to 5 GB each of these.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from colossal_llama import optimizer_state, saved_parts
from colossal_llama.background import in_background
from colossal_llama.checkpoint import (
    BEFORE,
    LATEST,
    MODELING,
    OPTIMIZER,
    STATES,
    VERSION,
    too_old,
)
from colossal_llama.checkpoint_files import (
    PARTIAL_SUFFIX,
    Record,
    delete,
    faults_named,
    hide,
    make_empty,
    put_in_place,
    write_tensors,
)
from colossal_llama.cluster import main_rank_logger, on_main, together
from colossal_llama.progress import Progress
from colossal_llama.saved_parts import Shapes
from colossal_llama.weights import ModelFiles
from tokenizer_tools.command import UserError
from tokenizer_tools.outputs import write_json, write_whole_file
from tokenizer_tools.tokenizer_files import MANIFEST

GIGABYTE = 10**9
SMALL_FILES_BYTES = 2**24  # tokenizer, positions, manifest: room for them beside the tensors


@dataclass(frozen=True)
class _Open:
    """A checkpoint that is being written; `records` has what this rank's thread has written, by relative name."""

    aside: Path
    target: Path
    records: Future[dict[str, Record]]


class CheckpointWriter:
    """Saves a boosted model of one run. All ranks call each method of it, after the same step.

    `before`: the name of the checkpoint in --save_dir that the run goes on from.
    """

    def __init__(
        self,
        booster: Any,
        model: Any,
        optimizer: Any,
        trained: Shapes,
        files: ModelFiles,
        tokenizer_files: Mapping[str, bytes],
        save_dir: Path,
        keep: int,
        before: str | None = None,
    ) -> None:
        self._booster, self._model, self._optimizer, self._files = booster, model, optimizer, files
        self._tokenizer_files, self._save_dir, self._keep = tokenizer_files, save_dir, keep
        every_rank: list[dict[int, saved_parts.Part]] = [{}] * dist.get_world_size()
        dist.all_gather_object(every_rank, optimizer_state.own_parts(booster, optimizer, trained))
        shares = saved_parts.share_out(every_rank)
        self._parts = shares[dist.get_rank()]
        self._parts_table = saved_parts.parts_table(shares, trained)
        sizes = [0] * dist.get_world_size()
        own_bytes = files.num_bytes + saved_parts.size_bytes(self._parts.values())
        dist.all_gather_object(sizes, own_bytes)
        self.num_bytes = sum(sizes) + SMALL_FILES_BYTES
        """Size of one checkpoint."""
        self._before = before
        self._open: _Open | None = None
        self._deletion: Future[None] | None = None
        self._log = main_rank_logger(__name__)

    def check_space(self) -> None:
        """Raise UserError, on all ranks, if the disk of --save_dir has no room for one more checkpoint."""
        on_main(self._check_space)

    def begin(self, progress: Progress, write_more: Callable[[Path], None]) -> None:
        """Start writing `epoch-E_step-S`; the caller may train on at once. `finish` the one before this one first.

        `write_more` adds rank 0's small files to the directory that it is given, in the background.
        """
        assert self._open is None, "one checkpoint at a time"
        self.close()
        target = self._save_dir / f"epoch-{progress.epoch}_step-{progress.step}"
        aside = target.with_name(f".{target.name}{PARTIAL_SUFFIX}")
        on_main(lambda: self._room_made(aside))
        own = {f"{MODELING}/{name}": tensors for name, tensors in self._files.take().items()}
        weights = {name: tensor for tensors in own.values() for name, tensor in tensors.items()}
        states = optimizer_state.snapshot(self._model, self._optimizer, self._parts, weights)
        own[f"{OPTIMIZER}/{saved_parts.rank_file(dist.get_rank())}"] = states
        is_main = dist.get_rank() == 0

        def write() -> dict[str, Record]:
            with faults_named(self._save_dir):
                if is_main:
                    self._write_beside(aside / MODELING, self._files)
                    write_json(aside / OPTIMIZER / saved_parts.PARTS_FILE, self._parts_table)
                    write_json(aside / STATES, progress.as_json())
                    write_more(aside)
                return write_tensors(aside, own, with_small_files=is_main)

        self._open = _Open(aside, target, in_background(write))

    @property
    def is_saved(self) -> bool:
        """Whether this rank's part of the open checkpoint is on the disk."""
        return self._open is not None and self._open.records.done() and self._open.records.exception() is None

    @property
    def has_failed(self) -> bool:
        """Whether this rank's part of the open checkpoint could not be written."""
        return self._open is not None and self._open.records.done() and self._open.records.exception() is not None

    def finish(self) -> Path | None:
        """Wait until the open checkpoint is complete, and return its path; None if none is open.

        Raises UserError, on all ranks, with the reason why any of them could not write.
        """
        if self._open is None:
            return None
        opened, self._open = self._open, None
        try:
            records = together(opened.records.result)
            every_rank: list[dict[str, Record]] = [{}] * dist.get_world_size()
            dist.all_gather_object(every_rank, records)
            on_main(lambda: self._published(opened, every_rank))
        except BaseException:
            _remove_on_main(opened)
            raise
        self._before = opened.target.name
        self._log.info(f"saved {opened.target}")
        return opened.target

    def close(self) -> None:
        """Wait until the checkpoints that were too old are gone from the disk."""
        if self._deletion is not None:
            self._deletion.result()

    def save_final_model(self, files: ModelFiles, seal: Callable[[Path], None]) -> Path:
        """Write the model alone to `<save_dir>/modeling`, ready for AutoModelForCausalLM.from_pretrained.

        `seal`: what rank 0 does with the whole directory before it gets its name.
        """
        target = self._save_dir / MODELING
        aside = target.with_name(f".{MODELING}{PARTIAL_SUFFIX}")
        on_main(lambda: make_empty(aside))
        own = files.take()

        def write() -> None:
            with faults_named(self._save_dir):
                if dist.get_rank() == 0:
                    self._write_beside(aside, files)
                write_tensors(aside, own)

        def finish() -> None:
            with faults_named(self._save_dir):
                seal(aside)
                put_in_place(aside, target)

        try:
            together(write)
            on_main(finish)
        except BaseException:
            if dist.get_rank() == 0:
                shutil.rmtree(aside, ignore_errors=True)
            raise
        return target

    def _check_space(self) -> None:
        free = shutil.disk_usage(self._save_dir).free
        if free < self.num_bytes:
            raise UserError(
                f"{self._save_dir}: a checkpoint takes {self.num_bytes / GIGABYTE:.3g} GB, and "
                f"{free / GIGABYTE:.3g} GB are free there; free some, older checkpoints for one"
            )

    def _room_made(self, aside: Path) -> None:
        with faults_named(self._save_dir):
            self._make_room(aside)

    def _make_room(self, aside: Path) -> None:
        if not self._save_dir.is_dir():
            raise UserError(f"{self._save_dir}: has gone while the run was writing there; mount or restore it")
        shutil.rmtree(aside, ignore_errors=True)
        self._check_space()
        aside.mkdir()

    def _write_beside(self, directory: Path, files: ModelFiles) -> None:
        directory.mkdir(exist_ok=True)
        files.write_beside(directory)
        for name, content in self._tokenizer_files.items():
            (directory / name).write_bytes(content)

    def _published(self, opened: _Open, every_rank: list[dict[str, Record]]) -> None:
        with faults_named(self._save_dir):
            self._publish(opened, every_rank)

    def _publish(self, opened: _Open, every_rank: list[dict[str, Record]]) -> None:
        records = {name: record for own in every_rank for name, record in own.items()}
        for name, (size, _) in records.items():
            file = opened.aside / name
            if not file.is_file() or file.stat().st_size != size:
                raise UserError(
                    f"{file}: written by another process, but not to be seen from rank 0; "
                    f"--save_dir must be on a file system that all hosts share"
                )
        manifest = {
            "version": VERSION,
            "world_size": dist.get_world_size(),
            "plugin": type(self._booster.plugin).__name__,
            BEFORE: self._before,
            "sizes_bytes": {name: size for name, (size, _) in sorted(records.items())},
            "sha256": {name: digest for name, (_, digest) in sorted(records.items())},
        }
        write_json(opened.aside / MANIFEST, manifest)
        put_in_place(opened.aside, opened.target)
        write_whole_file(self._save_dir / LATEST, opened.target.name + "\n")
        hidden = [hide(old) for old in too_old(opened.target, self._keep)]
        self._deletion = in_background(lambda: delete(hidden))


def _remove_on_main(opened: _Open) -> None:
    """Rank 0 alone removes: another rank may be stopped while rank 0 is just renaming what it wrote."""
    if dist.get_rank() == 0:
        shutil.rmtree(opened.aside, ignore_errors=True)
