"""The file of new pieces: `{"piece": "你好"}` lines come in, ordered unique strings go out.

Every line is accounted for: a piece, skipped (harmless) or refused (at fault), with its line number and the reason.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tokenizer_tools.command import UserError
from tokenizer_tools.spelling import BLANK

MAX_PIECE_CHARACTERS = 64  # a longer "word" is a line of text that lost its line break
BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")  # names of the byte-fallback pieces: never text


@dataclass(frozen=True)
class LeftOut:
    """One line that gave no new piece. `reason` is one of a few fixed phrases; `detail` shows what stood there."""

    line: int
    reason: str
    detail: str


@dataclass
class PieceFile:
    """What a pieces file held. `pieces` maps each usable piece to its line, in the order of the file.

    `num_bytes` and `sha256` are those of the whole file, as it was read.
    """

    path: Path
    num_read: int = 0
    pieces: dict[str, int] = field(default_factory=dict)
    skipped: list[LeftOut] = field(default_factory=list)
    refused: list[LeftOut] = field(default_factory=list)
    num_bytes: int = 0
    sha256: str = ""

    def describe(self, left_out: LeftOut) -> str:
        """`file:line: reason: detail`, as editors and terminals know to follow."""
        return f"{self.path}:{left_out.line}: {left_out.reason}: {left_out.detail}"


def read_pieces(path: Path) -> PieceFile:
    """Read a jsonl file of pieces (UTF-8, a BOM is tolerated). Raises UserError if the file cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}; name a file of {{"piece": "..."}} lines') from None
    found = PieceFile(path, num_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, raw in enumerate(lines, start=1):
        if number == len(lines) and not raw:  # what stands behind the last line break is no line
            continue
        found.num_read += 1
        _sort_line(found, number, raw)
    return found


def _sort_line(found: PieceFile, number: int, raw: bytes) -> None:
    """Put one line where it belongs: into `pieces`, `skipped` or `refused`."""
    if not raw.strip():
        found.skipped.append(LeftOut(number, "blank line", "nothing to add"))
        return
    piece, reason = parse_line(raw)
    if reason is not None:
        found.refused.append(LeftOut(number, reason, _shown(raw)))
    elif piece in found.pieces:
        found.skipped.append(LeftOut(number, "duplicate", f"{piece!r} stands on line {found.pieces[piece]}"))
    else:
        found.pieces[piece] = number


def parse_line(raw: bytes) -> tuple[str, str | None]:
    """One line of the file -> (piece, None) or ("", the reason why it cannot be one)."""
    try:
        record = json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError:
        return "", "not UTF-8"
    except (ValueError, RecursionError):  # no JSON, a number of thousands of digits, thousands of brackets
        return "", "not JSON"
    if not isinstance(record, dict):
        return "", "not an object"
    if not isinstance(record.get("piece"), str):
        return "", 'no string "piece"'
    piece = record["piece"].replace(" ", BLANK)  # a blank may be written either way
    reason = fault_of(piece)
    return (piece, None) if reason is None else ("", reason)


def fault_of(piece: str) -> str | None:
    """Why `piece` can be a piece of no sentencepiece vocabulary, or None if it can."""
    if not piece:
        return "empty"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in piece):
        return "control character"
    if not piece.replace(BLANK, " ").strip():
        return "only blanks"
    if len(piece) > MAX_PIECE_CHARACTERS:
        return f"longer than {MAX_PIECE_CHARACTERS} characters"
    if BYTE_PIECE.search(piece):
        return "contains the name of a byte piece"
    return None


def count_reasons(left_out: list[LeftOut]) -> dict[str, int]:
    """{reason: number of lines}, most frequent first."""
    return dict(Counter(entry.reason for entry in left_out).most_common())


def _shown(raw: bytes) -> str:
    """A line as it may stand in a report: what cannot be printed is escaped, at most 60 characters."""
    text = repr(raw.decode("utf-8", "replace"))
    return text if len(text) <= 60 else text[:57] + "..."
