"""Signals and the time limit: which of them stop a run, and when."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.stopping import Reason, StopRequests, seconds_of, stop_requests
from tokenizer_tools.command import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def signals_are_heard_by_the_test() -> Iterator[None]:
    """A signal that nobody takes fails the test, and does not end pytest."""
    before = {number: signal.signal(number, _unexpected) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _unexpected(number: int, _: Any) -> None:
    raise AssertionError(f"signal {number} was not taken")


class Clock:
    """A clock that a test moves."""

    def __init__(self, now: float = 100.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def after_steps(stop: StopRequests, clock: Clock, *seconds: float) -> list[Reason]:
    """What is answered after each of so many steps."""
    answers = []
    for one in seconds:
        clock.now += one
        answers.append(stop.reason_after_step())
    return answers


# --- how long ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("45m", 45 * 60),
        ("4h", 4 * 3600),
        ("1h30m", 5400),
        ("1d12h", 36 * 3600),
        ("2d3h4m5s", 2 * 86400 + 3 * 3600 + 4 * 60 + 5),
        ("04:00:00", 4 * 3600),
        ("100:00:01", 360001),
        ("1-12:00:00", 36 * 3600),
        ("0-00:00:07", 7),
    ],
)
def test_a_time_is_read_as_people_and_slurm_write_it(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "90", "1.5h", "4 h", "45:00", "1-12", "0s", "00:00:00", "-4h", "30m1h", "4h4h", "1:60:00", "4H", "soon"],
)
def test_another_form_is_refused_with_examples(text: str) -> None:
    """90 is minutes to Slurm and seconds to others; 45:00 is minutes to Slurm, and hours to many."""
    with pytest.raises(ValueError, match=r"a time with its unit, such as 90s, 45m, 4h, 1h30m, 04:00:00 or 1-12:00:00"):
        seconds_of(text)


@given(st.integers(0, 9), st.integers(0, 99), st.integers(0, 59), st.integers(0, 59))
def test_all_forms_of_one_time_agree(days: int, hours: int, minutes: int, seconds: int) -> None:
    expected = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if expected:
        assert seconds_of(f"{days}-{hours}:{minutes:02}:{seconds:02}") == expected
        assert seconds_of(f"{days}d{hours}h{minutes}m{seconds}s") == expected
        assert seconds_of(f"{expected}s") == expected


# --- the time limit ---------------------------------------------------------------------------------------------------


def test_the_limit_leaves_room_for_one_step_and_one_save() -> None:
    """Started at 100, loaded by 110, 100 s allowed: behind 200 nothing may happen."""
    clock = Clock(110)
    stop = StopRequests(100, started=100, clock=clock)
    assert after_steps(stop, clock, 10, 30) == [Reason.NONE] * 2  # at 150: 30 for a step, 10 for a save
    stop.save_took(20)
    assert after_steps(stop, clock, 0) == [Reason.NONE]  # 150 + 30 + 20 is the limit itself
    assert after_steps(stop, clock, 0.1) == [Reason.TIME_LIMIT]


def test_a_save_in_progress_has_to_end_before_the_last_one_begins() -> None:
    clock = Clock(100)
    stop = StopRequests(100, started=100, clock=clock)
    stop.save_took(20)
    stop.save_begins()
    assert after_steps(stop, clock, 30, 0.1) == [Reason.NONE, Reason.TIME_LIMIT]  # 130 + 30 + 2 * 20
    stop.save_took(5)
    assert after_steps(stop, clock, 19, 1) == [Reason.NONE, Reason.TIME_LIMIT]  # 150 + 30 + 20


def test_the_longest_step_and_save_count() -> None:
    clock = Clock(100)
    stop = StopRequests(100, started=100, clock=clock)
    for seconds in (5.0, 30.0, 1.0):
        stop.save_took(seconds)
    assert after_steps(stop, clock, 1, 20, 1, 1) == [Reason.NONE] * 4  # at 123: 20 and 30
    assert after_steps(stop, clock, 20, 7, 1) == [Reason.NONE, Reason.NONE, Reason.TIME_LIMIT]


def test_without_a_limit_nothing_ends() -> None:
    clock = Clock()
    assert after_steps(StopRequests(None, 0, clock), clock, 1e9, 1e9) == [Reason.NONE] * 2


def test_a_jump_of_the_wall_clock_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with stop_requests(3600, time.monotonic()) as stop:
        monkeypatch.setattr(time, "time", lambda: 0.0)
        first = stop.reason_after_step()
        monkeypatch.setattr(time, "time", lambda: 9e9)
        assert [first, stop.reason_after_step()] == [Reason.NONE] * 2
    with stop_requests(3600, time.monotonic() - 3601) as stop:
        assert stop.reason_after_step() is Reason.TIME_LIMIT


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_is_the_reason_from_then_on(number: signal.Signals, capfd: pytest.CaptureFixture[str]) -> None:
    with stop_requests(None, time.monotonic()) as stop:
        assert stop.reason_after_step() is Reason.NONE
        os.kill(os.getpid(), number)
        reasons = [stop.reason_after_step() for _ in range(2)]
    assert [reason.words for reason in reasons] == [number.name] * 2
    assert capfd.readouterr().err == (
        f"{number.name}: this step ends, is saved, and the run leaves; a second signal leaves at once\n"
    )


def test_a_signal_comes_before_the_time_limit() -> None:
    with stop_requests(1, time.monotonic() - 5) as stop:
        assert stop.reason_after_step().words == "--time_limit"
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop.reason_after_step() is Reason.SIGUSR1


@pytest.mark.parametrize("second", SIGNALS, ids=lambda number: number.name)
def test_the_same_request_may_come_twice_but_a_second_one_leaves_at_once(second: int) -> None:
    clock = Clock()
    stop = StopRequests(None, 0, clock)

    def leaves(number: int) -> bool:
        try:
            stop.take(number, None)
        except KeyboardInterrupt:
            return True
        return False

    assert not leaves(signal.SIGINT)
    clock.now += 0.9
    assert not leaves(second)
    assert stop.reason_after_step() is Reason.SIGINT
    clock.now += 0.2
    assert leaves(second)


def test_only_the_first_rank_of_a_host_answers(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    StopRequests(None, 0, Clock()).take(signal.SIGTERM, None)
    assert capfd.readouterr().err == ""


def test_reasons_of_ranks_are_told_apart_and_any_is_more_than_none() -> None:
    assert len({int(reason) for reason in Reason}) == len(Reason)
    assert min(Reason) is Reason.NONE and not Reason.NONE


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_what_a_signal_did_before_it_does_after(error: type[BaseException] | None) -> None:
    before = handlers()
    try:
        with stop_requests(None, 0):
            assert not set(handlers()) & set(before)
            if error is not None:
                raise error
    except (KeyboardInterrupt, RuntimeError) as caught:
        assert type(caught) is error
    assert handlers() == before


def test_after_a_stop_nothing_is_left_to_interrupt() -> None:
    """torchrun sends SIGTERM to the ranks that leave last; they must still say why, and with which exit code."""
    with pytest.raises(Stopped), stop_requests(None, 0):
        raise Stopped("saved")
    for number in SIGNALS:
        os.kill(os.getpid(), number)
