"""The language of a text by its letters: a text comes in, the name of its dominant script's language goes out.

A script tells Chinese from English, not English from French: what is written in Latin letters is `latin`. Simple, the
same everywhere, and without a model to load.
"""

from __future__ import annotations

from collections import Counter
from functools import cache

import regex

# name in the tables: the scripts that are counted for it
SCRIPTS = {
    "zh": r"\p{Han}",
    "ja": r"\p{Hiragana}\p{Katakana}",
    "ko": r"\p{Hangul}",
    "latin": r"\p{Latin}",
    "cyrillic": r"\p{Cyrillic}",
    "greek": r"\p{Greek}",
    "arabic": r"\p{Arabic}",
    "hebrew": r"\p{Hebrew}",
    "devanagari": r"\p{Devanagari}",
    "thai": r"\p{Thai}",
}
OTHER = "other"  # another script
NO_LETTERS = "none"
KANA_SHARE = 0.1  # of Han and kana together: less is Chinese that quotes Japanese
# A Han character stands for a morpheme of some three Latin letters: Chinese full of Latin names is Chinese still.
HAN_WEIGHT = 3


def language_of(text: str) -> str:
    """A key of SCRIPTS by the script with the most letters, `other` or `none`. Han with kana is `ja`."""
    letters: Counter[str] = Counter()
    for character, count in Counter(text).items():
        if language := _language_of_character(character):
            letters[language] += count
    if not letters:
        return NO_LETTERS
    han, kana = letters["zh"], letters["ja"]
    if kana >= KANA_SHARE * (han + kana) and kana:
        letters["ja"], letters["zh"] = han + kana, 0
    for language in ("zh", "ja"):
        letters[language] *= HAN_WEIGHT
    return max(letters, key=lambda language: (letters[language], language))


@cache
def _language_of_character(character: str) -> str | None:
    for language, script in SCRIPTS.items():
        if regex.match(f"[{script}]", character):
            return language
    return OTHER if character.isalpha() else None
