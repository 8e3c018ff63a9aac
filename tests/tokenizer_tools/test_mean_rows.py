"""The rows new ids start from, against a brute-force mean and sentencepiece."""

from __future__ import annotations

from pathlib import Path

import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer_tools.mean_rows import count_repeats, grow, mean_rows, old_ids_of_pieces
from tokenizer_tools.tokenizer import load_tokenizer

BAGS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=7), max_size=12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@settings(deadline=None, max_examples=30)
@given(bags=BAGS)
def test_same_as_the_mean_one_by_one(dtype: torch.dtype, bags: list[list[int]]) -> None:
    rows = torch.randn(10, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    means = mean_rows(rows, bags)
    assert means.dtype == dtype
    assert means.shape == (len(bags), 5)
    for row, bag in zip(means, bags, strict=True):
        expected = rows.double()[bag].mean(0)
        torch.testing.assert_close(row.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-7)


def test_mean_is_taken_in_float32() -> None:
    rows = torch.tensor([[256.0], [1.0]], dtype=torch.bfloat16)
    assert mean_rows(rows, [[0, 1, 1, 1, 1, 1, 1, 1]]).item() == torch.tensor(263 / 8, dtype=torch.bfloat16).item()


def test_grow_keeps_old_rows_bit_for_bit_and_drops_padding() -> None:
    rows = torch.tensor([[float("nan")], [-0.0], [3.0], [99.0]], dtype=torch.bfloat16)
    grown = grow(rows, 3, [[2], [1, 2]])
    assert torch.equal(grown[:3].view(torch.int16), rows[:3].view(torch.int16))
    assert grown[3:].tolist() == [[3.0], [1.5]]


def test_padding_rows_are_never_averaged() -> None:
    with pytest.raises(IndexError):
        grow(torch.zeros(4, 2), 3, [[3]])


def test_an_empty_bag_is_an_error() -> None:
    with pytest.raises(ValueError, match="without old ids"):
        mean_rows(torch.zeros(2, 2), [[0], []])


def test_repeats_are_counted_by_bits() -> None:
    rows = torch.tensor([[0.0, 1.0], [0.0, 1.0], [-0.0, 1.0], [2.0, 2.0], [0.0, 1.0]], dtype=torch.bfloat16)
    assert count_repeats(rows) == 2
    assert count_repeats(rows[:0]) == 0


def test_old_ids_are_those_inside_a_text(base_tokenizer_dir: Path) -> None:
    """Without the `▁` that a tokenizer puts before a text, with the one that belongs to the piece."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(base_tokenizer_dir / "tokenizer.model"))
    pieces = ["你好", "xylophonist", "▁xylophonist", "machine▁learning", "龘", "</s>"]
    bags = old_ids_of_pieces(load_tokenizer(base_tokenizer_dir), pieces)
    assert processor.id_to_piece(bags[0]) == ["你", "好"]
    assert processor.id_to_piece(bags[1])[0] == "x"
    assert processor.id_to_piece(bags[2])[0].startswith("▁")
    assert len(bags[4]) == 3  # its bytes
    for piece, bag in zip(pieces, bags, strict=True):
        after_a_line_break = processor.encode("\n" + piece.replace("▁", " "))
        assert after_a_line_break[2:] == bag
