"""Files of a checkpoint: tensors come in, synced and hashed files go out; whole directories get their names.

Nothing here knows of other ranks. What is unfinished, or about to go, has a hidden name that ends in PARTIAL_SUFFIX.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from tokenizer_tools.command import UserError
from tokenizer_tools.lineage import sha256_of
from tokenizer_tools.outputs import finish_tree, full_disk_named, sync

PARTIAL_SUFFIX = ".partial"
TENSORS = ".safetensors"
METADATA = {"format": "pt"}

Record = tuple[int, str]
"""Size in bytes and sha256 of a file."""


@contextmanager
def faults_named(save_dir: Path) -> Iterator[None]:
    """What the disk refuses, as a UserError that says where the run goes on."""
    try:
        with full_disk_named(save_dir):
            yield
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{save_dir}: {error}; what was just being saved there is lost. Once that is mended, the same command goes "
            f"on from the newest checkpoint"
        ) from error


def write_tensors(
    directory: Path, files: Mapping[str, dict[str, torch.Tensor]], with_small_files: bool = False
) -> dict[str, Record]:
    """Write `files` into `directory`; size and hash of each, once they are on the disk.

    with_small_files: also of what rank 0 has put there. The other ranks, which are just writing into the same folders,
    write tensor files below the uppermost one, under hidden names at first, and no others.
    """
    names = set(files)
    for name, tensors in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata=METADATA)
    if with_small_files:
        found = (path for path in directory.rglob("*") if path.is_file())
        small = (path for path in found if path.suffix != TENSORS or path.parent == directory)
        small = (path for path in small if not path.name.startswith("."))
        names |= {str(path.relative_to(directory)) for path in small}
    return {name: _synced(directory / name) for name in sorted(names)}


def _synced(path: Path) -> Record:
    sync(path)
    return path.stat().st_size, sha256_of(path)


def remove_leftovers(save_dir: Path) -> None:
    """Delete what a killed run was just writing or deleting."""
    for path in save_dir.glob(f".*{PARTIAL_SUFFIX}"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def make_empty(directory: Path) -> None:
    """An empty directory, whatever lay there."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)


def put_in_place(aside: Path, target: Path) -> None:
    """Give a directory that was written aside its name; from now on it exists, also after a power failure."""
    finish_tree(aside)
    if target.exists():
        shutil.rmtree(hide(target))
    aside.rename(target)
    sync(target.parent)


def hide(directory: Path) -> Path:
    """`directory` under another name, to be deleted: a kill must not leave half of what is named like a whole one."""
    old = directory.with_name(f".{directory.name}.old{PARTIAL_SUFFIX}")
    shutil.rmtree(old, ignore_errors=True)
    directory.rename(old)
    return old


def delete(directories: list[Path]) -> None:
    """Delete what `hide` has given another name."""
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)
