"""Units and n-grams the slow way, character by character: the reference for `data_tools/ngrams.py`."""

from __future__ import annotations

import unicodedata
from typing import TypeVar

T = TypeVar("T")

WITHOUT_BLANKS = ("CJK ", "HIRAGANA", "KATAKANA", "HALFWIDTH KATAKANA", "THAI", "IDEOGRAPHIC")
# What the rules treat differently: case, width, accents in one piece and in two, ligatures, digits, several scripts
# with and without blanks, marks, a selector of variants, punctuation, symbols and blanks.
LETTERS = "abAB1Ａａ１àÀßẞﬁкКé\u0301\u0308ñ٣中文国國々〇あアーｱไ\u0e35\U00020000\U000e0100\u3000。，.-_'\n \t🙂€"


def naive_units(text: str) -> list[str]:
    """The units of a text as they are compared."""
    units: list[str] = []
    is_open = False  # whether the next letter continues a word
    for character in unicodedata.normalize("NFC", text):
        if ord(character) > 0x3FFFF or unicodedata.category(character)[0] not in "LNM":
            is_open = False
            continue
        is_alone = unicodedata.name(character).startswith(WITHOUT_BLANKS)
        folded = unicodedata.normalize("NFKC", character).casefold()
        letter = folded if len(folded) == 1 else character
        if is_open and not is_alone:
            units[-1] += letter
        else:
            units.append(letter)
        is_open = not is_alone
    return units


def naive_ngrams(text: str, num_units: int) -> set[tuple[str, ...]]:
    """Every run of `num_units` units."""
    units = naive_units(text)
    return {tuple(units[start : start + num_units]) for start in range(len(units) - num_units + 1)}


def naive_shingles(text: str, num_units: int) -> set[tuple[str | None, ...]]:
    """Runs that start at every unit; the last ones are filled with None."""
    units = [*naive_units(text), *[None] * (num_units - 1)]
    return {tuple(units[start : start + num_units]) for start in range(len(units) - num_units + 1)}


def jaccard(text: str, other: str, num_units: int) -> float:
    """The exact similarity of two texts that have units."""
    return jaccard_of_sets(naive_shingles(text, num_units), naive_shingles(other, num_units))


def jaccard_of_sets(first: set[T], second: set[T]) -> float:
    """Common elements, as a share of all."""
    return len(first & second) / len(first | second)
