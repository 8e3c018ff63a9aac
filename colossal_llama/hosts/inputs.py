"""What a host sees of a directory that a run reads: its files and their digests, to be compared with other hosts'."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

from tokenizer_tools.lineage import sha256_of

MANIFEST = "manifest.json"
PIECE_BYTES = 2**20
WHOLE_BYTES = 4 * PIECE_BYTES
"""A file up to this size is always read whole."""
DIGITS = 16
NUM_READERS = 8


class Seen(TypedDict):
    """A directory as one host sees it; `files` {path in it: size and digest} is None where there is no such directory.

    `place` is over the files' inodes and times: equal where two hosts look at one file system.
    """

    files: dict[str, str] | None
    size_bytes: int
    place: str


def see(directory: Path, reads_all: bool) -> Seen:
    """The files below `directory`, hidden ones apart; a bucket's manifest may lie beside it.

    The digest is of the first, the middle and the last MiB of a file above 4 MiB, unless `reads_all`. Raises UserError
    for a file that cannot be read.
    """
    if not directory.is_dir():
        return Seen(files=None, size_bytes=0, place="")
    paths = sorted(_files_below(directory))
    if not (directory / MANIFEST).exists() and (directory.parent / MANIFEST).is_file():
        paths.append(directory.parent / MANIFEST)
    stats = [path.stat() for path in paths]
    with ThreadPoolExecutor(NUM_READERS) as pool:
        digests = list(pool.map(sha256_of if reads_all else sample_of, paths))
    names = [os.path.relpath(path, directory) for path in paths]
    place = [(name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in zip(names, stats, strict=True)]
    return Seen(
        files={n: f"{s.st_size} {d[:DIGITS]}" for n, s, d in zip(names, stats, digests, strict=True)},
        size_bytes=sum(stat.st_size for stat in stats),
        place=hashlib.sha256(repr(place).encode()).hexdigest()[:DIGITS],
    )


def sample_of(path: Path) -> str:
    """sha256 of a small file, or of three pieces of a large one. Raises UserError where it cannot be read."""
    size_bytes = path.stat().st_size
    if size_bytes <= WHOLE_BYTES:
        return sha256_of(path)
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for start in (0, size_bytes // 2, size_bytes - PIECE_BYTES):
            file.seek(start)
            digest.update(file.read(PIECE_BYTES))
    return digest.hexdigest()


def _files_below(directory: Path) -> list[Path]:
    found = []
    for folder, folders, names in os.walk(directory, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return [path for path in found if path.is_file()]
