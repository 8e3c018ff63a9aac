"""Decontamination against sets of runs that are found character by character."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import contamination as module
from data_tools.contamination import MIN_UNITS, _hash_set, _places_in, are_contaminated, ngrams_of_evaluation
from tests.data_tools.naive_ngrams import naive_ngrams, naive_units

# Few letters and blanks, so that texts share runs of some length by chance.
texts_that_share_runs = st.lists(st.text(alphabet="aA中a 中, \n", max_size=40), max_size=5)
QUESTION = "Which of these rivers runs through the most countries on its way to the sea?"  # 15 words
CHINESE_QUESTION = "下列河流中，流经国家最多的是哪一条河流？"  # 18 characters


def naive_runs(evaluation: list[str], num_units: int) -> set[tuple[str, ...]]:
    runs: set[tuple[str, ...]] = set()
    for text in evaluation:
        length = min(len(naive_units(text)), num_units)
        if length >= min(MIN_UNITS, num_units):
            runs |= naive_ngrams(text, length)
    return runs


@given(texts_that_share_runs, texts_that_share_runs, st.integers(1, 12))
@settings(max_examples=300, deadline=None)
def test_a_text_that_shares_a_run_is_contaminated_and_no_other(
    evaluation: list[str], texts: list[str], num_units: int
) -> None:
    runs = naive_runs(evaluation, num_units)
    expected = [any(runs & naive_ngrams(text, n) for n in {len(run) for run in runs}) for text in texts]
    known = ngrams_of_evaluation(evaluation, num_units)
    assert sum(len(hashes.hashes) for hashes in known.sets.values()) == len(runs)
    assert known.num_ignored == sum(len(naive_units(text)) < min(MIN_UNITS, num_units) for text in evaluation)
    assert are_contaminated(texts, known).tolist() == expected


@pytest.mark.parametrize("question", [QUESTION, CHINESE_QUESTION])
def test_a_question_is_found_in_other_dress(question: str) -> None:
    known = ngrams_of_evaluation(["another text of the set", question], 13)
    inside = f"Exam. 试题：{question.upper().replace('?', '!')} Answer: the Danube"
    beginning, end = question[: len(question) // 2], question[len(question) // 2 :]
    texts = ["", inside, beginning, end, f"{end} and {beginning}", question[:-2]]
    assert are_contaminated(texts, known).tolist() == [False, True, False, False, False, True]


def test_a_short_text_counts_where_it_stands_whole() -> None:
    known = ngrams_of_evaluation(["who wrote the book of changes and when", "too short"], 13)
    assert known.num_ignored == 1
    texts = ["Tell me: who wrote the book of changes, and when?", "who wrote the book of changes and", "too short"]
    assert are_contaminated(texts, known).tolist() == [True, False, False]


def test_a_run_does_not_go_on_in_the_next_text() -> None:
    known = ngrams_of_evaluation(["a b c d e f g h i j", "k l m n o p q r s t"], 6)
    assert not are_contaminated(["a b c", "d e f g h", "o p", "j k l m n o"[:5]], known).any()
    assert not are_contaminated(["g h i j k l"], known).any()


def test_a_large_set_is_read_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluation = [f"question number {number} asks for the name of river {number}" for number in range(25)]
    whole = ngrams_of_evaluation(evaluation, 9)
    monkeypatch.setattr(module, "TEXTS_AT_A_TIME", 10)
    assert np.array_equal(ngrams_of_evaluation(evaluation, 9).sets[9].hashes, whole.sets[9].hashes)
    assert are_contaminated(evaluation, whole).all()


@pytest.mark.parametrize("extremes", [[], [0, 2**64 - 1]])
@pytest.mark.parametrize("size", [1, 5000])
def test_membership_in_a_set_of_hashes(size: int, extremes: list[int]) -> None:
    rng = np.random.default_rng(size)
    members = np.append(rng.integers(0, 2**64, size=size, dtype=np.uint64), np.array(extremes, np.uint64))
    members = np.unique(members)
    neighbours = np.concatenate([members - np.uint64(1), members + np.uint64(1)])
    asked = rng.permutation(np.concatenate([members, neighbours, rng.integers(0, 2**64, 10_000, dtype=np.uint64)]))
    assert np.array_equal(_places_in(asked, _hash_set(members)), np.flatnonzero(np.isin(asked, members)))
