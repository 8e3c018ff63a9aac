"""A span of a file -> documents: every format's reader behind one door."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator

from data_tools.fields import Reading, ReadOptions
from data_tools.input_files import Span, format_of, shown_name
from data_tools.json_arrays import split_array
from data_tools.json_readers import read_json
from data_tools.records import Record, Refusal
from data_tools.streams import UTF16_FILE, Piece, is_utf16, open_stream, skip_to_line, skip_utf8_mark, split_lines
from data_tools.table_readers import read_csv, read_parquet
from data_tools.txt_reader import read_txt


def read_span(span: Span, options: ReadOptions) -> SpanReader:
    """A reader of the documents of the span, in order."""
    return SpanReader(span, options)


class SpanReader:
    """Iterates once over `Record | Refusal`. Raises OSError for what the machine refuses, nothing for damage.

    `num_lines` is, at the end, the number of lines that begin in the span, blank ones too: what to add to the line
    numbers of the next span. It means nothing where a file is not cut.
    """

    def __init__(self, span: Span, options: ReadOptions) -> None:
        self._span = span
        name = shown_name(span.path)
        self._reading = Reading(options, name)
        self.num_lines = 0

    def __iter__(self) -> Iterator[Record | Refusal]:
        file_format = format_of(self._span.path)
        assert file_format is not None, self._span.path
        kind, compression = file_format
        if kind == "parquet":
            yield from read_parquet(self._span.path, self._reading)
            return
        with open_stream(self._span.path, compression) as stream:
            if not is_utf16(stream):
                yield from self._documents(stream, kind, sys.maxsize if compression else self._span.stop)
            elif self._span.start == 0:
                yield Refusal(self._reading.file, 1, 0, UTF16_FILE, None)

    def _documents(self, stream: io.BufferedReader, kind: str, stop: int) -> Iterator[Record | Refusal]:
        start = skip_to_line(stream, self._span.start, stop) if self._span.start else skip_utf8_mark(stream)
        limit = self._reading.options.max_document_bytes
        lines = self._counted(split_lines(stream, start, limit, stop))
        if kind == "json":
            return read_json(split_array(stream, start, limit), self._reading)
        if kind == "jsonl":
            return read_json(lines, self._reading)
        if kind == "csv":
            return read_csv(lines, self._reading)
        return read_txt(stream, lines, start, self._reading)

    def _counted(self, lines: Iterator[Piece]) -> Iterator[Piece]:
        for piece in lines:
            self.num_lines = piece[0]
            yield piece
