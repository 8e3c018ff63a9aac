"""Who is lost: what the ranks of a run say of themselves, beat after beat, comes in; a verdict for all goes out.

Times are seconds of a clock that the caller gives, which should stand still while this process does. Standard library
only: `beats.py` runs this beside the ranks.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["alive", "stopped", "ended", "left"]

BEATS_PER_LIMIT = 15
ASKS_PER_LIMIT = 6
BEATS_WHEN_BROKEN = 3
"""A rank whose connection has broken wants to know soon whose fault it was."""
LEAVE_BEATS = 2
"""From a verdict until the ranks leave: all of them hear of it within a beat, so that all can say it."""
ENDED_GRACE_SECONDS = 5.0
"""A rank that has ended is found by its peers' connections first; what they say is said before this time is over."""
BROKEN_GRACE_SECONDS = 1.0
SLOW_ANSWER_SECONDS = 0.05
PADDING_BYTES = 16_000
"""Beside a question and its answer once a step is late, so that a network without speed shows."""
STEPS_PER_LIMIT = 10
"""A step may take so many times as long as the longest before it."""
WARNINGS_PER_LIMIT = 10
"""A step that takes this part of the limit is worth a warning."""
GOES_ON = "this run ends here, the same command goes on from the newest checkpoint"


@dataclass(frozen=True)
class Limits:
    """How long a run waits for a rank that is not heard of, and for the end of a step."""

    lost_seconds: float
    stall_seconds: float

    @property
    def beat_seconds(self) -> float:
        """Between two beats of a rank."""
        return self.lost_seconds / BEATS_PER_LIMIT

    @property
    def ask_seconds(self) -> float:
        """For an answer to a beat."""
        return self.lost_seconds / ASKS_PER_LIMIT

    def patience_seconds(self, is_broken: bool) -> float:
        """With a rank that is not heard of; less once a connection has broken."""
        return BEATS_WHEN_BROKEN * self.beat_seconds if is_broken else self.lost_seconds

    def is_stalled(self, beat: Beat) -> bool:
        """Whether a rank has waited too long for the end of a step."""
        return beat.waits_seconds > max(self.stall_seconds, STEPS_PER_LIMIT * beat.longest_seconds)

    def late_after_seconds(self, beat: Beat) -> float:
        """How long a rank may wait for the end of a step before that is remarkable."""
        return max(self.stall_seconds / WARNINGS_PER_LIMIT, STEPS_PER_LIMIT * beat.longest_seconds)


@dataclass(frozen=True)
class Beat:
    """What a rank says of itself.

    `state`: "stopped" by a signal; "ended" without a goodbye; "left" with one. `is_broken`: its connection to another
    rank has broken. `place`: how far it is, (steps done, number of the phase after them); `doing`: the phase in words.
    `waits_seconds`: since the last step ended, 0 where none is expected to; `longest_seconds`: of the steps before.
    `answer_seconds`: how long a question of PADDING_BYTES and its answer took last.
    """

    rank: int
    state: State = "alive"
    is_broken: bool = False
    place: tuple[int, int] = (0, 0)
    doing: str = "starting"
    waits_seconds: float = 0.0
    longest_seconds: float = 0.0
    answer_seconds: float = 0.0


@dataclass(frozen=True)
class Answer:
    """What a rank hears. `is_closing`: rank 0 has said goodbye, so the board is soon gone, and that is no fault."""

    verdict: str | None = None
    leave_in_seconds: float = 0.0
    warning: str | None = None
    is_closing: bool = False


class Board:
    """The last beat of every rank, and the verdict once there is one. Kept beside rank 0; for any thread.

    `hosts`: the host's name of each rank. A rank that has never been heard of is still starting.
    """

    def __init__(self, hosts: Sequence[str], limits: Limits) -> None:
        self._hosts, self._limits = hosts, limits
        self._beats = [Beat(rank) for rank in range(len(hosts))]
        self._alive_at: list[float | None] = [None] * len(hosts)
        self._verdict: str | None = None
        self._warning: str | None = None
        self._warned_of = -1
        self._leave_at = 0.0
        self._have_heard: set[int] = set()
        self._lock = threading.Lock()

    def take(self, beat: Beat, now: float) -> Answer:
        """Note a rank's beat, and answer it."""
        with self._lock:
            if self._beats[beat.rank].state not in ("ended", "left"):
                self._beats[beat.rank] = beat
                if beat.state == "alive":
                    self._alive_at[beat.rank] = now
            self._judge(now)
            is_closing = self._beats[0].state == "left"
            if is_closing or self._verdict is not None or beat.state in ("ended", "left"):
                self._have_heard.add(beat.rank)
            warning, self._warning = (self._warning, None) if beat.rank == 0 else (None, self._warning)
            return Answer(self._verdict, max(0.0, self._leave_at - now), warning, is_closing)

    @property
    def has_told_all(self) -> bool:
        """Whether every rank has gone, or knows that this board is about to."""
        with self._lock:
            return len(self._have_heard) == len(self._hosts)

    def _judge(self, now: float) -> None:
        if self._verdict is not None:
            return
        present = [beat for beat in self._beats if beat.state != "left"]
        is_broken = any(beat.is_broken for beat in present)
        reason, grace_seconds = self._reason(present, is_broken, now)
        if reason is not None:
            self._verdict = f"{reason}; {GOES_ON}"
            self._leave_at = now + grace_seconds
        step = self._beats[0].place[0]
        if self._warned_of != step and any(one.waits_seconds > self._limits.late_after_seconds(one) for one in present):
            self._warned_of, self._warning = step, self._why_late(present)

    def _reason(self, present: Sequence[Beat], is_broken: bool, now: float) -> tuple[str | None, float]:
        """Why the run must end, and for how long it may stay nevertheless."""
        ended = [beat.rank for beat in present if beat.state == "ended"]
        if ended:
            grace_seconds = BROKEN_GRACE_SECONDS if is_broken else ENDED_GRACE_SECONDS
            return f"{self._named(ended)} ended before the run did; what ended it is said where it ran", grace_seconds
        beat_seconds = self._limits.beat_seconds
        limit = self._limits.patience_seconds(is_broken)
        alive_at = {beat.rank: self._alive_at[beat.rank] for beat in present}
        ages = {rank: now - at for rank, at in alive_at.items() if at is not None}
        if max(ages.values(), default=0.0) > limit:
            lost = [rank for rank, age in ages.items() if age > limit / 2]
            self._have_heard |= {rank for rank in lost if self._beats[rank].state == "alive"}  # or never will
            grace_seconds = BROKEN_GRACE_SECONDS if is_broken else LEAVE_BEATS * beat_seconds
            return self._why_lost(lost, max(ages.values())), grace_seconds
        if any(self._limits.is_stalled(beat) for beat in present):
            return self._why_late(present), LEAVE_BEATS * beat_seconds
        return None, 0.0

    def _why_lost(self, lost: Sequence[int], seconds: float) -> str:
        stopped = [rank for rank in lost if self._beats[rank].state == "stopped"]
        if stopped:
            return (
                f"{self._named(stopped)} {_verb(stopped, 'has', 'have')} been stopped (SIGSTOP) for {in_words(seconds)}"
            )
        own, hosts = self._hosts[0], {self._hosts[rank] for rank in lost}
        if len(hosts) > 1 and hosts | {own} == set(self._hosts):
            return f"{own} has not heard of any other host for {in_words(seconds)}: its network has stopped"
        return not_heard_of(f"{self._named(lost)} {_verb(lost, 'has', 'have')}", seconds)

    def _why_late(self, present: Sequence[Beat]) -> str:
        """How long no step has ended, which ranks are the last, and which hosts' network is slow."""
        waited = in_words(max(beat.waits_seconds for beat in present))
        least = min(beat.place for beat in present)
        last = [beat for beat in present if beat.place == least]
        is_all = len(last) == len(present)
        who = "all ranks are" if is_all else f"{self._named([one.rank for one in last])} {_verb(last, 'is', 'are')}"
        others = "" if is_all else ", the others are further on"
        return f"no step has ended for {waited}: {who} {last[0].doing} after step {least[0]}{others}{self._slow()}"

    def _slow(self) -> str:
        seconds: dict[str, float] = {}
        for beat in self._beats:
            host = self._hosts[beat.rank]
            seconds[host] = max(seconds.get(host, 0.0), beat.answer_seconds)
        slow = [f"{seconds[host]:.2g} s from {host}" for host in seconds if seconds[host] > SLOW_ANSWER_SECONDS]
        if not slow:
            return ""
        return f"; the network is slow: {PADDING_BYTES // 1000} kB to {self._hosts[0]} and back take {', '.join(slow)}"

    def _named(self, ranks: Sequence[int]) -> str:
        """`rank 3 on h1`, `ranks 2, 3 on h1 and rank 4 on h2`"""
        by_host: dict[str, list[int]] = {}
        for rank in ranks:
            by_host.setdefault(self._hosts[rank], []).append(rank)
        return " and ".join(
            f"rank{'s' if len(own) > 1 else ''} {', '.join(map(str, own))} on {host}" for host, own in by_host.items()
        )


def not_heard_of(who_has: str, seconds: float) -> str:
    """Why somebody is given up. `who_has`: the subject with its verb."""
    return f"{who_has} not been heard of for {in_words(seconds)}: the host, its network or the process has stopped"


def _verb(those: Sequence[Any], one: str, many: str) -> str:
    return one if len(those) == 1 else many


def in_words(seconds: float) -> str:
    """90 -> 90 s; 1800 -> 30 min"""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def as_plain(value: Any) -> dict[str, Any]:
    """A `Beat` or an `Answer` as JSON has it."""
    return dict(vars(value))


def beat_of(plain: dict[str, Any]) -> Beat:
    """A beat that has come over the wire. Raises TypeError or KeyError for what is none."""
    return Beat(**{**plain, "place": tuple(plain["place"])})
