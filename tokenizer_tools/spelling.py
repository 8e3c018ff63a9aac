"""How a vocabulary writes text: a piece's text comes in, the string under which the vocabulary keeps it goes out.

A pieces file writes text as sentencepiece does, with `▁` for a blank. A sentencepiece vocabulary keeps just that; a
byte-level BPE (Llama-3, Qwen, SmolLM) keeps one printable letter a UTF-8 byte: `▁你` is `Ġä½ł`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

BLANK = "▁"  # what sentencepiece writes for a blank


def is_byte_level(layout: dict[str, Any]) -> bool:
    """Whether a tokenizer.json is a byte-level BPE."""
    decoder = layout.get("decoder") or {}
    return any(part["type"] == "ByteLevel" for part in decoder.get("decoders", [decoder]) if part)


def speller_of(tokenizer: PreTrainedTokenizerFast) -> Callable[[str], str]:
    """piece (with `▁` for a blank) -> the string under which the vocabulary of `tokenizer` would keep it."""
    return spell_bytes if is_byte_level(json.loads(tokenizer.backend_tokenizer.to_str())) else spell_characters


def spell_characters(piece: str) -> str:
    """`▁你好` -> `▁你好`"""
    return piece.replace(" ", BLANK)


def spell_bytes(piece: str) -> str:
    """`▁你` -> `Ġä½ł`: a letter a byte, as GPT-2 has it."""
    from tokenizers.pre_tokenizers import ByteLevel

    spelled = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(piece.replace(BLANK, " "))
    return "".join(part for part, _ in spelled)


def text_of_characters(string: str) -> str | None:
    """`▁你好` -> ` 你好`: the text that a sentencepiece vocabulary keeps as `string`."""
    return string.replace(BLANK, " ")


def text_of_bytes(string: str) -> str | None:
    """`Ġä½ł` -> ` 你`: the text that a byte-level vocabulary keeps as `string`; None for a part of a character."""
    from tokenizers.decoders import ByteLevel

    text = ByteLevel().decode([string])
    return text if spell_bytes(text) == string else None
