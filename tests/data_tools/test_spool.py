"""The spool: documents come back as they went in, in an order that depends on nothing but what they hold."""

from __future__ import annotations

import random
import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.encode import Sequence
from data_tools.records import Record
from data_tools.spool import Documents, Spool, content_hash, smallest_dtype

Item = tuple[Record, Sequence]


def spooled(items: list[Item]) -> Documents:
    file = tempfile.TemporaryFile()  # noqa: SIM115  # the documents read from it
    spool = Spool(file, np.dtype(np.uint16))
    for record, sequence in items:
        spool.append(record, sequence)
    return spool.documents(["a", "b", "unused"])


def contents(documents: Documents) -> list[tuple[list[int], int, str, int]]:
    return [
        (
            documents.tokens[offset : offset + length].tolist(),
            loss_start,
            documents.category_names[category],
            text_bytes,
        )
        for offset, length, loss_start, category, text_bytes in zip(
            documents.offset.tolist(),
            documents.length.tolist(),
            documents.loss_start.tolist(),
            documents.category.tolist(),
            documents.text_bytes.tolist(),
            strict=True,
        )
    ]


items_strategy = st.lists(
    st.builds(
        lambda ids, category, target: (Record("", target, category, "f", 1, 0), Sequence(ids, len(ids) // 2)),
        st.lists(st.integers(0, 2**16 - 1), min_size=1),
        st.sampled_from("ba"),
        st.text("xé你", min_size=1),
    ),
    min_size=1,
    unique_by=lambda item: content_hash(item[0]),
)


@given(items_strategy, st.integers())
def test_documents_come_back_and_their_order_is_that_of_no_file(items: list[Item], seed: int) -> None:
    shuffled = random.Random(seed).sample(items, len(items))
    found = contents(spooled(items))
    assert found == contents(spooled(shuffled))
    expected = [
        (sequence.input_ids, sequence.loss_start, record.category, len(record.target.encode()))
        for record, sequence in items
    ]
    assert sorted(found) == sorted(expected)


def test_loss_tokens_are_those_from_loss_start_on() -> None:
    documents = spooled([(Record("s", "t", "a", "f", 1, 0), Sequence([1, 2, 3, 4, 5], 2))])
    assert documents.loss_tokens.tolist() == [3]


def test_the_hash_tells_source_target_and_category_apart() -> None:
    records = [Record(*fields, "f", 1, 0) for fields in [("a", "b", "c"), ("ab", "", "c"), ("", "ab", "c")]]
    assert len({content_hash(record) for record in records}) == 3


@pytest.mark.parametrize(
    ("num_ids", "dtype"), [(32000, np.uint16), (65536, np.uint16), (65537, np.uint32), (69104, np.uint32)]
)
def test_ids_take_the_fewest_bytes_that_hold_the_last_one(num_ids: int, dtype: type) -> None:
    assert smallest_dtype(num_ids) == dtype
    assert np.iinfo(smallest_dtype(num_ids)).max >= num_ids - 1
