"""Input files: directories come in, the files that can be read, and spans of them that make equal work, go out."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, NoReturn

from tokenizer_tools.command import UserError

COMPRESSIONS = (".gz", ".zst")
STREAMED_SUFFIXES = (".jsonl", ".json", ".csv", ".txt")
INPUT_SUFFIXES = (
    *STREAMED_SUFFIXES,
    *(suffix + compression for suffix in STREAMED_SUFFIXES for compression in COMPRESSIONS),
    ".parquet",
)


class Format(NamedTuple):
    """`kind` is jsonl, json, csv, txt or parquet; `compression` is gz, zst or "" for none."""

    kind: str
    compression: str


class Span(NamedTuple):
    """Bytes `start` to `stop` of a file. A line belongs to the span that holds its first byte."""

    path: str
    start: int
    stop: int


def shown_name(path: str | Path) -> str:
    """A file's name as text that UTF-8 can hold, which a file's name need not be."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def format_of(name: str) -> Format | None:
    """The format that a file's name tells, in capitals or not; None for none of INPUT_SUFFIXES."""
    lower_name = name.lower()
    if not lower_name.endswith(INPUT_SUFFIXES):
        return None
    *_, kind, last = f".{lower_name}".split(".")
    return Format(kind, last) if f".{last}" in COMPRESSIONS else Format(last, "")


def find_files(directories: Iterable[Path]) -> tuple[list[Path], Counter[str]]:
    """Every file of a known format below the directories, sorted, and how many others lie there, by suffix.

    Links are followed, and no folder is read twice. Files and folders whose name begins with a dot are passed over and
    count as "hidden", pipes and devices as "no regular file". Raises OSError for a folder that cannot be listed and for
    a link that leads nowhere.
    """
    files: list[Path] = []
    skipped: Counter[str] = Counter()
    seen_folders: set[str] = set()
    for directory in sorted(directories):
        for folder, subfolders, names in os.walk(directory, onerror=_raise, followlinks=True):
            real_folder = os.path.realpath(folder)
            if real_folder in seen_folders:
                subfolders.clear()
                continue
            seen_folders.add(real_folder)
            skipped["hidden"] += sum(name.startswith(".") for name in (*subfolders, *names))
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for path in (Path(folder, name) for name in names if not name.startswith(".")):
                if format_of(path.name) is None:
                    skipped[path.suffix or path.name] += 1
                elif not stat.S_ISREG(path.stat().st_mode):
                    skipped["no regular file"] += 1
                else:
                    files.append(path)
    return sorted(files), +skipped


def files_at(path: Path, flag: str) -> list[Path]:
    """The file, or every file below the directory. Raises UserError, naming the `flag`, if none can be read."""
    if path.is_dir():
        files, _ = find_files([path])
    else:
        files = [path] if path.is_file() and format_of(path.name) else []
    if not files:
        fault = "holds no file of a known format" if path.exists() else "no such file or directory"
        raise UserError(f"{flag} {path}: {fault}; name a file or directory of {', '.join(INPUT_SUFFIXES)}")
    return files


def _raise(error: OSError) -> NoReturn:
    raise error


def spans_of(path: Path, size: int, span_bytes: int, txt_documents: str = "file") -> list[Span]:
    """The file of `size` bytes in spans of `span_bytes` if it is uncompressed and a line is a document, else in one."""
    file_format = format_of(path.name)
    is_cut = file_format == ("jsonl", "") or (file_format == ("txt", "") and txt_documents == "line")
    step = span_bytes if is_cut else max(size, 1)
    return [Span(str(path), start, min(start + step, size)) for start in range(0, max(size, 1), step)]
