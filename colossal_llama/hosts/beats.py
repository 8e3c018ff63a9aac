"""A process beside each rank that tells the others that it lives, and ends it when the run has lost somebody.

`watch.py` starts it. It is a process of its own so that neither a rank that is stopped, nor one that holds Python's
lock for a minute, silences it or escapes it; it needs nothing but the standard library. The one beside rank 0 keeps the
board (`board.py`); the others ask it again and again, each time over a new connection, so that a link that was cut for
some seconds is as good as ever once it is mended. Rank and helper talk in lines of JSON:

    to the helper:  the settings; {"step": 7, "phase": 2, "doing": "computing", "is_timed": true}; {"broken": true};
                    {"left": true}; the end of its stdin is the end of the rank
    from it:        {"port": 4711} (of the board); {"fault": null} or why the board cannot be asked; {"warning": "..."};
                    {"verdict": "..."}
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from colossal_llama.hosts.asking import Ask, Clock, ask_over, serve
from colossal_llama.hosts.board import (
    BROKEN_GRACE_SECONDS,
    GOES_ON,
    PADDING_BYTES,
    Answer,
    Beat,
    Board,
    Limits,
    State,
    not_heard_of,
)

START_SECONDS = 15.0
"""For the board to be reached for the first time."""
LINGER_SECONDS = 5.0
"""Of the board when rank 0 has gone, for the others to hear of it."""
GOODBYE_SECONDS = 3.0
KILL_SECONDS = 5.0
"""From a verdict until a rank that does not leave is killed."""
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""A signal to all processes of a run is meant for the ranks."""


@dataclass
class Steps:
    """What the rank has said of its way, and since when it should have come further."""

    place: tuple[int, int] = (0, 0)
    doing: str = "starting"
    longest_seconds: float = 0.0
    _began: float | None = None

    def take(self, note: dict[str, Any], now: float) -> None:
        """A note of the rank. What is not timed, such as a save, and what comes before, is no part of a step."""
        if not note["is_timed"]:
            self._began = None
        elif self._began is None:
            self._began = now
        elif note["step"] > self.place[0]:
            self.longest_seconds = max(self.longest_seconds, now - self._began)
            self._began = now
        self.place, self.doing = (note["step"], note["phase"]), note["doing"]

    def waits_seconds(self, now: float) -> float:
        """Since the last step has ended; 0 where none is expected to."""
        began = self._began
        return 0.0 if began is None else now - began


class Ear(threading.Thread):
    """Reads what the rank says."""

    def __init__(self, steps: Steps, is_news: threading.Event) -> None:
        super().__init__(daemon=True)
        self._steps, self._is_news = steps, is_news
        self.end: State | None = None
        self.is_broken = False

    def run(self) -> None:
        """To the end of stdin."""
        for line in sys.stdin.buffer:
            note = json.loads(line)
            if "step" in note:
                self._steps.take(note, time.monotonic())
                continue
            self.is_broken |= "broken" in note
            self.end = "left" if "left" in note else self.end
            self._is_news.set()
        self.end = self.end or "ended"
        self._is_news.set()


class Helper:
    """The life of this process."""

    def __init__(self, settings: dict[str, Any], limits: Limits, ask: Ask, clock: Clock) -> None:
        self._rank, self._parent, self._hosts = settings["rank"], settings["pid"], settings["hosts"]
        self._limits, self._ask, self._clock = limits, ask, clock
        self._is_news = threading.Event()
        self._steps = Steps()
        self._ear = Ear(self._steps, self._is_news)
        self._answer_seconds = 0.0
        self._asked_at: float | None = None

    def run(self) -> None:
        """Until the rank has ended, or everybody has to."""
        deadline = time.monotonic() + START_SECONDS
        answer = self._try(self._limits.ask_seconds)
        while answer is None and time.monotonic() < deadline:
            time.sleep(self._limits.beat_seconds)
            answer = self._try(self._limits.ask_seconds)
        _tell({"fault": None if answer else f"{self._hosts[0]} does not answer"})
        self._ear.start()
        if self._rank != 0:
            threading.Thread(target=self._weigh_network, daemon=True).start()
        verdict = self._beat_to_the_end() if answer else None
        if verdict is not None:
            self._end_rank(verdict)

    def _beat_to_the_end(self) -> Answer | None:
        """The verdict, once it is time to leave; None if the rank has gone."""
        heard_at = self._clock.advance()
        while self._ear.end is None:
            left_seconds = heard_at + self._limits.patience_seconds(self._ear.is_broken) - self._clock.now
            answer = self._try(min(self._limits.ask_seconds, max(left_seconds, self._limits.beat_seconds)))
            now = self._clock.advance()
            if answer is not None:
                heard_at = now
            elif now - heard_at > self._limits.patience_seconds(self._ear.is_broken):
                who = f"rank 0 on {self._hosts[0]}, which keeps the ranks together, has"
                return Answer(f"{not_heard_of(who, now - heard_at)}; {GOES_ON}")
            if answer is not None and answer.is_closing:
                self._wait(None)
                return None  # nobody is left to say goodbye to
            if answer is not None and answer.verdict is not None:
                self._wait(answer.leave_in_seconds)
                return answer if self._ear.end is None else None
            self._is_news.wait(self._limits.beat_seconds / (2 if self._ear.is_broken else 1))
            self._is_news.clear()
        self._say_goodbye()
        return None

    def _wait(self, seconds: float | None) -> None:
        """For the rank's end, and no longer than `seconds`; a rank with a broken connection has little to wait for."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while self._ear.end is None and (deadline is None or time.monotonic() < deadline):
            if deadline is not None and self._ear.is_broken:
                deadline = min(deadline, time.monotonic() + BROKEN_GRACE_SECONDS)
            self._is_news.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
            self._is_news.clear()

    def _say_goodbye(self) -> None:
        deadline = time.monotonic() + GOODBYE_SECONDS
        while self._try(self._limits.ask_seconds) is None and time.monotonic() < deadline:
            time.sleep(self._limits.beat_seconds)

    def _try(self, timeout_seconds: float) -> Answer | None:
        try:
            answer = self._ask(self._beat(), timeout_seconds, 0)
        except (OSError, ValueError):
            return None
        if answer.warning is not None:
            _tell({"warning": answer.warning})
        return answer

    def _beat(self) -> Beat:
        now, asked_at = time.monotonic(), self._asked_at
        return Beat(
            self._rank,
            self._ear.end or self._state(),
            self._ear.is_broken,
            self._steps.place,
            self._steps.doing,
            self._steps.waits_seconds(now),
            self._steps.longest_seconds,
            max(self._answer_seconds, 0.0 if asked_at is None else now - asked_at),
        )

    def _weigh_network(self) -> None:
        """A thread that asks with a heavy question while a step is late."""
        while self._ear.end is None:
            beat = self._beat()
            if beat.waits_seconds > self._limits.late_after_seconds(beat) / 2:  # known by the time that it is said
                self._asked_at = began = time.monotonic()
                with contextlib.suppress(OSError, ValueError):
                    self._ask(beat, self._limits.lost_seconds, PADDING_BYTES)
                self._answer_seconds = time.monotonic() - began
                self._asked_at = None
            time.sleep(self._limits.beat_seconds)

    def _state(self) -> State:
        """A debugger may hold the rank as long as it likes."""
        return "stopped" if state_of(self._parent) == "T" else "alive"

    def _end_rank(self, answer: Answer) -> None:
        """The rank says why and leaves, or is made to: one that is stopped cannot, nor one that holds Python's lock."""
        _tell({"verdict": answer.verdict})
        deadline = time.monotonic() + KILL_SECONDS
        while self._ear.end is None and state_of(self._parent) != "T" and time.monotonic() < deadline:
            self._is_news.wait(0.1)
            self._is_news.clear()
        if self._ear.end is None and os.getppid() == self._parent:
            print(f"rank {self._rank}: {answer.verdict}", file=sys.stderr, flush=True)
            os.kill(self._parent, signal.SIGKILL)


def state_of(pid: int) -> str:
    """Linux's letter for what a process does (T: stopped by a signal, t: by a debugger); "" where nobody knows."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def main() -> NoReturn:
    """Beside one rank."""
    _live()
    os._exit(0)  # a thread still reads stdin


def _live() -> None:
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    settings = json.loads(sys.stdin.buffer.readline() or "{}")
    if not settings:
        return
    limits = Limits(settings["lost_seconds"], settings["stall_seconds"])
    clock = Clock(2 * (limits.beat_seconds + limits.ask_seconds))
    if settings["rank"] != 0:
        address = (settings["address"], settings["port"])
        Helper(settings, limits, ask_over(address, settings["token"]), clock).run()
        return
    board = Board(settings["hosts"], limits)
    _tell({"port": serve(board, settings["token"], clock)})
    Helper(settings, limits, lambda beat, *_: board.take(beat, clock.advance()), clock).run()
    deadline = time.monotonic() + LINGER_SECONDS
    while not board.has_told_all and time.monotonic() < deadline:
        time.sleep(min(0.05, limits.beat_seconds))


def _tell(message: dict[str, Any]) -> None:
    """To the rank, which may have gone."""
    with contextlib.suppress(OSError):
        print(json.dumps(message), flush=True)
