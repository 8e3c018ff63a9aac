"""Files of documents: directories come in, one `Record` or one `Refusal` a line goes out.

A line is `{"source": "", "target": "...", "category": "..."}`. `target` is required and must hold more than blanks;
`source` may be missing or null (""), `category` may be missing, null or empty (DEFAULT_CATEGORY). Other keys are
ignored, blank lines are no records, a byte order mark at the beginning of a file is skipped.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

SUFFIX = ".jsonl"
DEFAULT_CATEGORY = "default"
FIELDS = ("category", "source", "target")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class Line(NamedTuple):
    """One line of a file as it lies on the disk: `number` counts from 1, `byte_offset` is where `data` begins."""

    file: str
    number: int
    byte_offset: int
    data: bytes


class Record(NamedTuple):
    """One document: clean text (UTF-8 can hold it, no NUL) and the place it came from."""

    source: str
    target: str
    category: str
    file: str
    line_number: int
    byte_offset: int


class Refusal(NamedTuple):
    """One line that cannot be used, and why. `category` is None where the line does not tell it."""

    file: str
    line_number: int
    byte_offset: int
    reason: str
    category: str | None


def find_files(directories: Iterable[Path]) -> tuple[list[Path], Counter[str]]:
    """Every .jsonl file below the directories, sorted, and how many other files lie there, by suffix.

    Links are followed, and no folder is read twice. Raises OSError for a folder that cannot be listed.
    """
    files: list[Path] = []
    skipped: Counter[str] = Counter()
    seen_folders: set[str] = set()
    for directory in sorted(directories):
        for folder, subfolders, names in os.walk(directory, onerror=_raise, followlinks=True):
            subfolders.sort()
            real_folder = os.path.realpath(folder)
            if real_folder in seen_folders:
                subfolders.clear()
                continue
            seen_folders.add(real_folder)
            paths = [Path(folder, name) for name in names]
            files += [path for path in paths if path.suffix == SUFFIX]
            skipped.update(path.suffix or path.name for path in paths if path.suffix != SUFFIX)
    return sorted(files), skipped


def _raise(error: OSError) -> NoReturn:
    raise error


def read_lines(files: Iterable[Path]) -> Iterator[Line]:
    """Every line of the files, in order."""
    for path in files:
        name = str(path).encode("utf-8", "backslashreplace").decode()  # a file's name need not be UTF-8
        byte_offset = 0
        with path.open("rb") as file:
            for number, data in enumerate(file, start=1):
                yield Line(name, number, byte_offset, data)
                byte_offset += len(data)


def parse_line(line: Line) -> Record | Refusal | None:
    """The record a line holds, or the reason why it holds none; None for a blank line."""
    data = line.data.removeprefix(BYTE_ORDER_MARK) if line.number == 1 else line.data
    if not data.strip():
        return None
    value = _load_object(data)
    if isinstance(value, str):
        return Refusal(line.file, line.number, line.byte_offset, value, None)
    reason = _fault(value)
    if reason is not None:
        return Refusal(line.file, line.number, line.byte_offset, reason, _category(value))
    category = value.get("category") or DEFAULT_CATEGORY
    return Record(value.get("source") or "", value["target"], category, line.file, line.number, line.byte_offset)


def _load_object(data: bytes) -> dict[str, Any] | str:
    """The JSON object in `data`, or the reason why there is none."""
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError:
        return "invalid_utf8"
    except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, thousands of brackets
        return "invalid_json"
    return value if isinstance(value, dict) else "not_an_object"


def _fault(value: dict[str, Any]) -> str | None:
    """The reason why a JSON object is no record, None if it is one."""
    fields = {name: value[name] for name in FIELDS if value.get(name) is not None}
    for name, text in fields.items():
        if not isinstance(text, str):
            return f"{name}_not_a_string"
        if "\0" in text:
            return f"{name}_with_nul"
        if not _is_unicode(text):
            return f"{name}_with_lone_surrogate"
    if "target" not in fields:
        return "missing_target"
    return None if fields["target"].strip() else "empty_target"


def _is_unicode(text: str) -> bool:
    """False for a lone half of a surrogate pair, which JSON can spell (`\\ud800`) and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _category(value: dict[str, Any]) -> str | None:
    """The category of a refused record, None if the category itself is at fault."""
    category = value.get("category") or DEFAULT_CATEGORY
    is_clean = isinstance(category, str) and "\0" not in category and _is_unicode(category)
    return category if is_clean else None
