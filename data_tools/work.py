"""Where a run keeps what it has finished: a killed run leaves it there, and the same command goes on from it.

`.<output>.work/` lies beside the output, which appears whole at the end, by a rename. Parts lie in it too, or in
--data_cache_dir, where another run (other --max_length, other mixture) finds them again.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.input_files import shown_name
from data_tools.inputs import changed_files, changed_settings
from data_tools.intake import PARTIAL
from tokenizer_tools.command import UserError
from tokenizer_tools.outputs import (
    REPLACED_SUFFIX,
    finish_tree,
    full_disk_named,
    read_json,
    replace_directory,
    write_json,
)

logger = logging.getLogger(__name__)

NOTE_NAME = "last_run.json"


@dataclass(frozen=True)
class Work:
    """The directories of one run: the future output, records of its finished buckets, and the parts."""

    root: Path
    cache_dir: Path

    @property
    def bins_dir(self) -> Path:
        """Becomes the output."""
        return self.root / "bins"

    @property
    def records_dir(self) -> Path:
        """Records of finished buckets."""
        return self.root / "buckets"

    def clear_bins(self, num_buckets: int) -> None:
        """Remove what a killed run has left among the bins and this one will not write over."""
        names = {f"part-{index:05d}" for index in range(num_buckets)}
        for path in self.bins_dir.iterdir():
            if path.name not in names:
                _remove(path)


def root_of(output: Path) -> Path:
    """The work directory of an output."""
    output = output.resolve()
    return output.parent / f".{output.name}.work"


@contextmanager
def work_on(output: Path, cache_dir: Path | None, overwrite: bool) -> Iterator[Work]:
    """Yield the directories of a run, kept for this process alone; when the block ends well, the output is there.

    After an error what is finished stays for the next run; a run that has finished nothing leaves nothing.
    Raises UserError if another run is at work in them.
    """
    root, target = root_of(output), output.resolve()
    work = Work(root, (cache_dir or root / "parts").resolve())
    with ExitStack() as stack:
        root.mkdir(parents=True, exist_ok=True)
        _lock(stack, root)
        try:
            work.cache_dir.mkdir(parents=True, exist_ok=True)
            if work.cache_dir != root:
                _lock(stack, work.cache_dir)
            _tidy(work, target)
            for directory in (work.bins_dir, work.records_dir):
                directory.mkdir(exist_ok=True)
            with full_disk_named(root):
                yield work
                finish_tree(work.bins_dir)
            replace_directory(work.bins_dir, target, overwrite)
        except BaseException:
            _remove_leftovers(work)
            if any(work.cache_dir.glob("*/*.arrow")):
                logger.info("what is finished is kept in %s; the same command goes on from there", work.cache_dir)
            else:
                shutil.rmtree(root, ignore_errors=True)
            raise
        shutil.rmtree(root)


def discard_work(output: Path) -> None:
    """Remove what a run has left that was killed after its output was in place; not what another one is at work in."""
    root = root_of(output)
    if root.is_dir():
        with ExitStack() as stack, suppress(UserError):
            _lock(stack, root)
            shutil.rmtree(root)


def _tidy(work: Work, target: Path) -> None:
    """What a run left half done that was killed while it wrote, or while one output took the place of another."""
    _remove_leftovers(work)
    replaced = work.bins_dir.with_suffix(REPLACED_SUFFIX)
    if replaced.is_dir() and target.exists():
        shutil.rmtree(replaced)
    elif replaced.is_dir():
        replaced.rename(target)


def _remove_leftovers(work: Work) -> None:
    for directory in (work.root, work.cache_dir, work.records_dir):
        for leftover in directory.glob(f".*{PARTIAL}"):
            _remove(leftover)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _lock(stack: ExitStack, directory: Path) -> None:
    file = stack.enter_context((directory / ".lock").open("w"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{directory}: another run is at work here; wait for it, or choose another --data_arrow_output_dir and "
            "--data_cache_dir"
        ) from None


def what_changed(cache_dir: Path, meaning: dict[str, Any], files: list[Path]) -> list[str]:
    """What is different from the last run in this cache, in words; nothing if there was none. Notes this run."""
    sizes = {shown_name(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}
    now = json.loads(json.dumps({"settings": meaning, "files": sizes}, default=str))
    note = cache_dir / NOTE_NAME
    try:
        before = read_json(note, "the note of the last run")
    except UserError:  # there is none, or a killed run has left half of one
        before = now
    write_json(note, now)
    return changed_settings(before["settings"], now["settings"]) + changed_files(before["files"], now["files"])
