"""Evaluation sets in every format, whole or refused."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd

from data_tools import evaluation_set as module
from data_tools.evaluation_set import evaluation_texts
from tokenizer_tools.command import UserError

ROWS = [
    {
        "question": "Wie heißt der Fluss?",
        "choices": ["Donau", "长江"],
        "answer": 1,
        "meta": {"source": "quiz", "id": None},
    },
    {"question": "line\none", "choices": [], "answer": 0.5, "meta": {"source": "quiz", "id": "7"}},
]
STRINGS = sorted({"Wie heißt der Fluss?", "Donau", "长江", "quiz", "line\none", "7"})
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in ROWS).encode()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", LINES),
        ("a.JSONL", b"\xef\xbb\xbf" + LINES),
        ("a.jsonl.gz", gzip.compress(LINES)),
        ("a.jsonl.zst", zstd.compress(LINES)),
        ("a.json", json.dumps(ROWS, indent=2).encode()),
        ("a.json", json.dumps({"version": 3, "data": {"test": ROWS}}).encode()),
    ],
)
def test_every_string_of_json_is_a_text(tmp_path: Path, name: str, data: bytes) -> None:
    assert evaluation_texts(write(tmp_path / name, data)) == STRINGS


def test_every_string_of_parquet_is_a_text(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert evaluation_texts(tmp_path / "a.parquet") == STRINGS


def test_every_cell_of_csv_is_a_text(tmp_path: Path) -> None:
    long_cell = "x" * 200_000
    path = write(tmp_path / "a.csv", f'question,answer\r\n"one, or\r\ntwo?",A\r\n{long_cell},长江\r\n'.encode())
    assert evaluation_texts(path) == sorted(["question", "answer", "one, or\r\ntwo?", "A", long_cell, "长江"])


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"question": "whole"}\n\n{"question": "cut of')
    with pytest.raises(UserError, match=r"\(line 3: Unterminated string starting at at character 14\); mend it"):
        evaluation_texts(path)


def test_what_the_csv_reader_refuses_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CELL_CHARACTERS", 10)
    with pytest.raises(UserError, match=r"a\.csv: cannot be read whole \(field larger than field limit \(10\)\)"):
        evaluation_texts(write(tmp_path / "a.csv", b"question\nlonger than that\n"))


def test_a_txt_file_is_a_text(tmp_path: Path) -> None:
    assert evaluation_texts(write(tmp_path / "a.txt", b"one\ntwo")) == ["one\ntwo"]


def test_all_files_of_a_directory_are_read(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / "a.txt", b"one")
    write(tmp_path / "b.jsonl", b'{"text": "two"}')
    write(tmp_path / "README.md", b"three")
    assert evaluation_texts(tmp_path) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.jsonl", LINES + b'{"question": "cut of'),
        ("a.jsonl", b'{"question": "\xff"}'),
        ("a.jsonl", b"[" * 100_000),
        ("a.jsonl.gz", gzip.compress(LINES)[:-20]),
        ("a.jsonl.gz", LINES),
        ("a.jsonl.zst", zstd.compress(LINES)[:-5]),
        ("a.json", b'[{"question": "x"}'),
        ("a.parquet", b"PAR1 and nothing else"),
        ("a.csv", '"question\0'.encode("utf-16")),
    ],
)
def test_damage_is_named_and_not_passed_over(tmp_path: Path, name: str, data: bytes) -> None:
    path = write(tmp_path / name, data)
    with pytest.raises(
        UserError, match=rf"^--decontaminate {re.escape(str(path))}: cannot be read whole \(.+\); mend it"
    ):
        evaluation_texts(path)


def test_a_path_that_holds_no_evaluation_set(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone: no such file or directory; name a file or directory of \.jsonl, "):
        evaluation_texts(tmp_path / "gone")
    with pytest.raises(UserError, match="holds no file of a known format"):
        evaluation_texts(tmp_path)
    with pytest.raises(UserError, match=r"a\.md: holds no file of a known format"):
        evaluation_texts(write(tmp_path / "a.md", b"text"))
    with pytest.raises(UserError, match=r"a\.txt: holds no text; name the files"):
        evaluation_texts(write(tmp_path / "a.txt", b" \n"))


def test_what_the_machine_refuses_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", LINES)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(pa, "input_stream", refuse)
    with pytest.raises(PermissionError):
        evaluation_texts(path)
