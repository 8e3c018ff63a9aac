"""What kind of character stands where: texts and patterns come in, arrays over their code points go out."""

from __future__ import annotations

import functools

import numpy as np
import regex

# No letter, digit or mark is assigned above U+323AF, save selectors of glyph variants, which do not change the reading.
# What lies above counts as the last entry of a table.
TABLE_SIZE = 0x40000


def codes_of(text: str) -> np.ndarray:
    """[characters] uint32: the code points of a text without lone surrogates."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def look_up(table: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """[characters]: the entry of a table of `TABLE_SIZE` entries for each code point."""
    return table.take(codes, mode="clip")


def table_of(pattern: str) -> np.ndarray:
    """[TABLE_SIZE] bool: which characters a pattern of the library `regex` matches. Raises regex.error."""
    matches = np.zeros(TABLE_SIZE, dtype=bool)
    matches[[match.start() for match in regex.finditer(pattern, _all_characters())]] = True
    return matches


@functools.cache
def _all_characters() -> str:
    return "".join(map(chr, range(TABLE_SIZE)))
