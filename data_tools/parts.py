"""Pieces of work: files come in, parts of about PART_BYTES go out, each with a key that says what it is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from data_tools.fields import ReadOptions
from data_tools.input_files import Span, spans_of

PART_BYTES = 2**23
HASH_CHUNK_BYTES = 2**20


class Part(NamedTuple):
    """Some neighbouring pieces of files, read one after the other: one large piece, or many small files."""

    spans: tuple[Span, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes on the disk."""
        return sum(span.stop - span.start for span in self.spans)


def plan_parts(files: Iterable[Path], options: ReadOptions) -> list[Part]:
    """The files in order, cut and put together. Depends on nothing but their names and sizes."""
    parts: list[Part] = []
    spans: list[Span] = []
    size = 0
    for path in files:
        for span in spans_of(path, path.stat().st_size, PART_BYTES, options.txt_documents):
            spans.append(span)
            size += span.stop - span.start
            if size >= PART_BYTES:
                parts.append(Part(tuple(spans)))
                spans, size = [], 0
    return [*parts, Part(tuple(spans))] if spans else parts


def digest_of(span: Span) -> str:
    """sha256 over the bytes of a span, to the end of the last line that begins in it."""
    digest = hashlib.sha256()
    with Path(span.path).open("rb") as file:
        file.seek(max(span.start - 1, 0))
        block = file.read(1) if span.start else b"\n"
        begins_line = block == b"\n"
        left = span.stop - span.start
        while left > 0 and (block := file.read(min(left, HASH_CHUNK_BYTES))):
            digest.update(block)
            begins_line = begins_line or b"\n" in block
            left -= len(block)
        if begins_line and not block.endswith(b"\n"):
            while block := file.readline(HASH_CHUNK_BYTES):
                digest.update(block)
                if block.endswith(b"\n"):
                    break
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a whole file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def is_intact(task: tuple[Path, str]) -> bool:
    """Whether a file is there and has this sha256."""
    path, sha256 = task
    return path.is_file() and file_digest(path) == sha256


def key_of(part: Part, digests: Sequence[str], settings_key: str) -> str:
    """40 hex digits: equal only if the same bytes of files of the same names are encoded in the same way."""
    names = [[str(span.path), span.start, span.stop] for span in part.spans]
    return hashlib.sha256(json.dumps([names, list(digests), settings_key]).encode()).hexdigest()[:40]
