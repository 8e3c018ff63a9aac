"""Outputs appear whole or not at all: written aside under a temporary name, synced, then renamed into place."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizer_tools.command import UserError

REPLACED_SUFFIX = ".old"
FULL_DISK_BYTES = 2**20
FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT)
DISK_FAULTS = (*FULL_DISK_ERRORS, errno.EIO, errno.EROFS, errno.ESTALE)
OS_ERROR = re.compile(r"\(os error (\d+)\)")  # as Rust says it: safetensors
FULL_DISK_WORDS = ("No space left", "quota exceeded")


@contextmanager
def whole_directory(target: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty directory beside `target`; when the block ends well it becomes `target`, else it vanishes.

    An existing, non-empty `target` is replaced only if `overwrite` is set; it stays readable until the very rename.
    Raises UserError if `target` exists and may not be replaced.
    """
    target = target.resolve()  # behind a link to a larger disk the output belongs on that disk
    refuse_existing(target, overwrite)
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        with full_disk_named(aside):
            yield aside
            finish_tree(aside)
        replace_directory(aside, target, overwrite)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def full_disk_named(directory: Path) -> Iterator[None]:
    """Turn any error of the block into a UserError if it comes from a full disk: safetensors and torch hide it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        if number not in (None, *FULL_DISK_ERRORS):
            raise  # it says what it is
        if (
            number is not None
            or any(words in str(error) for words in FULL_DISK_WORDS)
            or shutil.disk_usage(directory).free < FULL_DISK_BYTES
        ):
            disk = directory.parent.absolute()
            full = OSError(number or errno.ENOSPC, os.strerror(number or errno.ENOSPC), str(disk))
            full.__cause__ = error
            raise UserError(f"{disk}: no space left on this disk; free some or choose another one") from full
        raise


def disk_fault_of(error: BaseException | None) -> OSError | None:
    """What a disk has said behind an error, if it was the disk of this machine that failed; another may be well."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_FAULTS:
            return error
        words = OS_ERROR.search(str(error)) if not isinstance(error, UserError) else None
        if words is not None and int(words[1]) in DISK_FAULTS:
            return OSError(int(words[1]), os.strerror(int(words[1])))
        error = error.__cause__ or error.__context__
    return None


def refuse_existing(target: Path, overwrite: bool) -> None:
    """Raise UserError if `target` is no directory, or one that is not empty and that `overwrite` does not give away."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target}: is a file, but the output is a directory; choose another name")
    if not overwrite and target.is_dir() and any(target.iterdir()):
        raise UserError(f"{target}: exists and is not empty; add --overwrite to replace it or choose another name")
    if target.is_mount():
        raise UserError(f"{target}: is a mount point, which cannot be replaced whole; name a directory inside it")


def replace_directory(aside: Path, target: Path, overwrite: bool) -> None:
    """Rename `aside` to `target`. With `overwrite` an existing target makes way; without, only an empty one does."""
    if overwrite and target.exists():
        old = aside.with_suffix(REPLACED_SUFFIX)
        target.rename(old)
        try:
            aside.rename(target)
        except BaseException:
            old.rename(target)
            raise
        shutil.rmtree(old)
    else:
        aside.rename(target)  # takes the place of an empty directory; fails if another run has filled it by now
    sync(target.parent)


def finish_tree(directory: Path) -> None:
    """Hand every file and folder of `directory` to the disk (fsync), readable by the team.

    Left alone, folders of mkdtemp and files of safetensors are their owner's only.
    """
    for folder, _, names in os.walk(directory):
        Path(folder).chmod(0o755)
        for name in names:
            (Path(folder) / name).chmod(0o644)
            sync(Path(folder) / name)
        sync(Path(folder))


def sync(path: Path) -> None:
    """Hand what was written to a file or folder to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole_file(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8: the old content stays until the new one is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        aside.write_text(text, encoding="utf-8")
        sync(aside)
        aside.replace(path)
        sync(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, whole or not at all. Same value, same bytes."""
    write_whole_file(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON object. Raises UserError that names `what` the file should have been."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected {what}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); expected {what}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a JSON {type(value).__name__}, not an object; expected {what}")
    return value
