"""The ranks of a trial all-reduce on one host: started, waited for, and ended whatever happens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from typing import IO, Any

from colossal_llama.hosts.all_reduce import NUM_BYTES, PARENT

TURN_SECONDS = 0.1
GRACE_SECONDS = 5.0
"""After one rank has failed: for the others to notice."""
LAST_BYTES = 4000


def add_up_on_ranks(
    left: ExitStack,
    first_rank: int,
    num_ranks: int,
    world_size: int,
    environment: dict[str, str],
    num_bytes: int,
    seconds: float,
) -> dict[str, Any]:
    """{"ranks": [...]}, for each rank of this host its `Sum`, or {"error": ...} with the last words it had.

    `environment` names the first host and the port. None lives longer than `seconds`, or than `left` is open.
    """
    variables = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(num_ranks), NUM_BYTES: str(num_bytes)}
    variables[PARENT] = str(os.getpid())
    variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment, **variables}
    processes = [
        _Rank({**variables, "RANK": str(first_rank + local_rank), "LOCAL_RANK": str(local_rank)})
        for local_rank in range(num_ranks)
    ]
    for process in processes:
        left.callback(process.kill)
    deadline = time.monotonic() + seconds
    while any(one.is_running for one in processes) and time.monotonic() < deadline:
        if any(one.has_failed for one in processes):
            deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        time.sleep(TURN_SECONDS)
    return {"ranks": [{"rank": first_rank + index, **process.result()} for index, process in enumerate(processes)]}


class _Rank:
    """A process and what it says, which lies in files so that nobody has to read it meanwhile."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._said, self._complained = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", "colossal_llama.hosts.all_reduce"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._said,
            stderr=self._complained,
        )

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    @property
    def has_failed(self) -> bool:
        return self._process.poll() not in (None, 0)

    def kill(self) -> None:
        if self.is_running:
            self._process.kill()
            self._process.wait()

    def result(self) -> dict[str, Any]:
        was_running = self.is_running
        self.kill()
        if was_running:
            return {"error": "had not ended in time", "is_late": True}
        if self._process.returncode:
            lines = _end_of(self._complained).splitlines()
            return {"error": lines[-1].strip() if lines else f"exit code {self._process.returncode}"}
        return json.loads(_end_of(self._said).splitlines()[-1])


def _end_of(file: IO[bytes]) -> str:
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - LAST_BYTES))
    return file.read().decode(errors="replace").strip()
