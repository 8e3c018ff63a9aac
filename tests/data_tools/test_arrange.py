"""Arrangement: every document where it belongs, and a ledger that closes whatever comes in."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.arrange import Arrangement, LongDocuments, arrange
from data_tools.documents import Documents
from data_tools.mixture import Mixture, Wish
from tokenizer_tools.command import UserError


def make_documents(items: list[tuple[int, int]], seed: int = 0) -> Documents:
    """Documents of (category, tokens)."""
    category, length = np.array(items, np.int64).reshape(-1, 2).T
    hashes = np.random.default_rng(seed).integers(0, 2**64, len(items), np.uint64)
    index = np.arange(len(items), dtype=np.int32)
    first_loss = np.zeros(len(items), np.int64)
    facts = (hashes, category, length, length, first_loss, length * 3, length)
    return Documents([], list("abc"), index, index, *facts, file=index, line_number=length)


items_strategy = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 300)), min_size=1, max_size=60)
wish = st.builds(Wish, st.none(), st.sampled_from([1e9, 400.0]), st.sampled_from([0.0, 0.5, 1.0, 2.5]))


@given(items_strategy, st.lists(wish, min_size=3, max_size=3), st.integers(1, 9), st.data())
def test_the_ledger_closes_for_anything(
    items: list[tuple[int, int]], wishes: list[Wish], num_buckets: int, data: st.DataObject
) -> None:
    documents = make_documents(items)
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(items), max_size=len(items))))
    mode: LongDocuments = data.draw(st.sampled_from(["split", "truncate", "drop"]))
    mixture: Mixture = dict(zip("abc", wishes, strict=True))
    first_loss = data.draw(st.lists(st.integers(0, 150), min_size=len(items), max_size=len(items)))
    first_loss = np.minimum(np.array(first_loss), documents.length - 1)
    documents = dataclasses.replace(documents, first_loss=first_loss, loss_tokens=documents.length - first_loss)
    try:
        found = arrange(documents, kept, num_buckets=num_buckets, max_length=100, long_documents=mode, mixture=mixture)
    except UserError as error:
        assert "no document is left for the bins" in str(error)
        fits = documents.length <= 100 if mode == "drop" else first_loss < 100
        wishes_of = [mixture["abc"[category]] for category, _ in items]
        wished = np.array([wish.repeats >= 1 and wish.max_bytes > 10**6 for wish in wishes_of])
        assert mode == "split" or not (kept & fits & wished).any()
        return
    in_bins = np.bincount(documents.category[found.document], found.length, minlength=3).astype(int).tolist()
    for index, flow in enumerate(found.flows):
        assert flow.come_in == in_bins[index] + sum(flow.dropped.values())
        assert flow.come_in - flow.repeated == sum(
            length for (category, length), is_kept in zip(items, kept, strict=True) if is_kept and category == index
        )
    assert found.borders[0] == 0
    assert found.borders[-1] == len(found.document) == len(found.length)
    assert (np.diff(found.borders) >= 0).all()
    assert kept[found.document].all()
    lengths = documents.length[found.document]
    if mode == "split":
        assert (found.length == lengths).all()
    elif mode == "truncate":
        assert (found.length == np.minimum(lengths, 100)).all()
        assert (documents.first_loss[found.document] < 100).all()
    else:
        assert (found.length == lengths).all() and (lengths <= 100).all()


def place(items: list[tuple[int, int]], mode: LongDocuments, mixture: Mixture) -> tuple[Documents, Arrangement]:
    documents = make_documents(items)
    kept = np.ones(len(items), bool)
    return documents, arrange(documents, kept, num_buckets=2, max_length=100, long_documents=mode, mixture=mixture)


def test_each_reason_is_counted_for_its_category() -> None:
    items = [(0, 100), (0, 101), (1, 250), (2, 30)]
    assert [flow.dropped for flow in place(items, "truncate", {})[1].flows] == [
        {"truncated": 1},
        {"truncated": 150},
        {},
    ]
    assert [flow.dropped for flow in place(items, "drop", {})[1].flows] == [
        {"long_document": 101},
        {"long_document": 250},
        {},
    ]
    left_out = place(items, "split", {"c": Wish(repeats=0)})[1].flows
    assert [(flow.come_in, flow.dropped) for flow in left_out] == [(201, {}), (250, {}), (30, {"mixture": 30})]
    repeated = place(items, "split", {"c": Wish(repeats=3)})[1]
    assert [(flow.come_in, flow.repeated) for flow in repeated.flows] == [(201, 0), (250, 0), (90, 60)]
    assert Counter(repeated.document.tolist()) == {0: 1, 1: 1, 2: 1, 3: 3}
    assert repeated.copies.tolist() == [1, 1, 3]


@pytest.mark.parametrize("mixture", [{}, {"a": Wish(repeats=2.5)}])
def test_the_same_documents_in_any_order_are_arranged_alike(mixture: Mixture) -> None:
    draw = np.random.default_rng(3)
    items = [(int(draw.integers(0, 3)), int(draw.integers(1, 200))) for _ in range(300)]
    one, found = place(items, "split", mixture)
    order = draw.permutation(300)
    names = ("hash", "category", "length", "loss_tokens", "text_bytes", "text_characters")
    other = dataclasses.replace(one, **{name: getattr(one, name)[order] for name in names})
    again = arrange(other, np.ones(300, bool), num_buckets=2, max_length=100, long_documents="split", mixture=mixture)
    assert one.hash[found.document].tolist() == other.hash[again.document].tolist()
    assert found.borders.tolist() == again.borders.tolist()


def test_copies_of_a_document_go_to_different_buckets() -> None:
    documents = make_documents([(0, 10)] * 4000)
    found = arrange(
        documents,
        np.ones(4000, bool),
        num_buckets=10,
        max_length=100,
        long_documents="split",
        mixture={"a": Wish(repeats=2)},
    )
    bucket = np.repeat(np.arange(10), np.diff(found.borders))
    by_document = bucket[np.argsort(found.document, kind="stable")].reshape(4000, 2)
    assert (by_document[:, 0] != by_document[:, 1]).all()


def test_buckets_are_balanced_in_what_is_used_of_a_document() -> None:
    """One document is cut from 9,000 tokens to 100, and weighs no more than the others then."""
    _, found = place([(0, 9_000), (0, 100), (0, 100), (0, 100)], "truncate", {})
    assert np.diff(found.borders).tolist() == [2, 2]


def test_buckets_are_balanced_in_tokens_that_bear_loss() -> None:
    documents = dataclasses.replace(make_documents([(0, 100)] * 4), loss_tokens=np.array([90, 30, 30, 30]))
    kept = np.ones(4, bool)
    found = arrange(documents, kept, num_buckets=2, max_length=100, long_documents="split", mixture={})
    assert sorted(np.diff(found.borders).tolist()) == [1, 3]


def test_a_mixture_counts_bytes_not_tokens() -> None:
    """The documents with the smallest keys, which are taken first, hold nearly all bytes."""
    documents = make_documents([(0, 10)] * 200)
    num_bytes = np.where(documents.hash < np.sort(documents.hash)[50], 1000, 1)
    documents = dataclasses.replace(documents, text_bytes=num_bytes)
    mixture = {"a": Wish(max_bytes=20_500.0)}
    found = arrange(
        documents, np.ones(200, bool), num_buckets=1, max_length=100, long_documents="split", mixture=mixture
    )
    assert num_bytes[found.document].tolist() == [1000] * 20
