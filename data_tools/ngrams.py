"""n-grams of texts as numbers: texts come in, 64-bit hashes of every run of n units go out.

A unit is a word (a run of letters, digits and marks) or one character of a script that is written without blanks, so
that one n serves Chinese and English. Case, width (Ａ), punctuation and blanks do not count. Everything is array work
on whole batches, 10 to 25 nanoseconds a character. Two different n-grams get one hash about once in 2**64 pairs, which
is ignored, though text written to that end could do it. The numbers are the same in every process and on every machine.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data_tools.characters import TABLE_SIZE, codes_of, look_up, table_of

WORD_CHARACTERS = r"[\p{L}\p{N}\p{M}]"
WITHOUT_BLANKS = r"[\p{scx=Han}\p{scx=Hira}\p{scx=Kana}\p{scx=Thai}\p{scx=Lao}\p{scx=Khmer}\p{scx=Myanmar}]"
SEPARATOR, OF_A_WORD, ALONE = 0, 1, 2
PAD = chr(TABLE_SIZE - 2)  # no character; stands between texts as a unit of its own

UNITS_AT_A_TIME = 2**12  # what is computed for them stays in the processor's cache
USUAL_CHARACTERS = 2**16  # of so many units, blanks and all; more are computed afresh
MULTIPLIER = 0x9E3779B97F4A7C15  # odd; 2**64 over the golden ratio


class Units(NamedTuple):
    """The units of several texts in one array, padded so that no run of `num_padding + 1` units spans two texts.

    `hashes` uint64 [units and pads]; the units of text t are `hashes[start[t] : stop[t]]`, int64 [texts] each.
    """

    hashes: np.ndarray
    start: np.ndarray
    stop: np.ndarray


def units_of(texts: Sequence[str], num_padding: int) -> Units:
    """The units of texts (no lone surrogates), with `num_padding` pads behind each text."""
    composed = [unicodedata.normalize("NFC", text) for text in texts]
    padding = "\n" + PAD * num_padding
    codes = codes_of(padding.join([*composed, ""]))
    kinds = look_up(_kinds(), codes)
    is_start = kinds != SEPARATOR
    is_start[1:] &= (kinds[1:] == ALONE) | (kinds[:-1] != OF_A_WORD)
    starts = np.flatnonzero(is_start)
    text_stops = np.cumsum([len(text) + len(padding) for text in composed], dtype=np.int64) - num_padding
    stop = np.searchsorted(starts, text_stops)
    start = np.concatenate(([0], stop[:-1] + num_padding))[: len(texts)]
    return Units(_hash_units(codes, starts), start, stop)


def ngrams_of(units: Units, num_units: int) -> Iterator[tuple[int, np.ndarray]]:
    """For n = 1 to `num_units`: n, and uint64 [units and pads - n + 1], entry i over the units i to i + n - 1."""
    hashes = units.hashes
    sums = np.zeros(len(hashes) + 1, dtype=np.uint64)
    for n, power in enumerate(_powers(num_units)[0], start=1):
        sums = sums[:-1] + hashes[n - 1 :] * power
        yield n, sums


def mixed(values: np.ndarray) -> np.ndarray:
    """uint64 -> uint64, one to one: every bit depends on every bit (the end of splitmix64, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _hash_units(codes: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """A polynomial over the characters of each unit, mixed. Separators, worth 0, may trail behind a unit."""
    hashes = np.empty(len(starts), dtype=np.uint64)
    borders = np.append(starts, len(codes))
    for first in range(0, len(starts), UNITS_AT_A_TIME):
        block = borders[first : first + UNITS_AT_A_TIME + 1]
        values = look_up(_values(), codes[block[0] : block[-1]])
        powers, inverses = _powers(len(values))
        sums = np.cumsum(np.append(np.uint64(0), values * powers))  # modulo 2**64, as everything here
        block = block - block[0]
        hashes[first : first + len(block) - 1] = np.diff(sums[block]) * inverses[block[:-1]]
    return mixed(hashes)


def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """uint64 [size] each: the powers of MULTIPLIER from 0 up, and those of its inverse."""
    powers, inverses = _usual_powers() if size <= USUAL_CHARACTERS else _count_powers(size)
    return powers[:size], inverses[:size]


@functools.cache
def _usual_powers() -> tuple[np.ndarray, np.ndarray]:
    return _count_powers(USUAL_CHARACTERS)


def _count_powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    factors = np.full((2, size), [[MULTIPLIER], [pow(MULTIPLIER, -1, 2**64)]], dtype=np.uint64)
    factors[:, 0] = 1
    powers, inverses = np.cumprod(factors, axis=1)
    return powers, inverses


@functools.cache
def _kinds() -> np.ndarray:
    """[TABLE_SIZE] uint8: SEPARATOR, OF_A_WORD or ALONE."""
    in_words = table_of(WORD_CHARACTERS)
    kinds = in_words.astype(np.uint8) * OF_A_WORD
    kinds[in_words & table_of(WITHOUT_BLANKS)] = ALONE
    kinds[ord(PAD)] = ALONE
    return kinds


@functools.cache
def _values() -> np.ndarray:
    """[TABLE_SIZE] uint64: 0 for separators, else a number that case and width do not change."""
    codes = np.flatnonzero(_kinds())
    values = np.zeros(TABLE_SIZE, dtype=np.uint64)
    values[codes] = mixed(np.array([_folded(code) for code in codes.tolist()], dtype=np.uint64))
    return values


def _folded(code: int) -> int:
    """The character without case and width where that is one character (ß and ﬁ stay)."""
    folded = unicodedata.normalize("NFKC", chr(code)).casefold()
    return ord(folded) if len(folded) == 1 else code
