"""Duplicates: one of equal documents stays, that of the first category, wherever they came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_tools.chunks import Facts, write_chunk
from data_tools.cleaning import CleaningConfig
from data_tools.documents import Documents, load_documents
from data_tools.duplicates import find_duplicates
from data_tools.encode import Encoded
from data_tools.near_duplicates import sketches_of


def load(directory: Path, chunks: list[list[tuple[str, str]]], categories: str = "ab") -> Documents:
    """Documents of (text, category), a part of one chunk each; the hash is the first letter's code.

    Parts 0 and 1 are the beginning and the end of one file, with two refused lines between them.
    """
    records = []
    for number, items in enumerate(chunks):
        own = sorted({category for _, category in items}, reverse=True)  # a part numbers categories in its own way
        zeros = np.zeros(len(items), np.int64)
        facts = Facts(
            hash=np.array([ord(text[0]) for text, _ in items], np.uint64),
            category=np.array([own.index(category) for _, category in items], np.int32),
            text_bytes=zeros + [len(text.encode()) for text, _ in items],
            text_characters=zeros + [len(text) for text, _ in items],
            span=zeros,
            line_number=np.arange(1, 1 + len(items)),
            byte_offset=zeros,
            sketch=sketches_of([text for text, _ in items]),
        )
        spans = np.array([border for text, _ in items for border in (1, len(text))], np.int64)
        encoded = Encoded(
            np.zeros(facts.text_characters.sum(), np.uint32), facts.text_characters, spans, zeros + 1, zeros > 0
        )
        (directory / str(number)).mkdir()
        batches = write_chunk(directory / str(number) / "c.arrow", facts, encoded, np.dtype(np.uint16))
        chunk = {"name": "c.arrow", "batch_documents": batches}
        read = {"files": ["long.jsonl" if number < 2 else f"{number}.jsonl"], "num_lines": [len(items) + 2]}
        records.append({"key": str(number), "category_names": own, "chunks": [chunk], **read})
    return load_documents(directory, records, categories)  # type: ignore[arg-type]


def test_documents_of_all_parts_lie_side_by_side(tmp_path: Path) -> None:
    chunks = [[("Abc", "a"), ("Bé", "b")], [("C", "b")], [("Dxy", "b"), ("Ez", "c"), ("F", "a")]]
    documents = load(tmp_path, chunks, "abc")
    items = [item for chunk in chunks for item in chunk]
    assert len(documents) == 6
    assert documents.category_names == ["a", "b", "c"]
    assert ["abc"[index] for index in documents.category] == [category for _, category in items]
    assert documents.hash.tolist() == [ord(text[0]) for text, _ in items]
    assert documents.length.tolist() == documents.text_characters.tolist() == [len(text) for text, _ in items]
    assert documents.text_bytes.tolist() == [len(text.encode()) for text, _ in items]
    assert documents.loss_tokens.tolist() == [len(text) - 1 for text, _ in items]
    assert documents.chunk.tolist() == [0, 0, 1, 2, 2, 2]
    assert documents.place.tolist() == [0, 1, 0, 0, 1, 2]
    assert documents.file.tolist() == [0, 0, 0, 1, 1, 1]
    assert documents.line_number.tolist() == [1, 2, 5, 1, 2, 3]
    assert [chunk.path for chunk in documents.chunks] == [tmp_path / str(number) / "c.arrow" for number in range(3)]
    assert [chunk.batch_documents.tolist() for chunk in documents.chunks] == [[2], [1], [3]]


A = "A text " + " ".join(f"word{number}" for number in range(60)) + " "
EXACT = CleaningConfig(drop_exact_duplicates=True)
NEAR = CleaningConfig(near_duplicate_similarity=0.7)
BOTH = CleaningConfig(drop_exact_duplicates=True, near_duplicate_similarity=0.7)


def left(documents: Documents, config: CleaningConfig) -> list[tuple[str, str]]:
    """(letter, category) of what stays, after a look at the reasons."""
    kept = find_duplicates(documents, config)
    dropped = np.array(list(kept.dropped.values())).reshape(-1, len(documents))
    assert (dropped.sum(axis=0) + kept.is_kept == 1).all()
    return sorted(
        (chr(documents.hash[i]), documents.category_names[documents.category[i]]) for i in np.flatnonzero(kept.is_kept)
    )


def test_nothing_is_dropped_unless_asked_for(tmp_path: Path) -> None:
    kept = find_duplicates(load(tmp_path, [[(A, "a"), (A, "b")]]), CleaningConfig())
    assert kept.is_kept.all()
    assert kept.dropped == {}


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 1, 3]])
def test_of_equal_documents_that_of_the_first_category_stays(tmp_path: Path, order: list[int]) -> None:
    items = [("B again", "b"), ("B again", "a"), ("C once", "b"), ("B again", "b"), ("A other", "b")]
    chunks = [[items[place]] for place in order]
    assert left(load(tmp_path, chunks), EXACT) == [("A", "b"), ("B", "a"), ("C", "b")]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
@pytest.mark.parametrize("config", [NEAR, BOTH])
def test_of_similar_documents_that_of_the_smallest_hash_stays(
    tmp_path: Path, order: list[int], config: CleaningConfig
) -> None:
    items = [(A + "end", "b"), ("B" + A[1:] + "stop", "a"), ("C is quite another text of as many words", "a")]
    items.append((A + "end", "a"))
    chunks = [[items[place]] for place in order]
    assert left(load(tmp_path, chunks), config) == [("A", "a"), ("C", "a")]


def test_what_is_dropped_as_equal_is_not_dropped_again_as_similar(tmp_path: Path) -> None:
    documents = load(tmp_path, [[(A + "end", "b"), (A + "end", "a"), ("B" + A[1:] + "stop", "a")]])
    dropped = find_duplicates(documents, BOTH).dropped
    assert dropped["exact_duplicate"].tolist() == [True, False, False]
    assert dropped["near_duplicate"].tolist() == [False, False, True]
