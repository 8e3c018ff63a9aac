"""Readers: every format gives the same documents, spans give what the whole file gives, memory stays bounded."""

from __future__ import annotations

import csv
import errno
import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.input_files import INPUT_SUFFIXES, Span, spans_of
from data_tools.readers import ReadOptions, read_span
from data_tools.records import Record, Refusal

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
COMPRESS = {"gz": gzip.compress, "zst": zstd.compress}


def read(path: Path, options: ReadOptions | None = None, span_bytes: int = 2**30) -> list[Record | Refusal]:
    """All spans of a file, with line numbers made to count from its beginning."""
    options = options or ReadOptions()
    items: list[Record | Refusal] = []
    lines_before = 0
    for span in spans_of(path, path.stat().st_size, span_bytes, options.txt_documents):
        reader = read_span(span, options)
        items += [item._replace(line_number=item.line_number + lines_before) for item in reader]
        lines_before += reader.num_lines
    return items


def text_of(item: Record | Refusal) -> str:
    assert isinstance(item, Record), item
    return "".join(segment.text for segment in item.segments)


def written(documents: list[dict[str, Any]], suffix: str) -> bytes:
    """The documents in a format, written by the format's own library."""
    name, *compression = suffix[1:].split(".")
    if name == "jsonl":
        data = "".join(json.dumps(document) + "\n" for document in documents).encode()
    elif name == "json":
        data = json.dumps(documents, ensure_ascii=False, indent=2).encode()
    elif name == "txt":
        data = "\n".join(document["target"] for document in documents).encode()
    elif name == "csv":
        file = io.StringIO()
        writer = csv.DictWriter(file, ["category", "source", "target"])
        writer.writeheader()
        writer.writerows(documents)
        data = file.getvalue().encode()
    else:
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(documents), sink)
        return sink.getvalue()
    return COMPRESS[compression[0]](data) if compression else data


@pytest.mark.parametrize("suffix", INPUT_SUFFIXES)
def test_every_format_gives_the_same_documents(suffix: str, tmp_path: Path) -> None:
    documents = [
        {"category": "", "source": "", "target": 'one "line", quoted'},
        {"category": "zh", "source": "问？", "target": "人工智能 🙂 \\n"},
        {"category": "en", "source": " ", "target": "x" * 3000},
    ]
    if not suffix.startswith((".txt", ".csv")):
        documents.append({"category": "en", "source": None, "target": "two\nlines\n"})
    path = tmp_path / f"f{suffix}"
    path.write_bytes(written(documents, suffix))
    items = read(path, ReadOptions(txt_documents="line"))
    with_fields = [item for item in items if isinstance(item, Record)]
    assert len(with_fields) == len(items)
    if suffix.startswith(".txt"):
        assert [text_of(item) for item in items] == [document["target"] for document in documents]
        return
    assert [item.category for item in with_fields] == [document["category"] or "default" for document in documents]
    for item, document in zip(with_fields, documents, strict=True):
        loss = {segment.text: segment.has_loss for segment in item.segments}
        source = {document["source"]: False} if document["source"] else {}
        assert loss == source | {document["target"]: True}
        assert not item.is_framed


@given(st.lists(texts, max_size=8), st.integers(1, 60), st.booleans())
@settings(deadline=None)
def test_spans_give_what_the_whole_file_gives(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], span_bytes: int, ends_with_newline: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "spans.jsonl"
    rows = [json.dumps({"target": line}) if number % 3 else line for number, line in enumerate(lines)]
    path.write_bytes("\n".join(rows).encode() + b"\n" * ends_with_newline)
    assert read(path, span_bytes=span_bytes) == read(path)
    by_line = ReadOptions(txt_documents="line")
    path.rename(path.with_suffix(".txt"))
    assert read(path.with_suffix(".txt"), by_line, span_bytes) == read(path.with_suffix(".txt"), by_line)


@given(st.lists(texts, max_size=8))
def test_a_document_is_at_its_line_and_its_byte(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "offsets.jsonl"
    content = b"".join(json.dumps({"target": line}).encode() + b"\n" * (1 + len(line) % 3) for line in lines)
    path.write_bytes(content)
    items = read(path)
    assert len(items) == len(lines)
    for item, line in zip(items, lines, strict=True):
        assert item.byte_offset is not None
        assert json.loads(content[item.byte_offset :].split(b"\n")[0])["target"] == line
        assert item.line_number == content[: item.byte_offset].count(b"\n") + 1


@given(texts.filter(str.strip), st.booleans())
def test_any_clean_text_is_kept_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, text: str, ensure_ascii: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "clean.jsonl"
    for value in (0, float("nan")):  # as orjson reads it, and as Python does
        path.write_text(json.dumps({"target": text, "n": value}, ensure_ascii=ensure_ascii), encoding="utf-8")
        assert [text_of(item) for item in read(path)] == [text]


def test_an_over_long_line_lies_across_spans(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    line = b'{"target": "a"}\n'
    path.write_bytes(line + b"x" * 500 + b"\n" + line)
    options = ReadOptions(max_document_bytes=100)
    for span_bytes in (10, 16, 17, 64, 516, 517, 518, 10_000):
        items = read(path, options, span_bytes)
        assert [(item.line_number, item.byte_offset) for item in items] == [(1, 0), (2, 16), (3, 517)]
        assert isinstance(items[1], Refusal)
        assert items[1].reason == "over_long"


def test_utf16_is_told_once_however_often_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(('{"target": "a"}\n' * 9).encode("utf-16"))
    assert read(path, span_bytes=20) == [Refusal(str(path), 1, 0, "utf16_file", None)]


def test_a_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"target": "a"}\n{"target": "b"}')
    assert [(text_of(item), item.byte_offset) for item in read(path)] == [("a", 3), ("b", 19)]


def test_a_name_that_is_not_utf8_can_be_told(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    path.write_bytes(b'{"target": "a"}')
    item = read(path)[0]
    assert item.file == f"{tmp_path}/caf\\udce9.jsonl"
    item.file.encode()


def test_columns_that_no_document_has_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    table = pa.table({"target": ["a", "b"], "embedding": [[1.0] * 9, [2.0] * 9]})
    pq.write_table(table, path, compression="none", use_dictionary=False)
    content = bytearray(path.read_bytes())
    chunk = pq.ParquetFile(path).metadata.row_group(0).column(1)
    content[chunk.data_page_offset : chunk.data_page_offset + 8] = b"\xff" * 8
    path.write_bytes(content)
    assert [text_of(item) for item in read(path)] == ["a", "b"]


def test_rows_count_on_across_batches_and_groups(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"target": [str(number) for number in range(1000)]}), path, row_group_size=300)
    assert [(text_of(item), item.line_number) for item in read(path)] == [(str(n), n + 1) for n in range(1000)]


def test_the_machines_own_faults_are_raised(tmp_path: Path) -> None:
    for suffix in INPUT_SUFFIXES:
        with pytest.raises(FileNotFoundError):
            list(read_span(Span(str(tmp_path / f"gone{suffix}"), 0, 10), ReadOptions()))


def test_a_disk_that_fails_is_no_damage_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"target": ["a"]}), path)
    monkeypatch.setattr(pq, "ParquetFile", fail)
    with pytest.raises(OSError, match="Input/output"):
        read(path)


PEAK_OF_A_READER = """
import json, sys
from collections import Counter
from data_tools.input_files import Span
from data_tools.readers import ReadOptions, read_span
from data_tools.records import Refusal

def peak_kib():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

before = peak_kib()
options = ReadOptions(max_document_bytes=2**24, txt_documents=sys.argv[2])
items = read_span(Span(sys.argv[1], 0, 1), options)
counts = Counter(item.reason if isinstance(item, Refusal) else "kept" for item in items)
print(json.dumps([peak_kib() - before, counts]))
"""


@pytest.mark.parametrize(
    ("suffix", "txt_documents"),
    [
        *((suffix, "line") for suffix in (".jsonl.gz", ".jsonl.zst", ".json.gz", ".csv.zst", ".txt.gz")),
        (".txt.zst", "blank_lines"),
    ],
)
def test_memory_does_not_grow_with_the_file(suffix: str, txt_documents: str, tmp_path: Path) -> None:
    """175 MB of text, most of it one line that is too long, are read with 100 MB above what the process began with."""
    path = tmp_path / f"f{suffix}"
    kind = suffix.split(".")[1]
    head, end = {"json": (b"[", b","), "csv": (b"target,x\n", b"\n")}.get(kind, (b"", b"\n"))
    row = {"csv": b'"%s",\n', "txt": b"%s\n", "json": b'{"target": "%s"},'}.get(kind, b'{"target": "%s"}\n')
    open_file: Any = gzip.open if suffix.endswith("gz") else zstd.open
    with open_file(path, "wb") as file:
        file.write(head + row % (b"x" * 500_000) * 50)
        for _ in range(150):
            file.write(b"y" * 999_999 + (b"\n" if txt_documents == "blank_lines" else b"y"))
        file.write(end + row % b"last" + b"1]" * (kind == "json"))
    command = [sys.executable, "-c", PEAK_OF_A_READER, str(path), txt_documents]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    grown_kib, counts = json.loads(run.stdout)
    others = {"not_an_object": 1} if kind == "json" else {}
    expected = {"kept": 1, "over_long": 1} if txt_documents == "blank_lines" else {"kept": 51, "over_long": 1} | others
    assert counts == expected
    assert grown_kib < 100 * 1024, grown_kib
