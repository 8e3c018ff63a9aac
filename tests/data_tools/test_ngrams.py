"""n-gram hashes against runs of units that are found character by character."""

from __future__ import annotations

import random
import string

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.ngrams import UNITS_AT_A_TIME, USUAL_CHARACTERS, mixed, ngrams_of, units_of
from tests.data_tools.naive_ngrams import LETTERS, naive_units

texts_of_all_kinds = st.lists(st.text(alphabet=LETTERS, max_size=30), max_size=6)


@given(texts_of_all_kinds, st.integers(1, 6))
@settings(max_examples=300, deadline=None)
def test_equal_runs_and_only_they_have_equal_hashes(texts: list[str], num_units: int) -> None:
    units = units_of(texts, num_units - 1)
    names: dict[int, tuple[str | None, ...]] = {}
    hashes: dict[tuple[str | None, ...], int] = {}
    for n, found in ngrams_of(units, num_units):
        for text, start, stop in zip(texts, units.start.tolist(), units.stop.tolist(), strict=True):
            expected = [*naive_units(text), *[None] * (num_units - 1)]
            assert stop - start == len(expected) - num_units + 1
            for place in range(stop - start):
                run = tuple(expected[place : place + n])
                value = int(found[start + place])
                assert names.setdefault(value, run) == run
                assert hashes.setdefault(run, value) == value


def test_a_text_without_units_has_none_and_takes_none_from_its_neighbours() -> None:
    units = units_of(["", "one two", "!?", "three", ""], 4)
    assert (units.stop - units.start).tolist() == [0, 2, 0, 1, 0]
    assert units.hashes[units.start[3]] == units_of(["three"], 0).hashes[0]


def test_units_of_no_text() -> None:
    units = units_of([], 4)
    assert len(units.hashes) == len(units.start) == len(units.stop) == 0


def test_long_texts_and_long_words_have_the_units_of_their_pieces() -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices(string.ascii_letters, k=rng.randint(1, 12))) for _ in range(3 * UNITS_AT_A_TIME)]
    words[100] = words[-100] = "x" * (USUAL_CHARACTERS + 1)
    words[200] = "y" * 5 + "x" * (USUAL_CHARACTERS - 5)
    together = units_of([" ".join(words)], 0).hashes
    alone = np.concatenate([units_of([word], 0).hashes for word in words])
    assert np.array_equal(together, alone)


def test_mixing_is_that_of_splitmix64() -> None:
    """The first numbers that its authors' program gives for the seeds 0 and 1234567."""
    states = np.array([0, 1234567], dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    assert mixed(states).tolist() == [0xE220A8397B1DCDAF, 6457827717110365317]
