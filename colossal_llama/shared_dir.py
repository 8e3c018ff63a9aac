"""Whether all hosts of a run see one directory: asked of --save_dir before anything is loaded."""

from __future__ import annotations

import os
import secrets
import socket
import time
from pathlib import Path

import torch.distributed as dist

from colossal_llama.checkpoint_files import PARTIAL_SUFFIX
from colossal_llama.cluster import on_main, spans_hosts
from tokenizer_tools.command import UserError

PATIENCE_SECONDS = 10.0
"""For what one host has written to be seen from another: NFS keeps what it knows of a directory for some seconds."""
LOOK_SECONDS = 0.2


def refuse_separate_disks(save_dir: Path) -> None:
    """Raise UserError, on all ranks, if a host of the run does not see what rank 0 writes into `save_dir`.

    Where `save_dir` is not there yet, the nearest folder above it that is answers for it. All ranks call it.
    """
    if not spans_hosts():
        return
    marker, content = on_main(lambda: _written(save_dir))
    answers: list[tuple[str, bool]] = [("", True)] * dist.get_world_size()
    try:
        is_asked = os.environ["LOCAL_RANK"] == "0" and dist.get_rank() != 0
        dist.all_gather_object(answers, (socket.gethostname(), not is_asked or _is_seen(marker, content)))
    finally:
        if dist.get_rank() == 0:
            marker.unlink(missing_ok=True)
    blind = [host for host, is_seen in answers if not is_seen]
    if blind:
        raise UserError(
            f"--save_dir {save_dir}: what {answers[0][0]} writes there is not to be seen from {', '.join(blind)}; the "
            f"hosts write a checkpoint together: name a directory on a file system that all of them share, such as NFS"
        )


def _written(save_dir: Path) -> tuple[Path, str]:
    """A marker in `save_dir`, under a name that no run is hindered by, and what it holds."""
    directory = save_dir.absolute()
    while not directory.is_dir():
        directory = directory.parent
    content = secrets.token_hex(16)
    marker = directory / f".{content}{PARTIAL_SUFFIX}"
    marker.write_text(content)
    return marker, content


def _is_seen(marker: Path, content: str) -> bool:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not _holds(marker, content):
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_SECONDS)
    return True


def _holds(marker: Path, content: str) -> bool:
    """Whether it is there. The directory is read anew each time, which makes NFS ask its server."""
    try:
        return marker in marker.parent.iterdir() and marker.read_text() == content
    except OSError:
        return False
