"""Encoding: the ids of plain tokenizer calls, and loss from exactly the target's first token on."""

from __future__ import annotations

from collections.abc import Sequence as ListLike
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.encode import encode_records, labels_of
from data_tools.records import Record
from tokenizer_tools.tokenizer import TextEncoder, load_tokenizer


def record(target: str, source: str = "") -> Record:
    return Record(source, target, "c", "f", 1, 0)


class LetterEncoder:
    """One id a letter, none for a blank; a continuation's ids are 1000 higher."""

    prefix_ids = [1]
    eos_ids = [2]

    def encode_batch(self, texts: ListLike[str], continuation: bool = False) -> list[list[int]]:
        return [[ord(letter) + 1000 * continuation for letter in text if letter != " "] for text in texts]


LETTERS = cast(TextEncoder, LetterEncoder())
texts = st.text("ab ", max_size=6)


@given(st.lists(st.tuples(texts, texts)))
def test_a_sequence_is_bos_source_target_eos_with_loss_from_the_target_on(pairs: list[tuple[str, str]]) -> None:
    sequences = encode_records(LETTERS, [record(target, source) for source, target in pairs])
    for (source, target), sequence in zip(pairs, sequences, strict=True):
        source_ids = [ord(letter) for letter in source.replace(" ", "")]
        target_ids = [ord(letter) + 1000 * bool(source) for letter in target.replace(" ", "")]
        if not target_ids:
            assert sequence is None
            continue
        assert sequence is not None
        assert sequence.input_ids == [1, *source_ids, *target_ids, 2]
        assert sequence.loss_start == (1 + len(source_ids) if source else 0)


def test_encoding_leaves_the_encoder_as_it_was() -> None:
    encode_records(LETTERS, [record("b", "a"), record("b")])
    assert (LETTERS.prefix_ids, LETTERS.eos_ids) == ([1], [2])


@pytest.fixture(scope="module")
def tokenizer(base_tokenizer_dir: Path) -> Any:
    return load_tokenizer(base_tokenizer_dir)


@pytest.mark.parametrize("text", ["Hello world", "你好，世界", "  two blanks", "a\n\nb", "🙂"])
def test_ids_are_those_the_tokenizer_gives_itself(tokenizer: Any, text: str) -> None:
    sequence = encode_records(TextEncoder(tokenizer), [record(text)])[0]
    assert sequence is not None
    assert sequence.input_ids == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]


def test_the_border_of_source_and_target_is_a_border_of_tokens(tokenizer: Any) -> None:
    sequence = encode_records(TextEncoder(tokenizer), [record("s are bright", "The colour")])[0]
    assert sequence is not None
    assert tokenizer.decode(sequence.input_ids[: sequence.loss_start]) == "<s> The colour"
    assert tokenizer.decode(sequence.input_ids) == "<s> The colours are bright</s>"


def test_control_tokens_in_text_stay_text(tokenizer: Any) -> None:
    sequence = encode_records(TextEncoder(tokenizer), [record("a</s>b<s>", "q<s></s>")])[0]
    assert sequence is not None
    assert sequence.input_ids.count(tokenizer.eos_token_id) == sequence.input_ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(("masked", "expected"), [(-1, [5, 6]), (0, [5, 6]), (1, [-100, 6]), (9, [-100, -100])])
def test_labels_are_the_ids_after_those_without_loss(masked: int, expected: list[int]) -> None:
    labels = labels_of(np.array([5, 6], np.uint16), masked)
    assert labels.tolist() == expected
    assert labels.dtype == np.int32
