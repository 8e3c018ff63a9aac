"""Plain text files: a stream comes in, a record or a refusal for each document goes out.

A document is a whole file, a line, or what stands between blank lines. Line ends become "\\n"; around a document there
are none.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

from data_tools.fields import Reading, document_of
from data_tools.json_readers import INVALID_UTF8
from data_tools.records import Record, Refusal
from data_tools.streams import CUTS, OVER_LONG, Piece, damage_of


def read_txt(
    stream: io.BufferedReader, lines: Iterator[Piece], start: int, reading: Reading
) -> Iterator[Record | Refusal]:
    """The documents of a stream that stands at byte `start`; `lines` are the lines of the same stream."""
    options = reading.options
    pieces = {
        "file": lambda: _whole(stream, start, options.max_document_bytes),
        "line": lambda: lines,
        "blank_lines": lambda: _paragraphs(lines, options.max_document_bytes),
    }[options.txt_documents]()
    for number, offset, data in pieces:
        if isinstance(data, str):
            yield Refusal(reading.file, number, offset, data, None)
        elif data.strip():
            yield _document(data, reading, number, offset)


def _document(data: bytes, reading: Reading, number: int, offset: int) -> Record | Refusal:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return Refusal(reading.file, number, offset, INVALID_UTF8, None)
    text = text.replace("\r\n", "\n").strip("\n")
    return document_of({reading.options.text_field: text}, reading, number, offset)


def _whole(stream: io.BufferedReader, start: int, limit: int) -> Iterator[Piece]:
    """One piece; of a damaged file the damage alone, because a document of which the rest is missing is not whole."""
    data = stream.read(limit + 1)
    if len(data) > limit:
        yield 1, start, OVER_LONG
        return
    if damage_of(stream) not in CUTS:
        yield 1, start, data
    damage = damage_of(stream)
    if damage is not None:
        yield 1, start, damage


def _paragraphs(lines: Iterator[Piece], limit: int) -> Iterator[Piece]:
    """Runs of lines that are not blank. One with an over-long line, or of more than `limit` bytes, is OVER_LONG."""
    held: list[bytes] = []
    size, place = 0, (1, 0)
    for number, offset, data in lines:
        if data == OVER_LONG or (isinstance(data, bytes) and data.strip()):
            place = place if size else (number, offset)
            size += limit + 1 if isinstance(data, str) else len(data)
            if size > limit:
                held.clear()
            elif isinstance(data, bytes):
                held.append(data)
            continue
        if size and data not in CUTS:
            yield *place, b"".join(held) if size <= limit else OVER_LONG
        if isinstance(data, str):
            yield number, offset, data
        held.clear()
        size = 0
    if size:
        yield *place, b"".join(held) if size <= limit else OVER_LONG
