"""One process group writes into a --save_dir: a lock that its rank 0 holds, and that any death of it frees.

The ranks of a launcher that was killed still end their step and save; the next start of the same command waits.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import IO

from colossal_llama.cluster import main_rank_logger
from tokenizer_tools.command import UserError

LOCK = ".lock"
PATIENCE_SECONDS = 120
RETRY_SECONDS = 0.5


class RunLock:
    """The lock of one run, given back at the end of a `with` block. Rank 0 alone takes it."""

    def __init__(self, save_dir: Path) -> None:
        self._path = save_dir / LOCK
        self._file: IO[str] | None = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def take_if_there(self) -> None:
        """`take`, where a run has lain already."""
        if self._path.exists():
            self.take()

    def take(self) -> None:
        """Hold the lock from now on; again where --overwrite has replaced the directory.

        Raises UserError if another process keeps it for PATIENCE_SECONDS.
        """
        if self._file is not None and self._is_current(self._file):
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._path.open("a")  # which leaves its time alone
        log, begin = main_rank_logger(__name__), time.monotonic()
        while not _is_locked(self._file):
            if time.monotonic() - begin > PATIENCE_SECONDS:
                raise UserError(
                    f"{self._path.parent}: another process of this run still writes there after {PATIENCE_SECONDS} s; "
                    f"end it, or choose another --save_dir"
                )
            if time.monotonic() - begin < RETRY_SECONDS:
                log.info(f"{self._path.parent}: another process of this run is still at work there; waiting for it")
            time.sleep(RETRY_SECONDS)

    def _is_current(self, file: IO[str]) -> bool:
        return self._path.exists() and os.path.samestat(os.fstat(file.fileno()), self._path.stat())


def _is_locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # a file system without locks
        main_rank_logger(__name__).warning(f"{file.name}: {error.strerror}; nothing keeps a second process away")
    return True
