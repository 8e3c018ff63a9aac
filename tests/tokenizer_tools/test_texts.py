"""Text for the tools beside the stages: which files are read, what a document is, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import write_jsonl
from tokenizer_tools.command import UserError
from tokenizer_tools.texts import find_text_files, read_texts, split_paths


def test_split_paths() -> None:
    assert split_paths("a, b/c,") == [Path("a"), Path("b/c")]


def test_files_are_found_to_the_bottom_in_order_and_once(tmp_path: Path) -> None:
    for name in ("b.txt", "a.jsonl", "deep/er/c.jsonl", "no.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    files = [tmp_path / name for name in ("a.jsonl", "b.txt", "deep/er/c.jsonl")]
    assert find_text_files([tmp_path, tmp_path / "b.txt"]) == files


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nix", "nix: no such file or directory; name"),
        ("x.md", "x.md: is neither a directory nor a .jsonl or .txt file; name"),
        ("empty", "empty: holds no .jsonl or .txt file; name"),
    ],
)
def test_paths_without_text_are_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "x.md").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        find_text_files([tmp_path / name])


def test_documents_of_both_kinds(tmp_path: Path) -> None:
    records = [{"source": "问", "target": "答\u2028。", "category": "qa"}, {"target": "x"}]
    jsonl = write_jsonl(tmp_path / "a.jsonl", records)
    with jsonl.open("a") as file:
        file.write("\n")
    (tmp_path / "poem.txt").write_bytes("\ufeff床前\n明月光".encode())
    texts = list(read_texts([jsonl, tmp_path / "poem.txt"]))
    assert texts == [("qa", "问答\u2028。"), ("uncategorised", "x"), ("poem", "床前\n明月光")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"target": "a', "not JSON"),
        (b'{"target": "\xff"}', "not UTF-8"),
        (b'{"text": "a"}', 'no string "target"'),
        (b'["a"]', 'no string "target"'),
        (b'{"target": "ab\\ud800c"}', "not a text \\(surrogates not allowed at character 2\\)"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: bytes, message: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"target": "a"}\n' + line + b"\n")
    with pytest.raises(UserError, match=f"a.jsonl:2: {message}"):
        list(read_texts([tmp_path / "a.jsonl"]))


def test_bad_txt_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match="a.txt: not UTF-8"):
        list(read_texts([tmp_path / "a.txt"]))
