"""Predictions: exact where they have to be, and without looking at what they predict."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tokenizer_tools.test_mine import merge_by_hand, texts
from tokenizer_tools.held_out import Documents
from tokenizer_tools.savings import Forecast, Savings, find_cut_off

PIECES = ["丁", "甲乙", "甲乙丙", "乙丁"]
COSTS = {"甲": 1, "乙": 1, "丙": 1, "丁": 3}


def tokens_by_hand(units: dict[str, int], pieces: list[str]) -> int:
    used, _ = merge_by_hand(units, {piece: rank for rank, piece in enumerate(pieces) if len(piece) > 1})
    return sum(count * (1 if piece in pieces else COSTS.get(piece, 1)) for piece, count in used.items())


def documents(units: dict[str, int], outside: int = 0) -> Documents:
    tokens = sum(count * sum(COSTS[symbol] for symbol in unit) for unit, count in units.items())
    return Documents(num_characters=100, num_tokens=tokens + outside, units=Counter(units))


class Plain(dict[str, list[str]]):
    """Every unit spells itself."""

    def __missing__(self, unit: str) -> list[str]:
        return [unit]


@settings(max_examples=40, deadline=None)
@given(texts, texts)
def test_what_is_counted_is_what_each_head_leaves(learned: dict[str, int], others: dict[str, int]) -> None:
    left = Savings(PIECES, COSTS, learned).count_left(others)
    assert left.tolist() == [tokens_by_hand(others, PIECES[:end]) for end in range(5)]


@settings(max_examples=40, deadline=None)
@given(texts, st.integers(1, 5))
def test_expected_in_a_text_of_the_same_make_is_what_is_counted(learned: dict[str, int], times: int) -> None:
    learned = learned | {"甲乙丙丁": 3}  # pieces are made of symbols that were learned from
    savings = Savings(PIECES, COSTS, learned)
    again = {unit: count * times for unit, count in learned.items()}
    np.testing.assert_allclose(savings.expect_left(again), savings.count_left(again))


def test_a_piece_is_expected_by_the_mean_frequency_of_its_symbols() -> None:
    savings = Savings(["甲乙"], COSTS, {"甲乙": 10})
    assert savings.expect_left({"甲": 5, "丙": 7}).tolist() == [12, 12 - 10 * (0.5 + 0) / 2]


def test_each_category_is_scaled_by_its_own_curve_documents() -> None:
    savings = Savings(["甲乙"], COSTS, {"甲乙": 10})
    # as frequent symbols as in {"甲乙": 4}, of which none is joined: left are 8, expected 4
    curve = {"apart": documents({"甲": 4, "乙": 4}), "joined": documents({"甲乙": 4})}
    forecast = Forecast(savings, Plain(), curve)
    proof = documents({"甲乙": 8}, outside=3)
    assert forecast.predict({"apart": proof}).tolist() == [19, 3 + 2 * 8]
    assert forecast.predict({"joined": proof}).tolist() == [19, 3 + 8]
    assert forecast.predict({"unseen": proof}).tolist() == [19, 3 + 8 * (8 + 4) / (4 + 4)]
    assert forecast.predict({"apart": proof, "joined": proof}).tolist() == [38, 19 + 11]


def test_without_curve_documents_nothing_is_scaled() -> None:
    forecast = Forecast(Savings(["甲乙"], COSTS, {"甲乙": 10}), Plain(), {"a": documents({}, outside=4)})
    assert forecast.predict({"a": documents({"甲乙": 5}, outside=1)}).tolist() == [11, 6]


def test_cut_off_is_behind_the_last_that_reaches_the_minimum() -> None:
    assert find_cut_off(np.array([9.0, 3.0, 5.0, 4.0]), 5) == 3
    assert find_cut_off(np.array([9.0, 3.0]), 10) == 0
