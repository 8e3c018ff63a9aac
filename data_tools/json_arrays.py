"""JSON arrays of documents: a stream comes in, the bytes of one element after another go out.

Elements are cut out unread, by their brackets and strings alone, so that one bad element costs only itself, and each
goes the same way as a line of a .jsonl file. No more than one element is held in memory.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

from data_tools.streams import DATA_AFTER_END, OVER_LONG, TRUNCATED_FILE, Piece, damage_of

CHUNK_BYTES = 2**18
NOT_AN_ARRAY = "not_an_array"
_BLANKS = re.compile(rb"[ \t\r\n]*")
_OUTSIDE_STRING = re.compile(rb'["\[\]{},]')
_INSIDE_STRING = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*', re.DOTALL)


class _Window:
    """The bytes of a stream from the current element on; `end` is where the scanner stands in them."""

    def __init__(self, stream: io.BufferedReader, byte_offset: int) -> None:
        self._stream = stream
        self.held = bytearray()
        self.end = 0
        self.byte_offset = byte_offset  # of held[0]
        self.line_number = 1

    def fill(self) -> bool:
        """Hold one chunk more; False at the end of the stream."""
        chunk = self._stream.read1(CHUNK_BYTES)
        self.held += chunk
        return bool(chunk)

    def drop(self, size: int) -> None:
        """Let go of the first bytes."""
        self.line_number += self.held.count(b"\n", 0, size)
        self.byte_offset += size
        self.end -= size
        del self.held[:size]

    def drop_blanks(self) -> None:
        """Let go of the blanks at the beginning, filling up from the stream as long as there is nothing else."""
        while True:
            self.drop(_BLANKS.match(self.held).end())  # type: ignore[union-attr]  # matches b""
            if self.held or not self.fill():
                break
        self.end = 0


def split_array(stream: io.BufferedReader, byte_offset: int, limit: int) -> Iterator[Piece]:
    """The elements of the array in a stream that stands at `byte_offset`, then what is wrong with its end, if anything.

    Blank ones, of an empty array or behind a comma too many, are pieces too. An element of more than `limit` bytes
    becomes OVER_LONG. A stream that holds no array is NOT_AN_ARRAY as a whole.
    """
    window = _Window(stream, byte_offset)
    window.drop_blanks()
    if not window.held.startswith(b"["):
        yield window.line_number, window.byte_offset, damage_of(stream) or NOT_AN_ARRAY
        return
    window.drop(1)
    window.drop_blanks()
    closed_by = b","
    while closed_by == b",":
        place = (window.line_number, window.byte_offset)
        closed_by, is_long = _scan_element(window, limit)
        if not closed_by:
            yield *place, damage_of(stream) or TRUNCATED_FILE
            return
        yield *place, OVER_LONG if is_long else bytes(window.held[: window.end - 1])
        window.drop(window.end)
        window.drop_blanks()
    fault = DATA_AFTER_END if window.held else damage_of(stream)
    if fault is not None:
        yield window.line_number, window.byte_offset, fault


def _scan_element(window: _Window, limit: int) -> tuple[bytes, bool]:
    """Scan on to behind the comma or bracket that closes the element: this byte, b"" at the end of the stream.

    Also whether the element is longer than `limit`; then only its last bytes are held.
    """
    depth, in_string, is_long = 0, False, False
    while True:
        if in_string:
            window.end = _INSIDE_STRING.match(window.held, window.end).end()  # type: ignore[union-attr]  # matches b""
            in_string = window.held[window.end : window.end + 1] != b'"'
            is_at_end = in_string  # or before a backslash that is the last byte
            window.end += not in_string
        else:
            found = _OUTSIDE_STRING.search(window.held, window.end)
            is_at_end = found is None
            window.end = len(window.held) if found is None else found.end()
            byte = b"" if found is None else found.group()
            if byte == b'"':
                in_string = True
            elif byte in (b"[", b"{"):
                depth += 1
            elif byte in (b"]", b"}", b",") and depth == 0:
                return byte, is_long or window.end - 1 > limit
            elif byte in (b"]", b"}"):
                depth -= 1
        if is_at_end:
            if window.end > limit:
                is_long = True
                window.drop(window.end)
            if not window.fill():
                return b"", is_long
