"""Proposals come in with what they save; the list of new pieces goes out, best first, every head of it closed.

Closed: each piece is made by BPE from old tokens and pieces that stand before it, so that init_tokenizer has to add no
intermediates, wherever the list is cut.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import regex

from tokenizer_tools.mine import segment
from tokenizer_tools.spelling import BLANK

# the half-width and full-width forms, and the wide blank
WIDTH_FORMS = regex.compile("[\u3000\uff01-\uffef]+")
# in these a blank before a word is chance
WITHOUT_BLANKS = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]")


@dataclass
class Choice:
    """`pieces`: text -> symbols, best first. `twins`: text that was left out -> the piece that stands for it."""

    pieces: dict[str, str] = field(default_factory=dict)
    twins: dict[str, str] = field(default_factory=dict)


def choose(
    savings: Mapping[str, int],
    text_of: Callable[[str], str],
    is_new: Callable[[str], bool],
    is_refused: Callable[[str], bool],
    num_pieces: int,
) -> Choice:
    """The `num_pieces` best of `savings` (symbols -> tokens saved), each behind the steps that it needs.

    `is_new`: whether a single symbol is no old piece. `is_refused`: whether a text can be no new piece. What is left
    out, as refused or as the twin of a better piece, takes with it what cannot be made without it.
    """
    choice = Choice()
    ranks: dict[str, int] = {}
    kept_by_key: dict[str, str] = {}
    ordered = sorted(savings, key=lambda symbols: (-savings[symbols], len(symbols), text_of(symbols), symbols))
    for proposal in ordered:
        steps = {text_of(step): step for step in missing_steps(proposal, ranks, is_new)}
        twins = {text: kept_by_key[twin_key(text)] for text in steps if twin_key(text) in kept_by_key}
        twins = {text: twin for text, twin in twins.items() if not needs(steps[text], text, choice.pieces[twin], twin)}
        choice.twins |= {text: twin for text, twin in twins.items() if text != twin}
        if twins or any(map(is_refused, steps)):
            continue
        for text, step in steps.items():
            if len(choice.pieces) == num_pieces:
                return choice
            ranks[step] = len(ranks)
            choice.pieces[text] = step
            kept_by_key.setdefault(twin_key(text), text)
    return choice


def needs(symbols: str, text: str, twin_symbols: str, twin: str) -> bool:
    """Whether `text` is `twin` with its blank, made of it, in a script that parts words by blanks.

    There the word with its blank is by far the more frequent, and cannot be had without its step.
    """
    return text == BLANK + twin and symbols[1:] == twin_symbols and not WITHOUT_BLANKS.search(twin)


def missing_steps(symbols: str, ranks: Mapping[str, int], is_new: Callable[[str], bool]) -> list[str]:
    """What has to be appended to the merges `ranks`, in order, so that they make `symbols`: itself last, or nothing."""
    steps = [symbol for symbol in dict.fromkeys(symbols) if is_new(symbol) and symbol not in ranks]
    known = dict(ranks_of(symbols, ranks))
    while len(parts := segment(symbols, known)) > 1:
        step = parts[0] + parts[1]
        known[step] = len(ranks) + len(steps)
        steps.append(step)
    return steps


def ranks_of(symbols: str, ranks: Mapping[str, int]) -> dict[str, int]:
    """Those of `ranks` that lie in `symbols`."""
    parts = {symbols[i:j] for i in range(len(symbols)) for j in range(i + 1, len(symbols) + 1)}
    return {part: ranks[part] for part in parts if part in ranks}


def twin_key(piece: str) -> str:
    """Equal for pieces that differ only by `▁` or by the width of their characters (`ＡＢＣ` and `ABC`)."""
    return WIDTH_FORMS.sub(lambda match: unicodedata.normalize("NFKC", match[0]), piece).replace(BLANK, "")
