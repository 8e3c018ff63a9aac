"""Who is lost, from beats alone: no process, no socket, and a clock that the test turns."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.hosts.board import (
    BROKEN_GRACE_SECONDS,
    ENDED_GRACE_SECONDS,
    GOES_ON,
    PADDING_BYTES,
    Answer,
    Beat,
    Board,
    Limits,
    as_plain,
    beat_of,
    in_words,
)

LIMITS = Limits(lost_seconds=30, stall_seconds=600)
HOSTS = ("h0", "h0", "h1", "h1", "h2")


class Ranks:
    """Five ranks that beat every two seconds; `now` is the board's clock."""

    def __init__(self) -> None:
        self.board = Board(HOSTS, LIMITS)
        self.now = 0.0
        self.beats = [Beat(rank) for rank in range(len(HOSTS))]

    def change(self, *ranks: int, **what: object) -> None:
        """From now on they say so."""
        for rank in ranks:
            self.beats[rank] = replace(self.beats[rank], **what)  # type: ignore[arg-type]

    def run(self, seconds: float, silent: tuple[int, ...] = ()) -> Answer:
        """The last answer to rank 0, or the first verdict or warning."""
        end = self.now + seconds
        while self.now < end:
            self.now += LIMITS.beat_seconds
            for rank in reversed(range(len(HOSTS))):
                if rank not in silent:
                    answer = self.board.take(self.beats[rank], self.now)
                    if answer.verdict is not None or answer.warning is not None:
                        return answer
        return answer


@pytest.fixture
def ranks() -> Ranks:
    """All of them have been heard of."""
    ranks = Ranks()
    assert ranks.run(4) == Answer()
    return ranks


def test_ranks_that_beat_are_left_alone_however_long_they_start(ranks: Ranks) -> None:
    assert ranks.run(1000) == Answer()
    assert Ranks().run(1000, silent=(1, 4)) == Answer()  # never heard of: still starting


def test_a_silent_rank_is_lost_when_its_time_is_over_and_not_before(ranks: Ranks) -> None:
    assert ranks.run(30, silent=(3,)) == Answer()
    verdict = ranks.run(2, silent=(3,)).verdict
    assert verdict == (
        "rank 3 on h1 has not been heard of for 32 s: the host, its network or the process has stopped; " + GOES_ON
    )


def test_a_rank_that_comes_back_in_time_is_as_good_as_ever(ranks: Ranks) -> None:
    for _ in range(5):
        assert ranks.run(28, silent=(2, 3)) == Answer()
        assert ranks.run(2) == Answer()


def test_ranks_that_fell_silent_together_are_named_together_by_their_hosts(ranks: Ranks) -> None:
    assert ranks.run(2, silent=(2,)) == Answer()
    verdict = ranks.run(60, silent=(1, 2, 3)).verdict
    assert verdict is not None
    assert verdict.startswith("rank 1 on h0 and ranks 2, 3 on h1 have not been heard of for 32 s: the host, its")


def test_a_host_that_hears_of_no_other_blames_its_own_network(ranks: Ranks) -> None:
    verdict = ranks.run(60, silent=(2, 3, 4)).verdict
    assert verdict == f"h0 has not heard of any other host for 32 s: its network has stopped; {GOES_ON}"


def test_a_stopped_rank_is_told_from_a_silent_one(ranks: Ranks) -> None:
    ranks.change(4, state="stopped")
    assert ranks.run(30) == Answer()
    verdict = ranks.run(2).verdict
    assert verdict == f"rank 4 on h2 has been stopped (SIGSTOP) for 32 s; {GOES_ON}"


def test_a_rank_that_ended_is_known_at_once_and_the_others_may_first_say_what_they_know(ranks: Ranks) -> None:
    ranks.change(1, state="ended")
    answer = ranks.run(2)
    assert answer.verdict == f"rank 1 on h0 ended before the run did; what ended it is said where it ran; {GOES_ON}"
    assert answer.leave_in_seconds == ENDED_GRACE_SECONDS


def test_a_broken_connection_makes_the_search_short(ranks: Ranks) -> None:
    ranks.change(0, is_broken=True)
    assert ranks.run(6, silent=(2, 3)) == Answer()
    answer = ranks.run(2, silent=(2, 3))
    assert answer.verdict is not None and answer.verdict.startswith("ranks 2, 3 on h1 have not been heard of for 8 s")
    assert answer.leave_in_seconds == BROKEN_GRACE_SECONDS


def test_who_has_said_goodbye_is_not_missed(ranks: Ranks) -> None:
    ranks.change(2, 3, 4, state="left")
    assert ranks.run(2) == Answer()
    assert ranks.run(1000, silent=(2, 3, 4)) == Answer()


def test_a_board_that_closes_tells_everybody_and_waits_for_nobody_it_has_told(ranks: Ranks) -> None:
    ranks.change(0, state="left")
    assert ranks.run(2) == Answer(is_closing=True)
    assert not ranks.board.has_told_all
    ranks.run(2)
    assert ranks.board.has_told_all


def test_a_board_with_a_verdict_waits_for_those_who_can_hear_it(ranks: Ranks) -> None:
    assert ranks.run(60, silent=(2, 3)).verdict is not None
    assert not ranks.board.has_told_all
    for rank in (0, 1):
        assert ranks.board.take(Beat(rank), ranks.now).verdict is not None
    assert ranks.board.has_told_all


def test_a_step_that_takes_too_long_names_the_last_ones_and_the_slow_network(ranks: Ranks) -> None:
    ranks.change(0, 1, 2, 4, place=(120, 5), doing="computing")
    ranks.change(3, place=(120, 4), doing="reading rows")
    ranks.change(4, answer_seconds=3.25)
    assert ranks.run(2) == Answer()
    ranks.change(*range(5), waits_seconds=601.0)
    assert ranks.run(2).verdict == (
        "no step has ended for 10 min: rank 3 on h1 is reading rows after step 120, the others are further on; "
        f"the network is slow: {PADDING_BYTES // 1000} kB to h0 and back take 3.2 s from h2; {GOES_ON}"
    )


def test_a_step_may_take_ten_times_as_long_as_the_longest_before(ranks: Ranks) -> None:
    ranks.change(*range(5), place=(7, 5), doing="computing", waits_seconds=1999.0, longest_seconds=200.0)
    assert ranks.run(2) == Answer()
    ranks.change(*range(5), waits_seconds=2001.0)
    verdict = ranks.run(2).verdict
    assert verdict == f"no step has ended for 33 min: all ranks are computing after step 7; {GOES_ON}"


def test_a_late_step_is_worth_one_warning(ranks: Ranks) -> None:
    ranks.change(*range(5), place=(7, 5), doing="computing")
    assert ranks.run(2) == Answer()
    ranks.change(*range(5), waits_seconds=61.0)
    assert ranks.run(2).warning == "no step has ended for 61 s: all ranks are computing after step 7"
    assert ranks.run(100) == Answer()
    ranks.change(*range(5), place=(8, 5))
    assert ranks.run(2).warning is not None


BEATS = st.builds(
    Beat,
    st.integers(0, 2),
    st.sampled_from(["alive", "stopped"]),
    st.just(False),
    st.tuples(st.integers(0, 9), st.integers(0, 5)),
    waits_seconds=st.floats(0, 59),
)


@given(st.lists(st.tuples(BEATS, st.floats(0, 9)), max_size=30))
def test_a_verdict_is_passed_exactly_when_somebody_was_not_alive_for_too_long(
    beats: list[tuple[Beat, float]],
) -> None:
    board, now, alive_at, is_lost = Board(["a", "b", "c"], LIMITS), 0.0, dict[int, float](), False
    for beat, seconds in beats:
        now += seconds
        if beat.state == "alive":
            alive_at[beat.rank] = now
        is_lost |= any(now - at > LIMITS.lost_seconds for at in alive_at.values())
        assert (board.take(beat, now).verdict is not None) == is_lost


@given(BEATS)
def test_beats_travel_unchanged(beat: Beat) -> None:
    import json

    assert beat_of(json.loads(json.dumps(as_plain(beat)))) == beat


def test_short_times_are_said_in_seconds_and_long_ones_in_minutes() -> None:
    assert [in_words(seconds) for seconds in (5.4, 30, 119, 1800)] == ["5 s", "30 s", "119 s", "30 min"]
