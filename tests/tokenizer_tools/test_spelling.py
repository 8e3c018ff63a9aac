"""How vocabularies write text, against the tokenizers themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer
from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

from tokenizer_tools.spelling import spell_bytes, speller_of
from tokenizer_tools.tokenizer import load_tokenizer

LETTERS = bytes_to_unicode()


@given(st.text(st.characters(blacklist_categories=["Cs"]), max_size=12))
def test_a_letter_a_byte_as_gpt2_has_it(text: str) -> None:
    assert spell_bytes(text) == "".join(LETTERS[byte] for byte in text.replace("▁", " ").encode())


@pytest.mark.parametrize("directory", ["base_tokenizer_dir", "tiny_tokenizer_dir", "byte_level_tokenizer_dir"])
def test_words_are_found_under_their_spelling(directory: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(directory)
    tokenizer = AutoTokenizer.from_pretrained(path)
    spell = speller_of(load_tokenizer(path))
    for piece in ("▁the", "▁of", "a"):
        assert spell(piece) in tokenizer.get_vocab()
        assert spell(piece) == spell(piece.replace("▁", " "))
    assert tokenizer.tokenize("is the")[-1] == spell("▁the")
