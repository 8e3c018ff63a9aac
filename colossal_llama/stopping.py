"""When a run stops before its end: signals and a time limit come in, after every step a reason goes out. No torch.

The first signal lets the step in progress end; a second one, a second later or more, raises KeyboardInterrupt at once.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType

from tokenizer_tools.command import Stopped

REPEAT_SECONDS = 1.0
"""A launcher may pass on what the terminal has sent to all of its group: within this time it is the same request."""
LEAVE_SECONDS = 5.0
"""From a second signal on, for tidying up; a main thread that waits for another rank, which may hang, hears of none."""
INTERRUPTED_EXIT_CODE = 130
LEFT_AT_ONCE = "interrupted again: what was not saved yet is lost; the same command goes on from the last checkpoint"
DURATION_RULE = "such as 90s, 45m, 4h, 1h30m, 04:00:00 or 1-12:00:00 (days-hours:minutes:seconds)"
UNITS = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")
CLOCK = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)")
SECONDS = (86400, 3600, 60, 1)


class Reason(IntEnum):
    """Why a run stops: 0 for not at all, the number of a signal, or 1. Ranks agree on the largest of theirs."""

    NONE = 0
    TIME_LIMIT = 1
    SIGINT = signal.SIGINT
    SIGUSR1 = signal.SIGUSR1
    SIGTERM = signal.SIGTERM

    @property
    def words(self) -> str:
        """As a log line says it."""
        return "--time_limit" if self is Reason.TIME_LIMIT else self.name


def seconds_of(text: str) -> int:
    """'1h30m', '04:00:00' or '1-12:00:00' -> seconds. Raises ValueError for another form, and for no time at all.

    A number alone, or two with one colon, are not taken: Slurm reads minutes there, others seconds or hours.
    """
    match = UNITS.fullmatch(text) or CLOCK.fullmatch(text)
    seconds = sum(int(part or 0) * unit for part, unit in zip(match.groups(), SECONDS, strict=True)) if match else 0
    if not seconds:
        raise ValueError(f"must be a time with its unit, {DURATION_RULE}")
    return seconds


class StopRequests:
    """What asks this rank to stop. Times are seconds of a clock that nobody sets (`time.monotonic`).

    `started`: when the process began; `time_limit_seconds`: how long it may take from then on, None for ever.
    """

    def __init__(
        self, time_limit_seconds: float | None, started: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._deadline = float("inf") if time_limit_seconds is None else started + time_limit_seconds
        self._clock = clock
        self._signal = Reason.NONE
        self._signal_time = 0.0
        self._step_began = clock()
        self._step_seconds = 0.0
        self._save_seconds = self._step_began - started  # until a save has shown better: loading took about as long
        self._is_saving = False

    def take(self, number: int, _: FrameType | None) -> None:
        """The signal handler. Raises KeyboardInterrupt if a signal has come before, REPEAT_SECONDS ago or more."""
        now = self._clock()
        if self._signal is Reason.NONE:
            self._signal, self._signal_time = Reason(number), now
            _say(f"{self._signal.words}: this step ends, is saved, and the run leaves; a second signal leaves at once")
        elif now - self._signal_time >= REPEAT_SECONDS:
            raise KeyboardInterrupt(LEFT_AT_ONCE)

    def reason_after_step(self) -> Reason:
        """Why this rank wants to stop now, at the end of a step.

        The time limit asks for it while there is still room for the longest step so far, with whatever else was done
        between two of these calls, and for the longest save: twice while another one is still being written.
        """
        now = self._clock()
        self._step_seconds = max(self._step_seconds, now - self._step_began)
        self._step_began = now
        if self._signal is not Reason.NONE:
            return self._signal
        needed_seconds = self._step_seconds + self._save_seconds * (1 + self._is_saving)
        return Reason.TIME_LIMIT if now + needed_seconds > self._deadline else Reason.NONE

    def save_begins(self) -> None:
        """A checkpoint is being written from now on, until `save_took`."""
        self._is_saving = True

    def save_took(self, seconds: float) -> None:
        """Remember how long a save took, from its beginning until the checkpoint had its name."""
        self._save_seconds = max(self._save_seconds, seconds)
        self._is_saving = False


@contextmanager
def stop_requests(time_limit_seconds: float | None, started: float) -> Iterator[StopRequests]:
    """Take SIGTERM, SIGINT and SIGUSR1 as requests to stop while this is open; see `StopRequests`. Main thread only.

    After `Stopped` signals are left alone: all is saved, and torchrun sends SIGTERM to the ranks that leave last.
    """
    requests = StopRequests(time_limit_seconds, started)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_leave_after_the_second, args=(reading,), daemon=True).start()
    handlers = {number: signal.signal(number, requests.take) for number in _signals()}
    earlier = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield requests
    except Stopped:
        handlers = dict.fromkeys(handlers, signal.SIG_IGN)
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(earlier)
        os.close(writing)


def _leave_after_the_second(reading: int) -> None:
    """A thread that gets the number of every signal at once, and ends the process if the main thread does not."""
    first: float | None = None
    while number := os.read(reading, 1):
        now = time.monotonic()
        if number[0] in _signals():
            first = now if first is None else first
            if now - first >= REPEAT_SECONDS:
                time.sleep(LEAVE_SECONDS)
                _say(f"error: {LEFT_AT_ONCE}")
                os._exit(INTERRUPTED_EXIT_CODE)
    os.close(reading)


def _signals() -> tuple[signal.Signals, ...]:
    return signal.SIGTERM, signal.SIGINT, signal.SIGUSR1


def _say(line: str) -> None:
    """On the first rank of a host; straight to the system, since a handler may have interrupted a logger."""
    if os.environ.get("LOCAL_RANK", "0") == "0":
        os.write(sys.stderr.fileno(), f"{line}\n".encode())
