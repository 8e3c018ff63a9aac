"""Where a row was read: the line that is named holds the very text of the row's piece."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools import bucket_writer, parts
from data_tools.bin_writer import ARROW_NAME
from data_tools.bins import Bins, open_bins
from data_tools.inputs import INPUTS_NAME
from data_tools.sources import SOURCES_NAME
from tests.data_tools.conftest import Prepare
from tokenizer_tools.tokenizer import TextEncoder, load_tokenizer


def sourced_pieces(opened: Bins) -> list[tuple[str, list[int]]]:
    """(`file:line`, ids) of every piece of every row."""
    found: list[tuple[str, list[int]]] = []
    for bin_index, part in enumerate(opened.bins):
        for index in range(part.num_rows):
            row = part.row(index)
            pieces = np.split(row.input_ids, np.cumsum(row.document_lengths)[:-1])
            sources = opened.sources(bin_index, index)
            assert len(sources) == len(pieces)
            found += zip(sources, (piece.tolist() for piece in pieces), strict=True)
    return found


def ids_of_line(source: str, encoder: TextEncoder) -> list[int]:
    """The ids of the document that stands in the line, by encoding it here."""
    path, _, number = source.rpartition(":")
    document = json.loads(Path(path).read_text().splitlines()[int(number) - 1])
    source_ids = encoder.encode_batch([document["source"]])[0] if document["source"] else []
    target_ids = encoder.encode_batch([document["target"]], continuation=bool(source_ids))[0]
    return [*encoder.prefix_ids, *source_ids, *target_ids, *encoder.eos_ids]


@pytest.mark.parametrize("flags", [{}, {"num_spliced_dataset_bins": 1}, {"num_workers": 2}], ids=str)
def test_every_piece_stands_in_the_line_that_is_named(
    flags: dict[str, Any],
    prepare: Prepare,
    corpus_dir: Path,
    tiny_tokenizer_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for path in corpus_dir.rglob("*.jsonl"):
        path.write_text("no json\n" * 3 + path.read_text())
    monkeypatch.setattr(parts, "PART_BYTES", 3_000)  # several parts, cut in the middle of files
    monkeypatch.setattr(bucket_writer, "SHARD_TOKENS", 2_000)  # a bucket is read shard by shard, or some together
    encoder = TextEncoder(load_tokenizer(tiny_tokenizer_dir))
    pieces: dict[str, list[list[int]]] = {}
    for source, ids in sourced_pieces(open_bins([prepare(**flags)])):
        pieces.setdefault(source, []).append(ids)
    lines = {
        f"{path}:{number}"
        for path in corpus_dir.rglob("*.jsonl")
        for number in range(4, len(path.read_text().splitlines()) + 1)
    }
    assert pieces.keys() == lines
    for source, parts_of_document in pieces.items():
        whole = ids_of_line(source, encoder)
        cut = Counter(tuple(whole[first : first + 128]) for first in range(0, len(whole), 128))
        assert Counter(map(tuple, parts_of_document)) == cut


def test_other_names_change_the_sources_and_no_byte_of_a_row(prepare: Prepare, corpus_dir: Path) -> None:
    before = prepare("before")
    for path in corpus_dir.rglob("*.jsonl"):
        path.rename(path.with_name(f"z_{path.name[::-1].partition('.')[2]}.jsonl"))
    after = prepare("after")
    rows, sources = (
        [
            (before / part / name).read_bytes() == (after / part / name).read_bytes()
            for part in ("part-00000", "part-00001")
        ]
        for name in (ARROW_NAME, SOURCES_NAME)
    )
    assert all(rows)
    assert {source.partition(":")[0] for source in open_bins([after]).sources(0, 0)} <= set(
        map(str, corpus_dir.rglob("z_*"))
    )


@pytest.mark.parametrize("gone", [f"part-00000/{SOURCES_NAME}", INPUTS_NAME])
def test_a_dataset_that_does_not_say_is_read_all_the_same(prepare: Prepare, gone: str) -> None:
    directory = prepare()
    (directory / gone).unlink()
    opened = open_bins([directory])
    assert opened.sources(0, 0) == []
    assert len(opened.bins[0].row(0).input_ids)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_sources_that_are_cut_off_say_nothing_wrong(prepare: Prepare, share: float) -> None:
    directory = prepare()
    opened = open_bins([directory])
    complete = [opened.sources(0, index) for index in range(opened.bins[0].num_rows)]
    path = directory / "part-00000" / SOURCES_NAME
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    opened = open_bins([directory])
    for index, expected in enumerate(complete):
        assert opened.sources(0, index) in ([], expected)
