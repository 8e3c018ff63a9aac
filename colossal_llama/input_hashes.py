"""The sha256 of a run's input files, by all ranks together: paths come in, a digest of each file goes out.

What a file's place on the disk (size, times, inode) proves to be as it was, when this run hashed it before, is not read
again; `<save_dir>/hashed_files.json` holds that.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from colossal_llama.cluster import main_rank_logger, together
from tokenizer_tools.command import UserError
from tokenizer_tools.lineage import DIGITS, hash_files
from tokenizer_tools.outputs import read_json, write_json

Value = TypeVar("Value")

HASHED = "hashed_files.json"
WORTH_TELLING_SECONDS = 2
GIGABYTE = 10**9


@dataclass(frozen=True)
class FileState:
    """A file as the disk knows it. A change of its content changes the time of its inode, which nobody can set."""

    path: str
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    inode: int


Hashed = dict[FileState, str]


def hash_together(paths: Sequence[Path], known: Hashed) -> Hashed:
    """The sha256 of files that all ranks see, each hashed once; on hosts with disks of their own, once on each.

    What is `known` of a file as it lies there is not asked again. All ranks call it. Raises UserError on all ranks.
    """
    began = time.monotonic()
    own = together(lambda: [file_state(path) for path in dict.fromkeys(paths)])
    seen = _from_all_ranks(own)
    share = share_out(seen, known)[dist.get_rank()]
    threads = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    is_main = dist.get_rank() == 0
    digests = together(lambda: hash_files([Path(state.path) for state in share], threads, shows=is_main))
    found = {
        state: digest
        for part in _from_all_ranks(dict(zip(share, digests, strict=True)))
        for state, digest in part.items()
    }
    seconds = time.monotonic() - began
    if seconds > WORTH_TELLING_SECONDS:
        num_bytes = sum(state.size_bytes for state in found)
        main_rank_logger(__name__).info(f"hashed {num_bytes / GIGABYTE:.1f} GB of inputs in {seconds:.0f} s")
    present = sorted({state for states in seen for state in states}, key=astuple)
    return {state: found[state] if state in found else known[state] for state in present}


def share_out(seen: Sequence[Sequence[FileState]], known: Hashed) -> list[list[FileState]]:
    """For each rank the files to hash: each state once, by a rank that sees it, and the bytes as even as that allows.

    `seen`: what each rank sees. Two hosts whose disks are not one see two states.
    """
    ranks_of: dict[FileState, list[int]] = {}
    for rank, states in enumerate(seen):
        for state in states:
            ranks_of.setdefault(state, []).append(rank)
    shares: list[list[FileState]] = [[] for _ in seen]
    loads = [0] * len(seen)
    for state in sorted(ranks_of.keys() - known.keys(), key=lambda one: (-one.size_bytes, astuple(one))):
        rank = min(ranks_of[state], key=lambda one: (loads[one], one))
        shares[rank].append(state)
        loads[rank] += state.size_bytes
    return shares


def file_state(path: Path) -> FileState:
    """A file as it lies on the disk now, under its absolute path. Raises UserError if it is not there."""
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; restore it, it is one of the run's inputs") from None
    return FileState(str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def read_hashed(save_dir: Path) -> Hashed:
    """What an earlier process of this run has hashed. A note that is missing or broken says nothing."""
    try:
        files = read_json(save_dir / HASHED, "sha256 of a run's inputs")["files"]
        return {FileState(**{key: file[key] for key in FileState.__annotations__}): file["sha256"] for file in files}
    except (UserError, OSError, KeyError, TypeError):
        return {}


def write_hashed(save_dir: Path, hashed: Hashed) -> None:
    """Write what has been hashed, for the next process of this run."""
    files = [asdict(state) | {"sha256": digest} for state, digest in hashed.items()]
    write_json(save_dir / HASHED, {"files": files})


def hosts_of(hashed: Hashed) -> dict[FileState, str]:
    """The name of a host that sees a file so, for each of them. All ranks call it."""
    own = {file_state(Path(path)) for path in {state.path for state in hashed}}
    seen = _from_all_ranks((socket.gethostname(), own & hashed.keys()))
    return {state: host for host, states in reversed(seen) for state in states}


def one_digest_a_file(hashed: Hashed, hosts: Mapping[FileState, str]) -> dict[Path, str]:
    """{absolute path: sha256}. Raises UserError, which names `hosts`, if they see different files under one path."""
    first: dict[Path, FileState] = {}
    for state, digest in hashed.items():
        other = first.setdefault(Path(state.path), state)
        if hashed[other] != digest:
            sides = (f"{hashed[one][:DIGITS]}{f' on {hosts[one]}' if one in hosts else ''}" for one in (other, state))
            raise UserError(
                f"{state.path}: is not the same file on all hosts (sha256 {' and '.join(sides)}); "
                f"copy it anew to one of them"
            )
    return {path: hashed[state] for path, state in first.items()}


def _from_all_ranks(value: Value) -> list[Value]:
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered
