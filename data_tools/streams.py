"""Bytes of a file, decompressed and cut into lines: a path comes in, lines and the reason of a damage go out.

However long a file or a line is, memory is bounded by the limit that the caller sets.
"""

from __future__ import annotations

import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from backports import zstd

BUFFER_BYTES = 2**20
ANY_WINDOW = {int(zstd.DecompressionParameter.window_log_max): 31}  # files made with --long=31 take 2 GiB to read
UTF8_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
OVER_LONG = "over_long"
TRUNCATED_FILE = "truncated_file"
DAMAGED_FILE = "damaged_file"
DATA_AFTER_END = "data_after_end"
UTF16_FILE = "utf16_file"
CUTS = (TRUNCATED_FILE, DAMAGED_FILE)  # behind these, what has no end of its own is not whole


# A line, or an element of an array: its line counted from 1, where it begins, and its bytes; in their place a str, the
# reason why there are none. A plain tuple: there is one for every document.
Piece = tuple[int, int, bytes | str]


class _Inflated(io.RawIOBase):
    """A compressed file as a stream that simply ends where the damage is; `damage` then tells the reason."""

    def __init__(self, path: str, compression: str) -> None:
        self._file = gzip.GzipFile(path) if compression == "gz" else zstd.ZstdFile(path, options=ANY_WINDOW)
        self._compression = compression
        self._has_begun = False
        self.damage: str | None = None if Path(path).stat().st_size else TRUNCATED_FILE

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # what BufferedReader hands over
        if self.damage is not None:
            return 0
        try:
            data = self._file.read1(len(buffer))
        except EOFError:
            self.damage = TRUNCATED_FILE
            return 0
        except (gzip.BadGzipFile, zlib.error, zstd.ZstdError) as error:
            self.damage = self._damage_told_by(error)
            return 0
        self._has_begun = True
        buffer[: len(data)] = data
        return len(data)

    def _damage_told_by(self, error: Exception) -> str:
        """Both libraries end with one class of error; only their words tell a missing header from broken data."""
        lacks_header = any(words in str(error) for words in ("Not a gzipped file", "Unknown frame descriptor"))
        if not lacks_header:
            return DAMAGED_FILE
        return DATA_AFTER_END if self._has_begun else f"not_a_{self._compression}_file"

    def close(self) -> None:
        self._file.close()
        super().close()


def open_stream(path: str, compression: str) -> io.BufferedReader:
    """The file's bytes; `compression` is gz, zst or "". Raises OSError for what the machine does, never for damage."""
    if compression:
        return io.BufferedReader(_Inflated(path, compression), BUFFER_BYTES)
    return io.BufferedReader(io.FileIO(path), BUFFER_BYTES)


def damage_of(stream: io.BufferedReader) -> str | None:
    """After its end: the reason why a stream of `open_stream` ended early, None if it did not."""
    return stream.raw.damage if isinstance(stream.raw, _Inflated) else None


def is_utf16(stream: io.BufferedReader) -> bool:
    """Whether a stream at its beginning holds UTF-16 or UTF-32: by its mark, or by a NUL in every other byte."""
    head = stream.peek(4)[:4]
    zeros = [byte == 0 for byte in head]
    return head.startswith(UTF16_MARKS) or (len(head) == 4 and zeros[0] != zeros[1] and zeros[2] != zeros[3])


def skip_utf8_mark(stream: io.BufferedReader) -> int:
    """Pass over a byte order mark at the beginning; the number of bytes it had."""
    return len(stream.read(len(UTF8_MARK))) if stream.peek(4).startswith(UTF8_MARK) else 0


def skip_to_line(stream: io.BufferedReader, start: int, stop: int) -> int:
    """Put a stream at the first line that begins from `start` (over 0) on; its offset, `stop` if that comes first."""
    stream.seek(start - 1)
    offset = start - 1
    while offset < stop:
        data = stream.readline(min(BUFFER_BYTES, stop - offset))
        offset += len(data)
        if not data or data.endswith(b"\n"):
            return offset
    return stop


def split_lines(stream: io.BufferedReader, start: int, limit: int, stop: int = sys.maxsize) -> Iterator[Piece]:
    """The lines that begin before `stop`, with their ends, of a stream that stands at byte `start`.

    A line of more than `limit` bytes becomes OVER_LONG. Of a damaged stream the cut line is left out, and the last
    piece is the damage.
    """
    offset, number = start, 0
    while offset < stop:
        number += 1
        data = stream.readline(limit + 1)
        if not data:
            break
        if len(data) > limit and not data.endswith(b"\n"):
            length = len(data) + _skip_rest_of_line(stream, stop - offset)
            yield number, offset, OVER_LONG
            offset += length
        elif data.endswith(b"\n") or damage_of(stream) not in CUTS:
            yield number, offset, data
            offset += len(data)
        else:
            break
    damage = damage_of(stream)
    if damage is not None:
        yield number, offset, damage


def _skip_rest_of_line(stream: io.BufferedReader, enough: int) -> int:
    """Read to the end of the line, or until `enough` bytes are behind; how many were read."""
    length = 0
    while length < enough:
        data = stream.readline(BUFFER_BYTES)
        length += len(data)
        if not data or data.endswith(b"\n"):
            break
    return length
