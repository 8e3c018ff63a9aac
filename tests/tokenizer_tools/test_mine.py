"""Mining on strings of symbols: counts against merging by hand."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer_tools import mine
from tokenizer_tools.mine import MODEL_TYPES, Merges, last_merge, propose, segment


def merge_by_hand(units: dict[str, int], ranks: dict[str, int]) -> tuple[Counter[str], Counter[str]]:
    """(used, made): every unit merged pair by pair, lowest rank first then leftmost."""
    used: Counter[str] = Counter()
    made: Counter[str] = Counter()
    for unit, count in units.items():
        symbols = list(unit)
        for symbol in symbols:
            made[symbol] += count
        while True:
            pairs = [
                (ranks[a + b], k) for k, (a, b) in enumerate(zip(symbols, symbols[1:], strict=False)) if a + b in ranks
            ]
            if not pairs:
                break
            k = min(pairs)[1]
            symbols[k : k + 2] = ["".join(symbols[k : k + 2])]
            made[symbols[k]] += count
        for symbol in symbols:
            used[symbol] += count
    return used, made


texts = st.dictionaries(st.text("甲乙丙丁", min_size=2, max_size=12), st.integers(1, 9), min_size=3, max_size=20)


@settings(max_examples=30, deadline=None)
@given(texts, texts)
def test_counts_are_those_of_merging_by_hand(learned: dict[str, int], others: dict[str, int]) -> None:
    order = list(propose(learned, "bpe", 12))
    counts = Merges(order, "甲乙丙丁").count(others)
    used, made = merge_by_hand(others, {piece: rank for rank, piece in enumerate(order)})
    assert +counts.used == used
    assert +counts.made == made


@settings(max_examples=30, deadline=None)
@given(texts)
def test_bpe_proposes_what_its_merges_make(units: dict[str, int]) -> None:
    savings = propose(units, "bpe", 12)
    _, made = merge_by_hand(units, {piece: rank for rank, piece in enumerate(savings)})
    assert savings == {piece: made[piece] for piece in savings}


def test_unigram_proposes_what_its_own_cut_saves() -> None:
    units = {"甲乙丙": 30, "甲乙": 20, "丁丙": 5, "丙丁甲": 4}
    savings = propose(units, "unigram", 4)
    assert savings["甲乙丙"] == 30 * 2
    assert all(len(piece) > 1 for piece in savings)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_proposals_do_not_depend_on_order(model_type: str) -> None:
    units = {"甲乙丙": 30, "甲乙": 20, "丁丙": 5, "丙丁甲": 4, "乙乙": 4}
    assert propose(units, model_type, 5) == propose(dict(reversed(units.items())), model_type, 5)


def test_nothing_is_proposed_of_nothing() -> None:
    assert propose({}, "bpe", 5) == {}


def test_segment_and_last_merge() -> None:
    ranks = {"乙丙": 0, "甲乙": 1, "甲乙丙": 2}
    assert segment("甲乙丙甲乙", ranks) == ["甲乙丙", "甲乙"]
    assert segment("甲乙丁", {"乙丁": 10**6}) == ["甲", "乙丁"]  # a rank may be any number
    assert last_merge("甲乙丙", ranks) == ("甲", "乙丙")
    with pytest.raises(ValueError, match="no merges lead to"):
        last_merge("甲乙丁", {"丁": 0})


def test_ctrl_c_is_heard_while_the_trainer_works() -> None:
    interrupted, finished, sent = threading.Event(), list[bool](), list[None]()

    def work() -> None:
        """Like a C++ function: goes on, whatever signal comes."""
        end = time.monotonic() + 5
        while time.monotonic() < end and not interrupted.is_set():
            try:
                if not sent:
                    sent.append(os.kill(os.getpid(), signal.SIGINT))
                time.sleep(0.1)
            except KeyboardInterrupt:
                continue
        finished.append(interrupted.is_set())

    with pytest.raises(KeyboardInterrupt):
        mine._interruptible(work)
    assert not finished
    interrupted.set()


def test_a_fault_of_the_trainer_is_raised() -> None:
    def work() -> None:
        raise OSError("no space")

    with pytest.raises(OSError, match="no space"):
        mine._interruptible(work)
