"""The ranks of a rehearsed run: processes of train.py on this machine, started, watched, killed.

They get torchrun's environment, see no accelerator and end when this process ends. What they say is in a file each.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import psutil

from colossal_llama.host import WITHOUT_ACCELERATORS
from colossal_llama.rehearsal.verdict import Fault
from tokenizer_tools.command import UserError

POLL_SECONDS = 0.02
IDLE_SECONDS = 180.0
BUSY_SHARE = 0.01  # of one processor
MESSAGE_CHARACTERS = 500
USERS_EXIT_CODE = 2


class Job(Protocol):
    """The processes of one run."""

    logs: list[Path]
    """What each rank has said, by rank."""

    def exit_codes(self) -> list[int | None]:
        """By rank; None for one that is still at work."""
        ...

    def cpu_seconds(self) -> float:
        """Processor time that all ranks have used."""
        ...

    def kill(self) -> None:
        """SIGKILL to all ranks at once; returns when none is left."""
        ...


Start = Callable[[Path, int, Path], Job]
"""(flags of train.py in a file, number of ranks, beginning of the logs' names) -> the ranks, started."""


class Processes:
    """Ranks that are processes of their own; `script` is train.py."""

    def __init__(self, script: Path, flags: Path, world_size: int, log: Path) -> None:
        self.logs = [log.with_name(f"{log.name}.rank{rank}.log") for rank in range(world_size)]
        self._processes: list[subprocess.Popen[bytes]] = []
        port = _free_port()
        try:
            for rank, path in enumerate(self.logs):
                environment = os.environ | WITHOUT_ACCELERATORS | _environment(rank, world_size, port)
                environment["TMPDIR"] = str(flags.parent)  # what a killed one leaves goes with it
                self._processes.append(_process([sys.executable, str(script), str(flags)], path, environment))
        except BaseException:
            self.kill()
            raise

    def exit_codes(self) -> list[int | None]:
        """By rank; None for one that is still at work."""
        return [process.poll() for process in self._processes]

    def cpu_seconds(self) -> float:
        """Processor time that all ranks have used."""
        total = 0.0
        for process in self._processes:
            with suppress(psutil.Error):
                times = psutil.Process(process.pid).cpu_times()
                total += times.user + times.system
        return total

    def kill(self) -> None:
        """SIGKILL to all ranks at once; returns when none is left."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()


def _process(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as said:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends them
        )


def _environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    """torchrun's; with the run's id the ranks notice the end of this process."""
    own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    return {name: str(value) for name, value in own.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "TORCHELASTIC_RUN_ID": "rehearsal",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def watch(job: Job, until: Callable[[], bool] = lambda: False, idle_seconds: float = IDLE_SECONDS) -> bool:
    """Wait until all ranks have ended well, or `until()` holds. Returns whether they have ended.

    If one fails the others are killed. Raises UserError with its own line if that was the user's fault, Fault with its
    last line if not, and Fault if no rank has used the processor for `idle_seconds`. No rank is left then, nor
    when all have ended.
    """
    is_left_running = False
    try:
        busy_at, used = time.monotonic(), job.cpu_seconds()
        while True:
            codes = job.exit_codes()
            if any(codes):
                raise failure(job, next(rank for rank, code in enumerate(codes) if code))
            if None not in codes:
                return True
            if until():
                is_left_running = True
                return False
            now, used_now = time.monotonic(), job.cpu_seconds()
            if abs(used_now - used) > BUSY_SHARE * idle_seconds:  # less where a rank has ended
                busy_at, used = now, used_now
            if now - busy_at > idle_seconds:
                said = _last_line(job.logs[0])
                raise Fault(f"it hangs: no process has worked for {idle_seconds:.0f} seconds; the last word: {said}")
            time.sleep(POLL_SECONDS)
    finally:
        if not is_left_running:
            job.kill()


def failure(job: Job, rank: int) -> Exception:
    """What ended `rank`, the first to fail, in its own words: a UserError for exit code 2, else a Fault."""
    code, log = job.exit_codes()[rank], job.logs[rank]
    line = next((line for line in _lines(log) if line.startswith("error: ")), None)
    if line is not None:
        message = line.removeprefix("error: ")
        return UserError(message) if code == USERS_EXIT_CODE else Fault(message)
    by_whom = ", SIGKILL (is the memory full?)" if code == -signal.SIGKILL else ""
    return Fault(f"rank {rank} ended with exit code {code}{by_whom}: {_last_line(log)}")


def _last_line(log: Path) -> str:
    return ([line for line in _lines(log) if line.strip()] or ["it has said nothing"])[-1].strip()[:MESSAGE_CHARACTERS]


def _lines(log: Path) -> Sequence[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
