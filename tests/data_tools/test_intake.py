"""One part: every document once in its chunks, with its place and counts, and a part that is damaged is made again."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_tools import intake
from data_tools.backends import BackendDiffersError, laid_end_to_end
from data_tools.chunks import PLACE_COLUMNS, SMALL_COLUMNS, read_columns, read_documents
from data_tools.cleaning import CleaningConfig
from data_tools.counts import RecordCounts
from data_tools.encode import encode_records
from data_tools.fields import ReadOptions
from data_tools.intake import Job, PartRecord, content_hash, encode_part, finished_part, loss_text
from data_tools.parts import Part, plan_parts
from data_tools.records import Record, Segment
from data_tools.tools import Settings, tools_of
from tests.data_tools.conftest import make_documents, write_documents

EncodeFiles = Callable[..., tuple[PartRecord, bool, Path]]


@pytest.fixture
def encode_files(tmp_path: Path, tiny_tokenizer_dir: Path) -> EncodeFiles:
    """Encode files as one part; gives the record, whether it was there, and the part's directory."""

    def run(*paths: Path, **cleaning: Any) -> tuple[PartRecord, bool, Path]:
        settings = Settings(tiny_tokenizer_dir, ReadOptions(), CleaningConfig(**cleaning))
        (tmp_path / "cache").mkdir(exist_ok=True)
        spans = tuple(span for part in plan_parts(paths, ReadOptions()) for span in part.spans)
        record, was_there = encode_part((Part(spans), Job(settings, "tokenizers", tmp_path / "cache", str(cleaning))))
        return record, was_there, tmp_path / "cache" / record["key"]

    return run


def make_record(*segments: tuple[str, bool, bool], is_framed: bool = False, category: str = "c") -> Record:
    return Record(tuple(Segment(*segment) for segment in segments), is_framed, category, "f", 1, 0)


def columns_of(record: PartRecord, directory: Path) -> list[dict[str, np.ndarray]]:
    return [read_columns(directory / chunk["name"], SMALL_COLUMNS + PLACE_COLUMNS) for chunk in record["chunks"]]


def test_documents_lie_in_chunks_sorted_by_content_each_once_with_its_place(
    tmp_path: Path, tiny_tokenizer_dir: Path, encode_files: EncodeFiles
) -> None:
    documents = [
        {"source": d["source"], "target": d["target"] + "é", "category": d["category"]} for d in make_documents(60)
    ]
    write_documents(tmp_path / "a.jsonl", documents[:25])
    write_documents(tmp_path / "b.jsonl", documents[25:])
    with mock.patch.object(intake, "CHUNK_BYTES", 400):
        record, _, directory = encode_files(tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    chunks = columns_of(record, directory)
    num_characters = sum(len(document["source"] + document["target"]) for document in documents)
    assert 3 < len(chunks) <= num_characters // 400 + 1
    assert [len(chunk["hash"]) for chunk in chunks] == [sum(chunk["batch_documents"]) for chunk in record["chunks"]]
    reference = tools_of(Settings(tiny_tokenizer_dir, ReadOptions(), CleaningConfig())).reference
    seen = []
    for entry, chunk in zip(record["chunks"], chunks, strict=True):
        assert (np.diff(chunk["hash"].astype(object)) >= 0).all()
        places = np.arange(len(chunk["hash"]))
        read = read_documents(directory / entry["name"], np.array(entry["batch_documents"]), places)
        assert len(read.tokens) == entry["num_tokens"] == chunk["length"].sum()
        for place, tokens in enumerate(np.split(read.tokens, np.cumsum(read.lengths)[:-1])):
            index = 25 * int(chunk["span"][place]) + int(chunk["line_number"][place]) - 1
            seen.append(index)
            document = documents[index]
            segments = [(document["source"], False, False)] if document["source"] else []
            expected = encode_records(reference, [make_record(*segments, (document["target"], True, False))])
            assert tokens.tolist() == expected.tokens.tolist()
            assert chunk["text_bytes"][place] == len(document["target"].encode())
            assert chunk["text_characters"][place] == len(document["target"])
            assert record["category_names"][chunk["category"][place]] == document["category"]
            lines = Path(record["files"][chunk["span"][place]]).read_bytes()
            assert json.loads(lines[chunk["byte_offset"][place] :].splitlines()[0]) == document
    assert sorted(seen) == list(range(60))
    assert record["num_lines"] == [25, 35]
    counts = RecordCounts()
    counts.add(record["counts"])
    assert counts.ledger() == {"read": 60, "kept": 60, "refused": {}}
    for name in ("en", "poetry", "zh"):
        count = sum(document["category"] == name for document in documents)
        assert counts.ledgers()[name] == {"read": count, "kept": count, "refused": {}}


def test_equal_documents_lie_in_the_order_of_their_categories(tmp_path: Path, encode_files: EncodeFiles) -> None:
    write_documents(tmp_path / "a.jsonl", [{"target": "one text", "category": name} for name in "cabcab"])
    record, _, directory = encode_files(tmp_path / "a.jsonl")
    (chunk,) = columns_of(record, directory)
    assert [record["category_names"][index] for index in chunk["category"]] == list("aabbcc")


def test_documents_of_a_table_have_no_byte_offset(tmp_path: Path, encode_files: EncodeFiles) -> None:
    pq.write_table(pa.Table.from_pylist([{"target": "one"}, {"target": "two"}]), tmp_path / "a.parquet")
    record, _, directory = encode_files(tmp_path / "a.parquet")
    (chunk,) = columns_of(record, directory)
    assert chunk["byte_offset"].tolist() == [-1, -1]


def test_the_very_documents_that_are_too_short_or_become_no_token_are_refused(
    tmp_path: Path, encode_files: EncodeFiles
) -> None:
    texts = ["a river", "NOTHING 1", "a second river", "tiny", "NOTHING 2", "a third river"]
    write_documents(tmp_path / "a.jsonl", [{"target": text, "category": text[-1]} for text in texts])

    def without_tokens(tools: Any, backend: Any) -> Any:
        encoders = real(tools, backend)
        encode = lambda kept: laid_end_to_end([[] if "NOTHING" in text else [7] * len(text) for text in kept])  # noqa: E731
        return type(encoders)(**(vars(encoders) | {"start": encode}))

    real = intake.Tools.encoders
    with mock.patch.object(intake.Tools, "encoders", without_tokens):
        record, _, directory = encode_files(tmp_path / "a.jsonl", min_characters=5)
    refused = [json.loads(line) for line in (directory / "refused.jsonl").read_text().splitlines()]
    assert sorted((line, reason, category) for _, _, line, _, reason, category in refused) == [
        (2, "target_without_tokens", "1"),
        (4, "too_short", "y"),
        (5, "target_without_tokens", "2"),
    ]
    (chunk,) = columns_of(record, directory)
    found = dict(zip(chunk["line_number"].tolist(), chunk["length"].tolist(), strict=True))
    assert found == {line: len(texts[line - 1]) + 2 for line in (1, 3, 6)}
    assert chunk["text_characters"].tolist() == (chunk["length"] - 2).tolist()


def test_a_few_documents_of_every_part_are_held_against_the_reference(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    write_documents(tmp_path / "a.jsonl", [{"target": f"text {index}"} for index in range(intake.CHECK_EVERY * 8)])
    settings = Settings(tiny_tokenizer_dir, ReadOptions(), CleaningConfig())
    tools = tools_of(settings)
    wrong = type(tools.reference)(
        **(vars(tools.reference) | {"start": lambda texts: laid_end_to_end([[7]] * len(texts))})
    )
    with (
        mock.patch.dict(tools._encoders, {"gigatoken": wrong}),
        pytest.raises(BackendDiffersError, match=r"gigatoken .*a\.jsonl"),
    ):
        encode_part((plan_parts([tmp_path / "a.jsonl"], ReadOptions())[0], Job(settings, "gigatoken", tmp_path, "")))
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]  # nothing half-made
    assert gc.isenabled()


@pytest.mark.parametrize("damage", ["chunk", "no chunk", "no refused", "record", "no record"])
def test_a_part_is_found_again_only_if_it_is_intact(tmp_path: Path, encode_files: EncodeFiles, damage: str) -> None:
    write_documents(tmp_path / "a.jsonl", make_documents(20))
    record, was_there, directory = encode_files(tmp_path / "a.jsonl")
    assert not was_there
    record = json.loads(json.dumps(record))
    assert encode_files(tmp_path / "a.jsonl") == (record, True, directory)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    kind = damage.removeprefix("no ")
    path = directory / {"chunk": "chunk-00000.arrow", "refused": "refused.jsonl", "record": "record.json"}[kind]
    if damage.startswith("no "):
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9])
    assert finished_part(directory) is None
    assert json.loads(json.dumps(encode_files(tmp_path / "a.jsonl")[:2])) == [record, False]
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [directory.name]


def test_whatever_makes_another_document_makes_another_hash() -> None:
    records = [
        make_record(("ab", True, False)),
        make_record(("ab", True, False), is_framed=True),
        make_record(("a", True, False), ("b", True, False)),
        make_record(("a", False, False), ("b", True, False)),
        make_record(("", False, False), ("ab", True, False)),
        make_record(("a", True, True), ("b", True, False)),
        make_record(("a", True, False), ("c", True, False)),
    ]
    assert len({content_hash(record) for record in records}) == len(records)
    assert content_hash(records[3]) == content_hash(make_record(*records[3].segments, category="other"))


def test_the_text_that_bears_loss_is_neither_prompt_nor_control_token() -> None:
    assert loss_text(make_record(("whole", True, False))) == "whole"
    segments = [("<s>", True, True), ("question", False, False), ("an", True, False), ("swer", True, False)]
    assert loss_text(make_record(*segments, ("</s>", True, True), is_framed=True)) == "answer"


def test_cleaning_sees_all_text_but_no_control_tokens() -> None:
    record = make_record(("<s>", True, True), ("question", False, False), ("answer", True, False), is_framed=True)
    assert intake._text_of(record) == "question\nanswer"
    assert intake._text_of(make_record(("only", True, False))) == "only"
