"""Closed under intermediates: every piece has a way, within the number of steps that is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tokenizer_tools.test_sentencepiece_bpe import HARD_PIECES
from tokenizer_tools.closure import NO_PATH, TOO_MANY, close
from tokenizer_tools.sentencepiece_bpe import SentencePieceBpe, append_pieces, bare_processor


@pytest.fixture(scope="module")
def vocabulary(tiny_tokenizer_dir: Path) -> SentencePieceBpe:
    return SentencePieceBpe(tiny_tokenizer_dir)


def test_every_piece_becomes_one_id_in_order(vocabulary: SentencePieceBpe) -> None:
    closure = close(vocabulary, HARD_PIECES)
    assert closure.pieces == HARD_PIECES
    added = [*HARD_PIECES, *closure.intermediates]
    ids = bare_processor(append_pieces(vocabulary.model, added)).encode(added)
    assert ids == [[len(vocabulary.ids) + k] for k in range(len(ids))]
    names = [*vocabulary.ids, *added]
    assert len(set(names)) == len(names)


def test_no_intermediates_where_none_are_needed(vocabulary: SentencePieceBpe) -> None:
    assert not close(vocabulary, ["人", "工", "人工"]).intermediates


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.text("甲乙丙ab▁", min_size=1, max_size=6), min_size=1, max_size=8, unique=True),
    text=st.text("甲乙丙丁abc▁", max_size=30),
    limit=st.none() | st.integers(0, 6),
)
def test_closed_and_old_text_unchanged_for_any_pieces(
    vocabulary: SentencePieceBpe, pieces: list[str], text: str, limit: int | None
) -> None:
    new = [piece for piece in pieces if piece not in vocabulary.ids]
    closure = close(vocabulary, new, limit)
    assert closure.pieces == [piece for piece in new if piece not in closure.refused]
    assert {*closure.pieces, *closure.refused} == set(new)
    assert limit is None or len(closure.intermediates) <= limit
    assert {reason for reason, _ in closure.refused.values()} <= {TOO_MANY}
    assert limit is not None or not closure.refused
    added = [*closure.pieces, *closure.intermediates]
    processor = bare_processor(append_pieces(vocabulary.model, added))
    assert processor.encode(added) == [[len(vocabulary.ids) + k] for k in range(len(added))]
    if not any(piece in text for piece in added):
        assert processor.encode(text) == bare_processor(vocabulary.model).encode(text)


def test_the_limit_takes_the_best_pieces_first(vocabulary: SentencePieceBpe) -> None:
    closure = close(vocabulary, ["甲乙", "丙丁戊", "甲丙"], 3)
    assert closure.pieces == ["甲乙", "甲丙"]
    assert sorted(closure.intermediates) == sorted("甲乙丙")
    assert closure.refused == {"丙丁戊": (TOO_MANY, "needs '丙' as a step, beyond 3 intermediates")}


def test_a_refused_piece_may_be_the_step_of_another(vocabulary: SentencePieceBpe) -> None:
    """Without 甲乙 (which needs its characters) 甲乙丙 has no way either."""
    closure = close(vocabulary, ["丙", "甲乙", "甲乙丙", "丙丙"], 0)
    assert closure.pieces == ["丙", "丙丙"]
    assert set(closure.refused) == {"甲乙", "甲乙丙"}


def test_each_piece_knows_what_was_added_for_it(vocabulary: SentencePieceBpe) -> None:
    closure = close(vocabulary, ["甲", "乙", "丙", "甲乙丙", "丙丙"])
    assert list(closure.needs) == ["甲乙丙"]
    assert list(closure.intermediates.values()) == ["甲乙丙"]


def test_the_step_that_helps_most_pieces_is_added(vocabulary: SentencePieceBpe) -> None:
    closure = close(vocabulary, [*"甲乙丙丁戊", "甲乙丙", "丁乙丙", "戊乙丙"])
    assert list(closure.intermediates) == ["乙丙"]


class Stubborn:
    """A vocabulary of a, b, c, ab and bc in which a, b and c never merge."""

    ids = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4}

    def needed_parts(self, string: str) -> list[str]:
        return list(string)

    def text_of(self, string: str) -> str:
        return string

    def segment(self, new: list[str], strings: list[str]) -> list[list[str]]:
        return [[string] if string == "cc" else list(string) for string in strings]


def test_a_piece_whose_parts_join_to_old_pieces_only_is_refused() -> None:
    closure = close(Stubborn(), ["abc", "cc"])  # type: ignore[arg-type]
    assert closure.pieces == ["cc"]
    assert closure.refused == {"abc": (NO_PATH, "has no way to 'abc': its parts join to old pieces only")}
