"""The watch of the ranks over each other: a rank that is gone, stopped or stuck is named by all others, which then end.

gloo and NCCL wait for COLLECTIVE_TIMEOUT for a peer that has fallen silent. Here a helper process beside each rank
(`hosts/beats.py`) tells the others that it lives and how far it is, under any launcher.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from colossal_llama.cluster import RANK_LOGGER, Cluster, has_lost_a_rank, leave_lost, main_rank_logger
from colossal_llama.hosts.board import Limits, in_words
from tokenizer_tools.command import Stopped, UserError

Item = TypeVar("Item")

PHASES = ("starting", "agreeing with the others", "saving", "evaluating", "reading rows", "computing")
"""What a rank does after so many steps, in this order."""
STARTING, AGREEING, SAVING, EVALUATING, READING, COMPUTING = range(len(PHASES))
TIMED = (AGREEING, READING, COMPUTING)
BROKEN_BEATS = 6
"""For the verdict to come, once a connection has broken."""
BOOT = "import sys; sys.path.append(sys.argv[1]); from colossal_llama.hosts.beats import main; main()"


class Pulse:
    """What this rank tells its helper. Where there is none, nothing happens."""

    def __init__(self, process: subprocess.Popen[bytes] | None = None) -> None:
        self._process = process
        self._step = self._first_step = 0
        if process is not None and process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)  # a helper that takes nothing must not hold up the training

    def begin_stage(self, step: int) -> None:
        """A stage begins after `step` steps. Its first one may take as long as it likes."""
        self._first_step = step
        self.at(STARTING, step)

    def at(self, phase: int, step: int | None = None) -> None:
        """This rank begins with `phase`, a place in PHASES, and has done `step` steps (default: as many as before)."""
        self._step = self._step if step is None else step
        is_timed = phase in TIMED and self._step != self._first_step
        self._tell({"step": self._step, "phase": phase, "doing": PHASES[phase], "is_timed": is_timed})

    def reading(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; notes when the next one is waited for, and when it is there to be computed with."""
        self.at(READING)
        for item in items:
            self.at(COMPUTING)
            yield item
            self.at(READING)

    def broken(self) -> None:
        """A connection to another rank has broken."""
        self._tell({"broken": True})

    def leave(self, wait_seconds: float) -> None:
        """Say goodbye: from now on nobody misses this rank."""
        self._tell({"left": True})
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(wait_seconds)
        self._process = None

    def _tell(self, note: dict[str, Any]) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                os.write(self._process.stdin.fileno(), json.dumps(note).encode() + b"\n")


NO_PULSE = Pulse()
"""Of a rank that nobody watches."""
GOODBYE_SECONDS = 6.0


@contextmanager
def watched(cluster: Cluster, limits: Limits) -> Iterator[Pulse]:
    """Watch the ranks while this is open. All ranks open it together.

    A rank that finds another one lost logs why and leaves with exit code 1, wherever its main thread hangs.
    """
    pulse = _start(cluster, limits) if cluster.world_size > 1 else NO_PULSE
    try:
        yield pulse
    except (UserError, Stopped):  # raised by all ranks together
        pulse.leave(GOODBYE_SECONDS)
        raise
    except Exception as error:
        if has_lost_a_rank(error):
            pulse.broken()
            leave_lost(error, BROKEN_BEATS * limits.beat_seconds)
        raise
    else:
        pulse.leave(GOODBYE_SECONDS)


def _start(cluster: Cluster, limits: Limits) -> Pulse:
    """A helper for each rank, or for none if one of them does not come up: nobody shall be missed by mistake."""
    log = main_rank_logger(__name__)
    process = _helper()
    fault = _fault_of_any(process, cluster, limits)
    if fault is not None:
        Pulse(process).leave(0)
        log.warning(
            f"the ranks cannot watch each other ({fault}): one that is lost without a word is noticed after an hour "
            f"only; let the hosts connect to each other at all TCP ports"
        )
        return Pulse()
    threading.Thread(target=_listen, args=(process, cluster.rank), daemon=True).start()
    log.info(f"a rank that is not heard of for {in_words(limits.lost_seconds)} ends the run")
    return Pulse(process)


def _fault_of_any(process: subprocess.Popen[bytes] | None, cluster: Cluster, limits: Limits) -> str | None:
    """Give every rank's helper its settings. Why one of them does not reach the board; None if all of them do."""
    hosts: list[str] = [""] * cluster.world_size
    dist.all_gather_object(hosts, socket.gethostname())
    settings: dict[str, Any] = {
        "rank": cluster.rank,
        "pid": os.getpid(),
        "hosts": hosts,
        "lost_seconds": limits.lost_seconds,
        "stall_seconds": limits.stall_seconds,
    }
    board: list[dict[str, Any]] = [{}]
    if cluster.is_main:
        board[0] = {"address": os.environ["MASTER_ADDR"], "token": secrets.token_hex(16)}
        board[0] |= _asked(process, {**settings, **board[0]})
    dist.broadcast_object_list(board, src=0)
    answer = _heard(process) if cluster.is_main else _asked(process, {**settings, **board[0]})
    faults: list[str | None] = [None] * cluster.world_size
    dist.all_gather_object(faults, answer.get("fault", "no helper process"))
    return next((f"{host}: {fault}" for host, fault in zip(hosts, faults, strict=True) if fault is not None), None)


def _helper() -> subprocess.Popen[bytes] | None:
    """None if the system starts no more processes.

    -I -S: it starts in a tenth of a second, and nothing installed or lying about can disturb it.
    """
    root = Path(__file__).resolve().parent.parent
    words = [sys.executable, "-I", "-S", "-c", BOOT, str(root)]
    try:
        return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/")
    except OSError:
        return None


def _asked(process: subprocess.Popen[bytes] | None, settings: dict[str, Any]) -> dict[str, Any]:
    """Its first words after it got its settings."""
    if process is None or "port" not in settings and settings["rank"] != 0:
        return {}
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.write(json.dumps(settings).encode() + b"\n")
        process.stdin.flush()
    return _heard(process)


def _heard(process: subprocess.Popen[bytes] | None) -> dict[str, Any]:
    """What it says next; nothing if it has ended."""
    if process is None:
        return {}
    assert process.stdout is not None
    return dict(json.loads(process.stdout.readline() or b"{}"))


def _listen(process: subprocess.Popen[bytes], rank: int) -> None:
    """A thread that ends this process when the helper says so. The main thread may hang in a collective."""
    log = logging.getLogger(RANK_LOGGER)
    while message := _heard(process):
        if "warning" in message:
            log.warning(message["warning"])
        if "verdict" in message:
            log.error(f"rank {rank}: {message['verdict']}")
            sys.stdout.flush()
            os._exit(1)
