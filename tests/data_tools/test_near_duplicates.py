"""Near duplicates against exact similarities, and the global pass against its own definition, pair by pair."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import near_duplicates as module
from data_tools.near_duplicates import (
    MAX_COMPARED,
    SHINGLE_UNITS,
    SKETCH_VALUES,
    bands_of,
    near_duplicates,
    sketches_of,
)
from tests.data_tools.naive_ngrams import LETTERS, jaccard, jaccard_of_sets, naive_shingles

HAN = "天地玄黃宇宙洪荒日月盈昃辰宿列張寒來暑往秋收冬藏閏餘成歲律呂調陽雲騰致雨露結為霜金生麗水玉出崑岡"
WORDS = [f"{first}{second}" for first in "bdfgklmnprstvz" for second in ("a", "elo", "in", "orta", "usk")]
Rng = random.Random


def chinese(rng: Rng) -> list[str]:
    return rng.choices(HAN, k=rng.randint(200, 400))


def english(rng: Rng) -> list[str]:
    return [word + " " for word in rng.choices(WORDS, k=rng.randint(200, 400))]


def edited(units: list[str], num_edits: int, rng: Rng) -> str:
    units = list(units)
    for place in rng.sample(range(len(units)), num_edits):
        units[place] = rng.choice(WORDS) + " "
    return "".join(units)


def families(rng: Rng) -> list[str]:
    """Texts with copies that have one change (clearly near), and with many changes (clearly not)."""
    texts = []
    for number in range(60):
        units = (chinese if number % 2 else english)(rng)
        texts += ["".join(units), *(edited(units, 1, rng) for _ in range(rng.randint(0, 2)))]
        texts += [edited(units, len(units) // 10, rng) for _ in range(rng.randint(0, 2))]
    rng.shuffle(texts)
    return texts


def keys_of(texts: Sequence[str]) -> np.ndarray:
    return np.array([int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") for text in texts], np.uint64)


def test_what_is_dropped_is_what_exact_similarities_say() -> None:
    texts = families(Rng(0))
    shingles = [naive_shingles(text, SHINGLE_UNITS) for text in texts]
    similarity = {
        (a, b): jaccard_of_sets(shingles[a], shingles[b]) for a in range(len(texts)) for b in range(len(texts))
    }
    similar = {pair for pair, value in similarity.items() if value > 0.88}
    assert len(similar) > len(texts) + 80
    assert similar == {pair for pair, value in similarity.items() if value > 0.7}  # none that chance could decide
    kept: list[int] = []
    keys = keys_of(texts)
    for document in np.argsort(keys).tolist():
        if not any((document, other) in similar for other in kept):
            kept.append(document)
    dropped = near_duplicates(sketches_of(texts), keys, 0.8)
    assert np.flatnonzero(~dropped).tolist() == sorted(kept)


def test_estimates_are_near_the_exact_similarities() -> None:
    rng = Rng(1)
    errors = []
    for number in range(200):
        units = (chinese if number % 2 else english)(rng)
        pair = ("".join(units), edited(units, rng.randint(0, 12), rng))
        sketches = sketches_of(pair)
        errors.append((sketches[0] == sketches[1]).mean() - jaccard(*pair, SHINGLE_UNITS))
    assert np.std(errors) < 0.044  # of 128 independent trials at 0.5, where it is largest
    assert abs(np.mean(errors)) < 3 * 0.044 / 200**0.5


@given(st.lists(st.text(alphabet=LETTERS, max_size=40), min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_a_sketch_depends_on_its_text_alone(texts: list[str]) -> None:
    together = sketches_of(texts)
    assert together.shape == (len(texts), SKETCH_VALUES) and together.dtype == np.uint16
    assert np.array_equal(together, np.concatenate([sketches_of([text]) for text in texts]))


def test_sketches_of_no_text() -> None:
    assert sketches_of([]).shape == (0, SKETCH_VALUES)


def test_another_process_draws_the_same_sketches() -> None:
    texts = families(Rng(2))[:20]
    program = (
        "import hashlib; from data_tools.near_duplicates import sketches_of\n"
        f"print(hashlib.sha256(sketches_of({texts!r}).tobytes()).hexdigest())"
    )
    environments = [os.environ | {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": seed} for seed in ("1", "2")]
    digests = {
        subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=True).stdout
        for env in environments
    }
    assert digests == {hashlib.sha256(sketches_of(texts).tobytes()).hexdigest() + "\n"}


FORK = """
import multiprocessing, os, sys
from data_tools.near_duplicates import sketches_of
texts = [f"some words of text {number} " * 200 for number in range(300)]
first = sketches_of(texts)
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert all((sketches == first).all() for sketches in pool.map(sketches_of, [texts] * 4))
print(os.environ.get("RAYON_NUM_THREADS"))
"""


@pytest.mark.parametrize("threads", [None, "3"])
def test_a_forked_worker_can_sketch_after_its_parent_has(threads: str | None) -> None:
    """A hang (TimeoutExpired) is what threads that were lost in the fork make of it."""
    environment = {name: value for name, value in os.environ.items() if name != "RAYON_NUM_THREADS"}
    environment |= {"RAYON_NUM_THREADS": threads} if threads else {}
    command = [sys.executable, "-c", FORK]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout == f"{threads}\n"


def related_sketches(rng: np.random.Generator, num_documents: int) -> np.ndarray:
    """Sketches that agree in 0.5 to 1 of their values with one of a few."""
    sources = rng.integers(0, 2**16, size=(max(num_documents // 8, 1), SKETCH_VALUES), dtype=np.uint16)
    sketches = sources[rng.integers(0, len(sources), size=num_documents)]
    agreement = rng.choice([0.5, 0.8, 0.9, 0.95, 1], size=(num_documents, 1))
    is_own = rng.random(sketches.shape) > agreement
    sketches[is_own] = rng.integers(0, 2**16, size=is_own.sum(), dtype=np.uint16)
    return sketches


def dropped_pair_by_pair(sketches: np.ndarray, keys: np.ndarray, similarity: float) -> list[bool]:
    num_bands, width = bands_of(similarity)
    dropped = [False] * len(sketches)
    kept: list[int] = []
    for document in np.argsort(keys, kind="stable").tolist():
        for other in kept:
            equal = sketches[document] == sketches[other]
            bands = equal[: num_bands * width].reshape(num_bands, width)
            if equal.mean() >= similarity and bands.all(axis=1).any():
                dropped[document] = True
                break
        else:
            kept.append(document)
    return dropped


@given(st.integers(0, 2**32), st.integers(1, 60), st.sampled_from([0.5, 0.625, 0.8, 0.9, 1.0]))
@settings(max_examples=60, deadline=None)
def test_the_pass_does_what_it_says_pair_by_pair(seed: int, num_documents: int, similarity: float) -> None:
    rng = np.random.default_rng(seed)
    sketches = related_sketches(rng, num_documents)
    keys = rng.integers(0, 2**64, size=num_documents, dtype=np.uint64)
    assert near_duplicates(sketches, keys, similarity).tolist() == dropped_pair_by_pair(sketches, keys, similarity)


def test_the_order_of_documents_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    sketches = related_sketches(rng, 400)
    keys = rng.integers(0, 2**64, size=400, dtype=np.uint64)
    dropped = near_duplicates(sketches, keys, 0.8)
    assert 50 < dropped.sum() < 350
    for _ in range(3):
        order = rng.permutation(400)
        assert np.array_equal(near_duplicates(sketches[order], keys[order], 0.8), dropped[order])


def test_of_equal_documents_the_first_is_kept() -> None:
    dropped = near_duplicates(np.ones((300, SKETCH_VALUES), np.uint16), np.zeros(300, np.uint64), 0.8)
    assert np.flatnonzero(~dropped).tolist() == [0]


def test_of_a_chain_only_what_resembles_a_kept_document_is_dropped() -> None:
    first, second, third = (np.arange(SKETCH_VALUES, dtype=np.uint16) + 1 for _ in range(3))
    second[-20:] += 1000
    third[-40:] += 1000
    sketches = np.stack([first, second, third])
    assert near_duplicates(sketches, np.array([0, 1, 2], np.uint64), 0.8).tolist() == [False, True, False]
    assert near_duplicates(sketches, np.array([1, 0, 2], np.uint64), 0.8).tolist() == [True, False, True]


@pytest.mark.parametrize(("num_equal", "is_dropped"), [(80, True), (79, False)])
def test_the_limit_itself_is_similar(num_equal: int, is_dropped: bool) -> None:
    sketches = np.ones((2, SKETCH_VALUES), np.uint16)
    sketches[1, num_equal:] = 2
    assert near_duplicates(sketches, np.array([0, 1], np.uint64), 80 / SKETCH_VALUES).tolist() == [False, is_dropped]


def test_texts_without_units_are_no_duplicates() -> None:
    texts = ["!!!", "...", "", "one", "One!"]
    assert near_duplicates(sketches_of(texts), keys_of(texts), 0.8).sum() == 1
    assert not near_duplicates(sketches_of(texts[:3]), keys_of(texts[:3]), 0.8).any()


def test_no_documents_at_all() -> None:
    assert len(near_duplicates(np.zeros((0, SKETCH_VALUES), np.uint16), np.zeros(0, np.uint64), 0.8)) == 0


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many documents each comparison looked at."""
    counts: list[int] = []
    resembles = module._resembles

    def counting(others: np.ndarray, sketch: np.ndarray, needed: int) -> bool:
        counts.append(len(others))
        return resembles(others, sketch, needed)

    monkeypatch.setattr(module, "_resembles", counting)
    return counts


def test_many_equal_documents_are_not_quadratic(compared: list[int]) -> None:
    keys = np.arange(3000, 0, -1, dtype=np.uint64)
    dropped = near_duplicates(np.ones((3000, SKETCH_VALUES), np.uint16), keys, 0.8)
    assert np.flatnonzero(~dropped).tolist() == [2999]
    assert sum(compared) == 2999


def test_many_unlike_documents_that_share_a_band_are_not_quadratic(compared: list[int]) -> None:
    sketches = np.random.default_rng(4).integers(0, 2**16, size=(500, SKETCH_VALUES), dtype=np.uint16)
    sketches[:, : bands_of(0.8)[1]] = 7
    assert not near_duplicates(sketches, np.arange(500, dtype=np.uint64), 0.8).any()
    assert max(compared) == MAX_COMPARED and sum(compared) <= 500 * MAX_COMPARED


@pytest.mark.parametrize("change", ["last value of each band", "order within each band"])
def test_documents_that_share_no_whole_band_are_not_compared(compared: list[int], change: str) -> None:
    num_bands, width = bands_of(0.8)
    sketches = np.tile(np.arange(SKETCH_VALUES, dtype=np.uint16), (2, 1))
    bands = sketches[1, : num_bands * width].reshape(num_bands, width)
    if change == "last value of each band":
        bands[:, -1] += 1000
    else:
        bands[:] = bands[:, ::-1].copy()
    assert not near_duplicates(sketches, np.array([0, 1], np.uint64), 0.8).any()
    assert compared == []


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_bands_are_as_long_as_similar_pairs_allow(similarity: float) -> None:
    rng = np.random.default_rng(5)

    def share_found(num_bands: int, width: int) -> float:
        agrees = rng.random((20_000, num_bands, width)) < similarity
        return agrees.all(axis=2).any(axis=1).mean()

    num_bands, width = bands_of(similarity)
    assert num_bands * width <= SKETCH_VALUES
    assert share_found(num_bands, width) > 0.988
    assert width == SKETCH_VALUES or share_found(SKETCH_VALUES // (width + 1), width + 1) < 0.992
