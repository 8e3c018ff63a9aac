"""The curve: its columns on a text small enough to count by hand."""

from __future__ import annotations

import json

from tests.tokenizer_tools.test_savings import COSTS, Plain, documents
from tokenizer_tools.curve import make_curve, written_lines
from tokenizer_tools.held_out import CURVE, LEARN, PROOF
from tokenizer_tools.savings import Forecast, Savings


def test_columns() -> None:
    learned = {"甲乙丙": 10, "甲乙": 2}  # 34 tokens; 22 with the first piece, 12 with both
    savings = Savings(["甲乙", "甲乙丙"], COSTS, learned)
    shares = {LEARN: {"a": documents(learned, outside=6)}, CURVE: {}, PROOF: {}}
    curve = make_curve(["ab", "abc"], savings, Forecast(savings, Plain(), {}), shares, planned=900)
    assert (curve.pieces, curve.counts, curve.tokens_saved) == (["ab", "abc"], [12, 10], [12, 10])
    assert curve.tokens_per_character.tolist() == [0.4, 0.28, 0.18]  # of 100 characters
    assert curve.expected_occurrences.tolist() == [900 * 2 / 18, 900 * 10 / 18]
    assert curve.occurrences_if_last.tolist() == [900 * 12 / 28, 900 * 10 / 18]
    lines = [json.loads(line) for line in written_lines(curve).splitlines()]
    assert lines == [
        {"piece": "ab", "count": 12, "tokens_saved": 12, "tokens_per_character": 0.28, "expected_occurrences": 100.0},
        {"piece": "abc", "count": 10, "tokens_saved": 10, "tokens_per_character": 0.18, "expected_occurrences": 500.0},
    ]
