"""The vocabulary of a tokenizer directory, of whichever kind: what expansion asks of it, and what it cannot take."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from tokenizer_tools.byte_level_bpe import ByteLevelBpe
from tokenizer_tools.command import UserError
from tokenizer_tools.pieces import LeftOut, PieceFile
from tokenizer_tools.sentencepiece_bpe import MODEL_FILE, SETTINGS, SentencePieceBpe, load_model
from tokenizer_tools.spelling import is_byte_level
from tokenizer_tools.tokenizer import TOKENIZER_FILES, load_tokenizer

SPECIAL = "contains a special token"


class Vocabulary(Protocol):
    """Old pieces with their ids, and what text would become with `new` ones behind them.

    A piece is text with `▁` for a blank; `spell(piece)` is the string that the vocabulary keeps for it, and all lists
    called `new` hold such strings.
    """

    directory: Path
    ids: dict[str, int]  # of every string, control and added tokens included: 0, 1, 2, ...
    special: set[str]  # control and added tokens: cut out of a text before any merge
    layout: dict[str, Any]  # tokenizer.json
    spell: Callable[[str], str]
    text_of: Callable[[str], str | None]  # of a string; None where it is only a part of a character

    def fault_of(self, piece: str) -> tuple[str, str] | None:
        """Why the text of `piece` does not reach the merges as it is: (reason, what becomes of it), or None."""

    def needed_parts(self, string: str) -> list[str]:
        """The strings that have to be pieces, too, if `string` is one: its characters, for a start."""

    def segment(self, new: Sequence[str], strings: Sequence[str]) -> list[list[str]]:
        """The strings that each of `strings` is merged to, as inside a text."""

    def encode(self, new: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
        """The ids of whole texts, without BOS and EOS."""

    def write(self, target: Path, new: Sequence[str], reserved: Sequence[str]) -> None:
        """Write the tokenizer's files with `new` and then `reserved` (never made) behind the old pieces."""


def open_vocabulary(directory: Path) -> Vocabulary:
    """The vocabulary of a tokenizer directory. Raises UserError if it can be read but not expanded."""
    is_tokenizer = any((directory / name).is_file() for name in TOKENIZER_FILES)
    if is_tokenizer and not (directory / SETTINGS).is_file():
        raise UserError(f"{directory}: holds no {SETTINGS}; save the tokenizer anew with save_pretrained")
    if (directory / MODEL_FILE).is_file() and not (directory / "tokenizer.json").is_file():
        load_model(directory / MODEL_FILE)  # says what is wrong with it better than what is made of it would
    layout = json.loads(load_tokenizer(directory).backend_tokenizer.to_str())
    if not is_byte_level(layout) and not (directory / MODEL_FILE).is_file():
        raise UserError(
            f"{directory}: is neither a sentencepiece BPE (it has no {MODEL_FILE}) nor a byte-level BPE "
            f"(its tokenizer.json holds a {layout['model']['type']}); name a LLaMA-family tokenizer"
        )
    vocabulary: Vocabulary = ByteLevelBpe(directory) if is_byte_level(layout) else SentencePieceBpe(directory)
    ids = sorted(vocabulary.ids.values())
    if ids != list(range(len(ids))):
        hole = next(place for place, token_id in enumerate(ids) if place != token_id)
        raise UserError(f"{directory}: no token has id {hole}, though others have higher ones; fill it with a token")
    return vocabulary


def sift(found: PieceFile, vocabulary: Vocabulary) -> PieceFile:
    """Take out the pieces that the vocabulary already has (skipped) or can never produce (refused)."""
    special = re.compile("|".join(map(re.escape, sorted(vocabulary.special))) or r"(?!)")
    sifted = replace(found, pieces={}, skipped=list(found.skipped), refused=list(found.refused))
    for piece, line in found.pieces.items():
        inside = special.search(piece)
        if inside is not None:
            detail = f"{piece!r} contains {inside.group()!r}"
            sifted.refused.append(LeftOut(line, SPECIAL, detail))
        elif vocabulary.spell(piece) in vocabulary.ids:
            sifted.skipped.append(LeftOut(line, "already in the vocabulary", repr(piece)))
        elif (fault := vocabulary.fault_of(piece)) is not None:
            reason, became = fault
            verb = "contains" if reason == SPECIAL else "becomes"
            if vocabulary.spell(became) in vocabulary.ids or became in found.pieces:
                reason = "duplicate after normalisation"
            sifted.refused.append(LeftOut(line, reason, f"{piece!r} {verb} {became!r}"))
        else:
            sifted.pieces[piece] = line
    return sifted
