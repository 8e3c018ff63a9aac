"""Ranks of an all-reduce that do not make it; those that do are in the lab of test_preflight.py."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

from colossal_llama.hosts.ranks import add_up_on_ranks

MEETING = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29519"}


def add_up(**changes: Any) -> list[dict[str, Any]]:
    words = {"first_rank": 2, "num_ranks": 2, "world_size": 4, "environment": MEETING, "num_bytes": 8, "seconds": 20}
    with ExitStack() as left:
        return add_up_on_ranks(left, **{**words, **changes})["ranks"]


def test_a_rank_that_fails_has_its_last_words() -> None:
    began = time.monotonic()
    ranks = add_up(num_bytes="many")
    assert [rank["rank"] for rank in ranks] == [2, 3]
    assert all("invalid literal for int() with base 10: 'many'" in rank["error"] for rank in ranks)
    assert time.monotonic() - began < 15


def test_ranks_that_wait_for_others_do_not_wait_for_ever() -> None:
    assert [rank["error"] for rank in add_up(seconds=0.5)] == ["had not ended in time"] * 2
