"""What the ends of ranks and lost hosts amount to."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from colossal_llama.hosts.outcome import HostLost, Outcome, RankEnd, outcome

SIGTERM, SIGKILL = 15, 9
DONE = RankEnd("h0", 0, 0, "", is_own=False)
SAVED = RankEnd("h1", 1, 75, "stopped by SIGTERM", is_own=False)
VICTIM = RankEnd("h0", 0, 1, "another process of this run has ended", is_own=False)
BROKEN = RankEnd("h1", 1, 1, "RuntimeError: broken", is_own=True)
REFUSED = RankEnd("h0", 0, 2, "error: --lr 0: must be a positive number", is_own=False)
SHOT = RankEnd("h1", 3, -SIGKILL, "step 12: loss 3.2", is_own=False)
SWEPT = RankEnd("h0", 0, -SIGKILL, "step 12: loss 3.2", is_own=False, was_killed=True)
FULL = RankEnd("h1", 1, 2, "OSError: [Errno 28] No space left on device", is_own=True, errno=errno.ENOSPC)
OTHERS_OF_FULL = RankEnd("h0", 0, 2, "error: h1 (rank 1): No space left on device", is_own=False)
LOST = HostLost("h1", "the connection was lost")


@pytest.mark.parametrize(
    ("ends", "lost", "stopped_by", "expected"),
    [
        ([DONE, DONE], [], None, Outcome(0)),
        ([DONE], [], SIGTERM, Outcome(0)),
        ([SAVED, SAVED], [], SIGTERM, Outcome(75)),
        ([SAVED, DONE], [], None, Outcome(75)),
        (
            [VICTIM, BROKEN],
            [],
            None,
            Outcome(
                1, "rank 1 on h1 failed first (exit code 1): RuntimeError: broken", is_worth_another=True
            ),  # whoever was heard of first, the fault is that of the rank that has one of its own
        ),
        (
            [VICTIM, SHOT],
            [],
            None,
            Outcome(
                1,
                "rank 3 on h1 failed first (ended by SIGKILL): by its watch, which has said so then, by somebody, or "
                "for want of memory: `dmesg` on h1 says",
                is_worth_another=True,
            ),
        ),
        (
            [REFUSED, RankEnd("h1", 1, 2, "", is_own=False)],
            [],
            None,
            Outcome(2, "rank 0 on h0 failed first (exit code 2): --lr 0: must be a positive number"),
        ),
        (
            [OTHERS_OF_FULL, FULL],
            [],
            None,
            Outcome(
                2,
                "rank 1 on h1 failed first (exit code 2): OSError: [Errno 28] No space left on device",
                ("h1",),
                is_worth_another=True,
            ),
        ),
        (
            [OTHERS_OF_FULL, replace(FULL, code=-SIGKILL, was_killed=True)],  # it had noted it down by then
            [],
            None,
            Outcome(
                2,
                "rank 1 on h1 failed first: OSError: [Errno 28] No space left on device",
                ("h1",),
                is_worth_another=True,
            ),
        ),
        ([VICTIM], [LOST], None, Outcome(1, "h1: the connection was lost", is_worth_another=True)),
        (
            [BROKEN],
            [HostLost("h0", "gone")],
            None,
            Outcome(
                1,
                "h0: gone; before that rank 1 on h1 failed first (exit code 1): RuntimeError: broken",
                is_worth_another=True,
            ),
        ),
        ([SAVED], [LOST], SIGTERM, Outcome(1, "h1: the connection was lost")),
        ([SWEPT], [], SIGTERM, Outcome(130, "interrupted by SIGTERM; every process has ended")),
        (
            [RankEnd("h0", 0, 130, "", is_own=False), RankEnd("h1", 1, -SIGTERM, "", is_own=False)],
            [],
            SIGTERM,
            Outcome(130, "interrupted by SIGTERM; every process has ended"),
        ),
        (
            [BROKEN, SWEPT],
            [],
            SIGTERM,
            Outcome(1, "rank 1 on h1 failed first (exit code 1): RuntimeError: broken"),
        ),
        ([SAVED, BROKEN, SWEPT], [], None, Outcome(1, outcome([BROKEN], [], None).message, is_worth_another=True)),
    ],
)
def test_outcome(ends: list[RankEnd], lost: list[HostLost], stopped_by: int | None, expected: Outcome) -> None:
    assert outcome(ends, lost, stopped_by) == expected


def test_an_interruption_before_any_rank_began() -> None:
    assert outcome([], [], SIGTERM).code == 130
