"""How an attempt to run a job has ended: the ends of its ranks and the lost hosts come in, a verdict goes out."""

from __future__ import annotations

import errno
import signal
from collections.abc import Sequence
from dataclasses import dataclass

DONE, FAULT, USER_FAULT, STOPPED, INTERRUPTED = 0, 1, 2, 75, 130
SPARED = (DONE, STOPPED)
DISK_FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE)
"""What a disk says that may be well on another host."""


@dataclass(frozen=True)
class RankEnd:
    """A process that has ended, in the order in which the launcher has heard of them."""

    host: str
    rank: int
    code: int
    """Exit code, or the negative number of the signal that ended it."""
    error: str
    """What it said of it, "" for nothing."""
    is_own: bool
    """Whether it has noted down a fault of its own: a rank that only lost the others has not."""
    errno: int | None = None
    was_killed: bool = False
    """Whether the launcher had it killed: then its end says nothing."""


@dataclass(frozen=True)
class HostLost:
    """A host that left before its ranks had."""

    host: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """Exit code of the launcher, and the line that says why."""

    code: int
    message: str | None = None
    faulty_disks: tuple[str, ...] = ()
    """Hosts whose disk has ended the run: the others may have better ones."""
    is_worth_another: bool = False
    """Whether the same job, on the hosts that are left, may well succeed."""


def outcome(ends: Sequence[RankEnd], lost: Sequence[HostLost], stopped_by: int | None) -> Outcome:
    """The verdict. `stopped_by`: the number of a signal that has asked the launcher to stop."""
    if lost:
        message = "; ".join(f"{one.host}: {one.reason}" for one in lost)
        culprit = first_failed([end for end in ends if end.is_own])
        if culprit is not None:
            message += f"; before that {_said(culprit)}"
        return Outcome(FAULT, message, is_worth_another=stopped_by is None)
    codes = {end.code for end in ends if not end.was_killed}
    is_whole = bool(ends) and not any(end.was_killed for end in ends)
    if is_whole and codes <= {DONE}:
        return Outcome(DONE)
    if is_whole and codes <= set(SPARED):
        return Outcome(STOPPED)
    if stopped_by is not None and codes <= {*SPARED, INTERRUPTED, -stopped_by, -signal.SIGTERM}:
        return Outcome(INTERRUPTED, f"interrupted by {signal.Signals(stopped_by).name}; every process has ended")
    culprit = first_failed(ends)
    assert culprit is not None, "someone ended with another code than 0 and 75"
    has_bad_disk = culprit.errno in DISK_FAULTS
    code = USER_FAULT if codes - set(SPARED) == {USER_FAULT} else FAULT
    faulty_disks = (culprit.host,) if has_bad_disk else ()
    is_worth_another = stopped_by is None and (code == FAULT or has_bad_disk)
    return Outcome(code, _said(culprit), faulty_disks, is_worth_another)


def first_failed(ends: Sequence[RankEnd]) -> RankEnd | None:
    """Whose fault it was: the first rank with a fault of its own, or ended by a signal; else the first to fail."""
    failed = [end for end in ends if end.code not in SPARED and not end.was_killed]
    own = [end for end in ends if end.is_own] + [end for end in failed if end.code < 0]
    return next(iter(own or failed), None)


def _said(end: RankEnd) -> str:
    """`rank 3 on h1 failed first (exit code 1): ...`"""
    how = f" (ended by {_signal_name(-end.code)})" if end.code < 0 else f" (exit code {end.code})"
    what = end.error.removeprefix("error: ") if end.is_own or end.code > 0 else ""
    if end.was_killed:  # while it was leaving, with what it had noted down
        how = ""
    elif end.code == -signal.SIGKILL:
        what = f"by its watch, which has said so then, by somebody, or for want of memory: `dmesg` on {end.host} says"
    return f"rank {end.rank} on {end.host} failed first{how}{': ' + what if what else ''}"


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in {int(one) for one in signal.Signals} else f"signal {number}"
