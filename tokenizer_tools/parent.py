"""A process that must not outlive the one that started it. Linux only; elsewhere nothing happens."""

from __future__ import annotations

import ctypes
import os

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(parent: int, signal_number: int) -> None:
    """Let the system send `signal_number` to this process as soon as its parent, process `parent`, ends in any way."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        libc.prctl(PR_SET_PDEATHSIG, signal_number)
        if os.getppid() != parent:  # it ended before the system was asked
            os.kill(os.getpid(), signal_number)
