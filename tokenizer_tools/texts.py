"""Plain text for the tools beside the stages: files and directories come in, (category, text) pairs go out.

A .jsonl line is `{"source": "", "target": "...", "category": "..."}` (its text is source + target), a .txt file is one
text whose category is the file's name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizer_tools.command import UserError

TEXT_SUFFIXES = (".jsonl", ".txt")
NO_CATEGORY = "uncategorised"


def split_paths(paths: str) -> list[Path]:
    """`a,b` -> [a, b]"""
    return [Path(path.strip()) for path in paths.split(",") if path.strip()]


def find_text_files(paths: Sequence[Path]) -> list[Path]:
    """The .jsonl and .txt files in `paths`, directories read to the bottom, in a fixed order.

    Raises UserError for a path that does not exist, has another suffix or holds no such file.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix in TEXT_SUFFIXES and file.is_file())
        elif path.is_file() and path.suffix in TEXT_SUFFIXES:
            inside = [path]
        elif path.exists():
            raise UserError(f"{path}: is neither a directory nor a .jsonl or .txt file; name one of these")
        else:
            raise UserError(f"{path}: no such file or directory; name .jsonl or .txt files or directories of them")
        if not inside:
            raise UserError(f"{path}: holds no .jsonl or .txt file; name a directory that does")
        files += inside
    return list(dict.fromkeys(files))


def read_texts(files: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """(category, text) of every document. Raises UserError with `file:line` for a line that is not a record."""
    for path in files:
        if path.suffix == ".txt":
            yield path.stem, _decode(path.read_bytes(), str(path))
            continue
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _parse_record(line, f"{path}:{number}")


def _decode(raw: bytes, place: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 ({error}); convert the file") from None


def _parse_record(line: bytes, place: str) -> tuple[str, str]:
    way_out = 'correct or remove the line: {"source": "", "target": "...", "category": "..."}'
    text = _decode(line, place)
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:  # no JSON, a number of thousands of digits, thousands of brackets
        raise UserError(f"{place}: not JSON ({error}); {way_out}") from None
    if not isinstance(record, dict) or not isinstance(record.get("target"), str):
        raise UserError(f'{place}: no string "target"; {way_out}')
    text = str(record.get("source") or "") + record["target"]
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can write half a surrogate pair, which is no character
        raise UserError(f"{place}: not a text ({error.reason} at character {error.start}); {way_out}") from None
    return str(record.get("category") or NO_CATEGORY), text
