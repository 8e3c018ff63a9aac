"""Ids -> the text they stand for, to the byte: a tokenizer comes in, `TokenText` goes out.

`tokenizer.decode` looks at the whole: it takes away a first blank and puts question marks for the bytes of half a
character. Here each id has bytes of its own, so that the texts of parts add up to the text of the whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from tokenizer_tools.spelling import BLANK, is_byte_level

if TYPE_CHECKING:
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")  # what sentencepiece calls a byte of a character that has no piece


class TokenText:
    """What ids stand for. `control_ids`: tokens that are no text, such as `<s>`; they are shown as they are spelt."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        layout = json.loads(tokenizer.backend_tokenizer.to_str())
        bytes_of = bytes_of_letters if is_byte_level(layout) else bytes_of_piece
        added = tokenizer.added_tokens_decoder
        self._bytes = {i: bytes_of(piece) for piece, i in tokenizer.get_vocab().items()}
        self._bytes |= {i: token.content.encode() for i, token in added.items()}
        self.control_ids = {i for i, token in added.items() if token.special}

    def text(self, ids: Sequence[int]) -> str:
        """The text of the ids; bytes that are no UTF-8, such as half a character, are spelt (`\\xe4`).

        Raises KeyError with an id that the tokenizer does not have.
        """
        return b"".join(self._bytes[i] for i in ids).decode("utf-8", "backslashreplace")


def bytes_of_piece(piece: str) -> bytes:
    """A piece of sentencepiece: `▁a` -> b" a", `<0xE4>` -> b"\\xe4"."""
    byte = BYTE_PIECE.fullmatch(piece)
    return bytes.fromhex(byte[1]) if byte else piece.replace(BLANK, " ").encode()


def bytes_of_letters(piece: str) -> bytes:
    """A piece of a byte-level vocabulary, a letter a byte: `Ġa` -> b" a". One with other letters is taken as it is."""
    byte_of = _byte_of_letter()
    return bytes(byte_of[letter] for letter in piece) if byte_of.keys() >= set(piece) else piece.encode()


@cache
def _byte_of_letter() -> dict[str, int]:
    from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}
