"""Where new pieces may lie: texts come in, their units go out. No piece reaches beyond its unit."""

from __future__ import annotations

import regex

from tokenizer_tools.spelling import BLANK

# 4000 characters are far beyond any word and bound what the trainer holds at once; longer units are cut, not lost.
HAN_RUN = "[\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]{1,4000}"
_CJK = r"\p{Han}\p{Hiragana}\p{Katakana}ー"  # written without blanks, and often right beside Latin words
_LETTERS = r"\p{L}\p{M}\u200c\u200d"  # marks and joiners stand inside the words of Indic and other scripts
WORD = rf" ?(?:[{_CJK}]{{1,4000}}|(?:(?![{_CJK}])[{_LETTERS}]){{1,4000}})"
LINE = rf"[^\p{{Cc}}\p{{Cs}}\u2028\u2029{BLANK}]{{1,4000}}"  # a `▁` could not be told from a blank in a piece

UNITS = {
    "han": regex.compile(HAN_RUN),  # CJK ideographs with all extensions, the compatibility block, 々 and 〇
    "words": regex.compile(WORD),  # with the blank before it
    "text": regex.compile(LINE),
}


def find_units(text: str, unit: str) -> list[str]:
    """The units of the kind `unit` (a key of UNITS) in `text`, in order."""
    return UNITS[unit].findall(text)
