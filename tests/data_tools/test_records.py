"""Records: what is kept, and every reason for a refusal, at its exact place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.records import Line, Record, Refusal, find_files, parse_line, read_lines


def parse(data: bytes, number: int = 7) -> Record | Refusal | None:
    return parse_line(Line("f.jsonl", number, 100, data))


@pytest.mark.parametrize(
    ("data", "reason", "category"),
    [
        (b'{"target": "caf\xe9"}', "invalid_utf8", None),
        (b'{"target": "half a li', "invalid_json", None),
        (b"[" * 100_000, "invalid_json", None),
        (b'{"target": ' + b"9" * 5000 + b"}", "invalid_json", None),
        (b'["target"]', "not_an_object", None),
        (b'{"text": "other key"}', "missing_target", "default"),
        (b'{"target": null, "category": "zh"}', "missing_target", "zh"),
        (b'{"target": "", "category": "zh"}', "empty_target", "zh"),
        (b'{"target": " \\n\\t"}', "empty_target", "default"),
        (b'{"target": 5}', "target_not_a_string", "default"),
        (b'{"target": "a", "source": ["b"]}', "source_not_a_string", "default"),
        (b'{"target": "a", "category": 3}', "category_not_a_string", None),
        (b'{"target": "a\\u0000b"}', "target_with_nul", "default"),
        (b'{"target": "a", "source": "\\u0000"}', "source_with_nul", "default"),
        (b'{"target": "a", "category": "\\u0000"}', "category_with_nul", None),
        (b'{"target": "a\\ud800"}', "target_with_lone_surrogate", "default"),
        (b'{"target": "a", "category": "\\udc00"}', "category_with_lone_surrogate", None),
        (b'\xef\xbb\xbf{"target": "a"}', "invalid_json", None),
    ],
)
def test_a_bad_line_is_refused_with_its_place_and_reason(data: bytes, reason: str, category: str | None) -> None:
    assert parse(data) == Refusal("f.jsonl", 7, 100, reason, category)


@pytest.mark.parametrize(
    ("data", "source", "category"),
    [
        (b'{"target": "a"}', "", "default"),
        (b'{"target": "a", "source": null, "category": null}\r\n', "", "default"),
        (b'{"target": "a", "source": "s", "category": "", "extra": 1}\n', "s", "default"),
        (b'{"target": "a", "source": " ", "category": "zh"}', " ", "zh"),
    ],
)
def test_source_and_category_may_be_missing(data: bytes, source: str, category: str) -> None:
    assert parse(data) == Record(source, "a", category, "f.jsonl", 7, 100)


def test_a_byte_order_mark_is_skipped_in_the_first_line() -> None:
    record = parse(b'\xef\xbb\xbf{"target": "a"}', number=1)
    assert isinstance(record, Record)
    assert record.target == "a"


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_any_clean_text_is_kept_as_it_is(text: str) -> None:
    for ensure_ascii in (True, False):
        record = parse(json.dumps({"target": text + "x"}, ensure_ascii=ensure_ascii).encode())
        assert isinstance(record, Record)
        assert record.target == text + "x"


@given(st.binary())
def test_no_bytes_make_it_stumble(data: bytes) -> None:
    assert isinstance(parse(data), Record | Refusal | None)


@pytest.mark.parametrize("blank", [b"", b"\n", b" \t\r\n", b"\xef\xbb\xbf\n"])
def test_a_blank_line_is_no_record(blank: bytes) -> None:
    assert parse(blank, number=1) is None


def test_lines_know_their_byte_offsets(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes("你好\n\nx\r\nlast".encode())
    lines = list(read_lines([tmp_path / "a.jsonl"]))
    content = (tmp_path / "a.jsonl").read_bytes()
    assert [line.number for line in lines] == [1, 2, 3, 4]
    assert all(content[line.byte_offset :].startswith(line.data) for line in lines)
    assert [line.byte_offset for line in lines] == [0, 7, 8, 11]


def test_files_are_found_below_and_through_links_but_only_once(tmp_path: Path) -> None:
    for name in ("d/b.jsonl", "d/a/c.jsonl", "d/e.jsonl.gz", "d/a/readme.txt", "d/notes", "elsewhere/f.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "d" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "d" / "loop").symlink_to(tmp_path / "d")
    for directories in (["d"], ["d", "d"], ["d/a", "d"], ["d", "d/a"]):
        files, skipped = find_files([tmp_path / name for name in directories])
        names = [str(path.relative_to(tmp_path)) for path in files]
        assert names == ["d/a/c.jsonl", "d/b.jsonl", "d/linked/f.jsonl"]
        assert skipped == {".gz": 1, ".txt": 1, "notes": 1}


def test_a_folder_that_cannot_be_listed_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        find_files([tmp_path / "absent"])
