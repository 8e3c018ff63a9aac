"""Rows of a shard: ids, labels and lengths gathered from documents in memory, in an order of the seed."""

from __future__ import annotations

from unittest import mock

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_tools import rows


def make_shard(lengths: list[int], members: list[int], used: int = 10**9) -> rows.Shard:
    """Document d has the ids 1000 * d, 1000 * d + 1, ...; its first d tokens bear no loss; its category is d % 3.

    It was read from line d + 7 of file 2 * d.
    """
    tokens = np.concatenate([1000 * d + np.arange(n) for d, n in enumerate(lengths)]).astype(np.uint16)
    labels = np.concatenate([np.where(np.arange(n) < d, -100, 1000 * d + np.arange(n)) for d, n in enumerate(lengths)])
    length = np.array(lengths, np.int64)
    chosen = np.array(members)
    first_token = (np.cumsum(length) - length)[chosen]
    used_lengths = np.minimum(length[chosen], used)
    return rows.Shard(tokens, labels.astype(np.int32), first_token, chosen % 3, used_lengths, chosen * 2, chosen + 7)


def split_rows(batches: list[rows.RowBatch]) -> list[tuple[list[int], ...]]:
    found = []
    for batch in batches:
        at_tokens, at_pieces = np.cumsum(batch.row_lengths)[:-1], np.cumsum(batch.row_pieces)[:-1]
        columns = [
            np.split(batch.input_ids, at_tokens),
            np.split(batch.labels, at_tokens),
            np.split(batch.document_lengths, at_pieces),
            np.split(batch.document_categories, at_pieces),
            np.split(batch.document_files, at_pieces),
            np.split(batch.document_lines, at_pieces),
        ]
        found += [tuple(part.tolist() for part in row) for row in zip(*columns, strict=True)]
    return found


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(8, 20), st.integers(1, 60), st.integers(1, 60)
)
def test_rows_hold_the_members_whole_with_their_labels(
    lengths: list[int], max_length: int, batch_tokens: int, used: int
) -> None:
    members = list(range(0, len(lengths), 2))[::-1]
    with mock.patch.object(rows, "TOKENS_PER_BATCH", batch_tokens):
        found = split_rows(list(rows.row_batches(make_shard(lengths, members, used), max_length, [0, 0])))
    seen = []
    for input_ids, labels, piece_lengths, categories, files, lines in found:
        assert len(input_ids) == len(labels) == sum(piece_lengths) <= max_length
        facts_of_token = np.repeat([categories, files, lines], piece_lengths, axis=1).T.tolist()
        for token, label, (category, file, line) in zip(input_ids, labels, facts_of_token, strict=True):
            document, position = divmod(token, 1000)
            assert (file, line) == (document * 2, document + 7)
            assert label == (token if position >= document else -100)
            assert category == document % 3
        seen += input_ids
    assert sorted(seen) == sorted(1000 * d + n for d in members for n in range(min(lengths[d], used)))


def test_the_seed_changes_the_order_of_rows_and_nothing_else() -> None:
    shard = make_shard([9] * 40, list(range(40)))
    orders = [split_rows(list(rows.row_batches(shard, 9, seed))) for seed in ([1, 0], [1, 0], [2, 0], [1, 1])]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]
    assert orders[0] != orders[3]
    assert sorted(orders[0]) == sorted(orders[2]) == sorted(orders[3])
