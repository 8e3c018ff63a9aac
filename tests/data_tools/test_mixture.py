"""Mixtures: shares as asked for, caps and repeats kept, every fault of the file named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from data_tools.mixture import Wish, as_json, check_names, choose_copies, copies_of, read_mixture
from tokenizer_tools.command import UserError

wishes = st.builds(
    Wish, st.floats(0.01, 100), st.one_of(st.just(float("inf")), st.floats(1, 10_000)), st.floats(0.1, 20)
)


@given(st.dictionaries(st.sampled_from("abcd"), st.tuples(wishes, st.integers(1, 10_000)), min_size=1))
def test_with_weights_shares_are_as_asked_and_as_much_as_possible_is_taken(drawn: dict[str, Any]) -> None:
    mixture = {name: wish for name, (wish, _) in drawn.items()}
    num_bytes = {name: size for name, (_, size) in drawn.items()}
    copies = copies_of(mixture, num_bytes)
    taken = {name: copies[name] * num_bytes[name] for name in copies}
    total_weight = sum(wish.weight or 0 for wish in mixture.values())
    for name, wish in mixture.items():
        assert taken[name] / sum(taken.values()) == pytest.approx((wish.weight or 0) / total_weight)
        assert copies[name] <= wish.repeats * (1 + 1e-9)
        assert taken[name] <= wish.max_bytes * (1 + 1e-9)
    used_up = [
        max(copies[name] / wish.repeats, taken[name] / wish.max_bytes) for name, wish in mixture.items() if wish.weight
    ]
    assert max(used_up) == pytest.approx(1)


@given(st.dictionaries(st.sampled_from("abcd"), st.tuples(wishes, st.integers(1, 10_000)), min_size=1))
def test_without_weights_everything_is_taken_as_often_as_it_may_be(drawn: dict[str, Any]) -> None:
    mixture = {name: Wish(None, wish.max_bytes, wish.repeats) for name, (wish, _) in drawn.items()}
    copies = copies_of(mixture, {name: size for name, (_, size) in drawn.items()})
    for name, (wish, size) in drawn.items():
        assert copies[name] == pytest.approx(min(wish.repeats, wish.max_bytes / size))


def test_a_category_without_a_wish_is_read_once_and_one_of_weight_zero_never() -> None:
    assert copies_of({}, {"a": 5, "b": 0}) == {"a": 1.0, "b": 0.0}
    assert copies_of({"a": Wish(repeats=2)}, {"a": 5, "b": 7}) == {"a": 2.0, "b": 1.0}
    assert copies_of({"a": Wish(0.0), "b": Wish(3.0)}, {"a": 5, "b": 7}) == {"a": 0.0, "b": 1.0}


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 100)), min_size=1, max_size=60),
    st.lists(st.floats(0, 5), min_size=3, max_size=3),
)
def test_documents_are_read_as_often_as_planned(items: list[tuple[int, int]], copies: list[float]) -> None:
    category, sizes = np.array(items).T
    keys = np.random.default_rng(0).integers(0, 2**64, len(items), np.uint64)
    documents, entry_keys = choose_copies(category, sizes, keys, np.array(copies))
    times = Counter(documents.tolist())
    for index, wanted in enumerate(copies):
        members = np.flatnonzero(category == index).tolist()
        assume(all(abs(wanted - round(wanted)) > 1e-6 or wanted == round(wanted) for _ in [0]))
        assert all(int(wanted) <= times[member] <= int(wanted) + 1 for member in members)
        taken = sum(times[member] * int(sizes[member]) for member in members)
        total = sum(int(sizes[member]) for member in members)
        largest = max((int(sizes[member]) for member in members), default=0)
        assert wanted * total - largest < taken + 1e-6
        assert taken <= wanted * total * (1 + 1e-9) + 1e-6
    assert len(set(entry_keys.tolist())) == len(entry_keys)


def test_the_choice_of_documents_follows_their_keys_not_their_order() -> None:
    draw = np.random.default_rng(0)
    category, sizes = np.zeros(100, int), draw.integers(1, 9, 100)
    keys = draw.integers(0, 2**64, 100, np.uint64)
    order = draw.permutation(100)
    one = keys[choose_copies(category, sizes, keys, np.array([1.5]))[0]]
    other = keys[order][choose_copies(category, sizes[order], keys[order], np.array([1.5]))[0]]
    assert sorted(one.tolist()) == sorted(other.tolist())


def test_a_share_is_met_to_the_document_in_spite_of_rounding() -> None:
    ones, keys = np.ones(100, np.int64), np.arange(100).astype(np.uint64)
    for percent in range(101):
        documents, _ = choose_copies(ones - 1, ones, keys, np.array([percent / 100]))
        assert sorted(documents.tolist()) == list(range(percent))


def test_a_file_of_either_kind_is_read(tmp_path: Path) -> None:
    expected = {"zh": Wish(4.0), "en": Wish(1.0, 5e7, 3.0)}
    (tmp_path / "m.yaml").write_text("zh: {weight: 4}\nen:\n  weight: 1\n  max_bytes: 50000000\n  repeats: 3\n")
    (tmp_path / "m.json").write_text('{"zh": {"weight": 4}, "en": {"weight": 1, "max_bytes": 5e7, "repeats": 3}}')
    assert read_mixture(tmp_path / "m.yaml") == read_mixture(tmp_path / "m.json") == expected
    assert json.dumps(as_json(expected), allow_nan=False) == json.dumps(
        {"zh": {"weight": 4.0, "repeats": 1.0}, "en": {"weight": 1.0, "max_bytes": 5e7, "repeats": 3.0}}
    )
    (tmp_path / "m.yml").write_text("2024: {repeats: 1000}\n")
    assert read_mixture(tmp_path / "m.yml") == {"2024": Wish(repeats=1000)}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("absent.json", None, "No such file or directory; name an existing .yaml or .json file of categories"),
        ("m.toml", "", "not a .yaml, .yml, .json file"),
        ("m.json", "{", "not readable"),
        ("m.yaml", "a: [", "not readable"),
        ("m.yaml", "a: \xff", "not UTF-8"),
        ("m.json", "[]", "holds list, not a mapping"),
        ("m.json", "{}", "names no category"),
        ("m.json", '{"zh": 3}', "zh: 3 is no mapping"),
        ("m.json", '{"zh": {"wieght": 3}}', "zh: unknown key 'wieght'; choose from weight, max_bytes, repeats"),
        ("m.yaml", "no: {weight: 1}", "the category False is no text; put it in quotes"),
        ("m.yaml", "~: {weight: 1}", "the category None is no text; put it in quotes"),
        ("m.json", '{"zh": {"weight": -1}}', "zh: weight -1; give a number of 0 or more"),
        ("m.json", '{"zh": {"weight": "3"}}', "zh: weight '3'"),
        ("m.json", '{"zh": {"weight": true}}', "zh: weight True"),
        ("m.json", '{"zh": {"max_bytes": NaN}}', "zh: max_bytes nan"),
        ("m.json", '{"zh": {"repeats": 1001}}', "zh: repeats 1001; at most 1000"),
        ("m.json", '{"zh": {"weight": 1}, "en": {}}', "en has no weight, but others have"),
        ("m.json", '{"zh": {"weight": 0}}', "every weight is 0"),
    ],
)
def test_each_fault_of_the_file_is_named(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        read_mixture(tmp_path / name)
    assert message in str(caught.value)
    assert name in str(caught.value)


def test_names_must_be_those_of_the_text() -> None:
    with pytest.raises(UserError, match="names 'zz', but the text has only en, zh"):
        check_names({"zz": Wish()}, ["en", "zh"])
    with pytest.raises(UserError, match="gives no weight to 'en'"):
        check_names({"zh": Wish(1.0)}, ["en", "zh"])
    check_names({"zh": Wish(repeats=2)}, ["en", "zh"])
    check_names({}, ["en"])
