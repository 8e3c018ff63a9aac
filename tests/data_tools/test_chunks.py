"""Chunks: columns and documents come back as they were written, and only what is asked for is read."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import chunks
from data_tools.chunks import Facts, read_columns, read_documents, smallest_dtype, write_chunk
from data_tools.encode import Encoded


def make_encoded(lengths: list[int], spans: list[list[int]], top_id: int) -> Encoded:
    return Encoded(
        np.random.default_rng(0).integers(0, top_id, sum(lengths)).astype(np.uint32),
        np.array(lengths, np.int64),
        np.array([border for own in spans for border in own], np.int64),
        np.array([len(own) // 2 for own in spans], np.int64),
        np.ones(len(lengths), bool),
    )


def make_facts(num_documents: int, sketch_values: int = 0) -> Facts:
    draw = np.random.default_rng(1)
    column = lambda top, dtype: draw.integers(0, top, num_documents).astype(dtype)  # noqa: E731
    return Facts(
        hash=np.sort(draw.integers(0, 2**64, num_documents, np.uint64)),
        category=column(5, np.int32),
        text_bytes=column(2**20, np.int64),
        text_characters=column(2**20, np.int64),
        span=column(9, np.int32),
        line_number=column(2**40, np.int64),
        byte_offset=column(2**40, np.int64) - 1,
        sketch=draw.integers(0, 2**16, (num_documents, sketch_values)).astype(np.uint16),
    )


documents_strategy = st.lists(
    st.tuples(st.integers(1, 40), st.sampled_from([[0, 1], [], [0, 1, 1, 1]])), min_size=1, max_size=60
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chunks")


@settings(deadline=None)  # it writes files
@given(documents_strategy, st.integers(1, 200), st.data())
def test_any_choice_of_documents_is_read_back(
    directory: Path, drawn: list[tuple[int, list[int]]], batch_tokens: int, data: st.DataObject
) -> None:
    encoded = make_encoded([length for length, _ in drawn], [spans for _, spans in drawn], 65536)
    path = directory / "chunk.arrow"
    with mock.patch.object(chunks, "BATCH_TOKENS", batch_tokens):
        batch_documents = write_chunk(path, make_facts(len(drawn)), encoded, np.dtype(np.uint16))
    assert sum(batch_documents) == len(drawn)
    for own in np.split(encoded.lengths, np.cumsum(batch_documents)[:-1]):
        assert len(own) > 0
        assert own[1:].sum() < batch_tokens
    places = sorted(data.draw(st.lists(st.integers(0, len(drawn) - 1), min_size=1, max_size=20)))
    read = read_documents(path, np.array(batch_documents), np.array(places))
    tokens = np.split(encoded.tokens, np.cumsum(encoded.lengths)[:-1])
    assert read.tokens.tolist() == [token for place in places for token in tokens[place].tolist()]
    assert read.tokens.dtype == np.uint16
    assert read.lengths.tolist() == [drawn[place][0] for place in places]
    assert read.spans.tolist() == [border for place in places for border in drawn[place][1]]
    assert read.num_spans.tolist() == [len(drawn[place][1]) // 2 for place in places]
    assert read.has_text.tolist() == [True] * len(places)


def test_columns_that_are_not_asked_for_are_not_read(directory: Path) -> None:
    write_chunk(directory / "c.arrow", make_facts(3), make_encoded([9] * 3, [[0, 3]] * 3, 9), np.dtype(np.uint16))
    with pa.OSFile(str(directory / "c.arrow")) as source:
        assert chunks._open(source, ("hash", "length", "absent")).read_all().column_names == ["hash", "length"]


def test_a_chunk_is_compressed(directory: Path) -> None:
    encoded = make_encoded([50_000], [[0, 50_000]], 2)
    write_chunk(directory / "c.arrow", make_facts(1), encoded, np.dtype(np.uint16))
    assert (directory / "c.arrow").stat().st_size < 50_000  # of 100,000 bytes of ids, each 0 or 1


def test_columns_are_read_back(directory: Path) -> None:
    facts = make_facts(50, sketch_values=7)
    encoded = make_encoded([9] * 50, [[2, 5, 7, 8]] * 49 + [[]], 70000)
    write_chunk(directory / "c.arrow", facts, encoded, np.dtype(np.uint32))
    names = (*chunks.SMALL_COLUMNS, *chunks.PLACE_COLUMNS, "sketch")
    columns = read_columns(directory / "c.arrow", names)
    for name in names:
        expected = {
            "length": encoded.lengths,
            "loss_tokens": np.array([4] * 49 + [0]),
            "first_loss": np.array([2] * 49 + [9]),
        }
        assert np.array_equal(columns[name], expected[name] if name in expected else getattr(facts, name)), name


def test_ids_beyond_sixteen_bits_survive(directory: Path) -> None:
    encoded = make_encoded([3], [[0, 3]], 2)
    encoded.tokens[:] = [65535, 65536, 4_000_000_000]
    write_chunk(directory / "wide.arrow", make_facts(1), encoded, np.dtype(np.uint32))
    assert read_documents(directory / "wide.arrow", np.array([1]), np.array([0])).tokens.tolist() == [
        65535,
        65536,
        4_000_000_000,
    ]


@pytest.mark.parametrize(("num_ids", "dtype"), [(1, np.uint16), (65536, np.uint16), (65537, np.uint32)])
def test_the_smallest_integer_that_holds_the_vocabulary(num_ids: int, dtype: type) -> None:
    assert smallest_dtype(num_ids) == dtype
