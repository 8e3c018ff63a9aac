"""Which files are read, and how they are cut into spans."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.input_files import Format, find_files, format_of, spans_of


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jsonl", Format("jsonl", "")),
        ("a.b.JSONL.GZ", Format("jsonl", "gz")),
        ("a.jsonl.zst", Format("jsonl", "zst")),
        ("a.json", Format("json", "")),
        ("a.json.gz", Format("json", "gz")),
        ("a.csv.zst", Format("csv", "zst")),
        ("a.parquet", Format("parquet", "")),
        ("a.txt.gz", Format("txt", "gz")),
        ("a.parquet.gz", None),
        ("a.gz", None),
        ("jsonl", None),
        ("a.jsonl.bz2", None),
        ("a.jsonl.part", None),
        ("a.tsv", None),
    ],
)
def test_the_name_tells_the_format(name: str, expected: Format | None) -> None:
    assert format_of(name) == expected


def touch(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()


def test_files_are_found_below_and_through_links_but_only_once(tmp_path: Path) -> None:
    touch(tmp_path, "d/b.jsonl", "d/a/c.csv.gz", "d/e.bz2", "d/a/readme.md", "d/notes", "elsewhere/f.parquet")
    (tmp_path / "d" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "d" / "loop").symlink_to(tmp_path / "d")
    for directories in (["d"], ["d", "d"], ["d/a", "d"], ["d", "d/a"]):
        files, skipped = find_files([tmp_path / name for name in directories])
        names = [str(path.relative_to(tmp_path)) for path in files]
        assert names == ["d/a/c.csv.gz", "d/b.jsonl", "d/linked/f.parquet"]
        assert skipped == {".bz2": 1, ".md": 1, "notes": 1}


def test_hidden_files_and_folders_are_passed_over_and_counted(tmp_path: Path) -> None:
    touch(tmp_path, ".root/a.jsonl", ".root/.b.jsonl", ".root/.cache/c.jsonl", ".root/.cache/d.jsonl")
    files, skipped = find_files([tmp_path / ".root"])
    assert files == [tmp_path / ".root" / "a.jsonl"]
    assert skipped == {"hidden": 2}


def test_a_pipe_is_no_file_and_a_folder_named_like_one_is_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "x.jsonl/a.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    files, skipped = find_files([tmp_path])
    assert files == [tmp_path / "x.jsonl" / "a.jsonl"]
    assert skipped == {"no regular file": 1}


def test_a_folder_that_cannot_be_listed_and_a_link_to_nowhere_are_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        find_files([tmp_path / "absent"])
    (tmp_path / "a.jsonl").symlink_to(tmp_path / "absent")
    with pytest.raises(FileNotFoundError):
        find_files([tmp_path])


@given(st.integers(1, 300), st.integers(1, 50))
def test_spans_cover_a_file_without_gap_or_overlap(size: int, span_bytes: int) -> None:
    spans = spans_of(Path("d/a.jsonl"), size, span_bytes)
    covered = [place for span in spans for place in range(span.start, span.stop)]
    assert covered == list(range(size))
    assert {span.path for span in spans} == {"d/a.jsonl"}
    assert all(span.stop - span.start <= span_bytes for span in spans)


@pytest.mark.parametrize(
    ("name", "txt_documents", "num_spans"),
    [
        ("a.jsonl", "file", 3),
        ("a.txt", "line", 3),
        ("a.txt", "file", 1),
        ("a.txt", "blank_lines", 1),
        *((name, "line", 1) for name in ("a.jsonl.gz", "a.txt.zst", "a.json", "a.csv", "a.parquet")),
    ],
)
def test_only_plain_line_files_are_cut(name: str, txt_documents: str, num_spans: int) -> None:
    assert len(spans_of(Path(name), 25, 10, txt_documents)) == num_spans


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_an_empty_file_is_one_span(name: str) -> None:
    assert [span[1:] for span in spans_of(Path(name), 0, 10)] == [(0, 0)]
