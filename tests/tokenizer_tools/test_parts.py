"""How old vocabularies spell new pieces, against sentencepiece, texts and merges applied by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AddedToken

from tests.conftest import CHINESE
from tokenizer_tools.command import UserError
from tokenizer_tools.parts import new_pieces, parts_of_pieces
from tokenizer_tools.spelling import spell_bytes
from tokenizer_tools.tokenizer import TextEncoder, load_tokenizer


def grow_byte_level(source: Path, target: Path, strings: list[str]) -> Path:
    """A byte-level tokenizer with control tokens, `strings` and what they begin with at the end of its vocabulary."""
    shutil.copytree(source, target)
    layout = json.loads((target / "tokenizer.json").read_text())
    vocabulary = layout["model"]["vocab"]
    vocabulary |= {token["content"]: token["id"] for token in layout["added_tokens"]}
    for string in [whole[:length] for whole in strings for length in range(2, len(whole) + 1)]:
        if string not in vocabulary:
            vocabulary[string] = len(vocabulary)
            layout["model"]["merges"].append([string[:-1], string[-1]])
    (target / "tokenizer.json").write_text(json.dumps(layout))
    return target


def merge_by_hand(layout: dict, string: str) -> list[int]:
    """BPE as defined: the pair that was learnt first is joined, leftmost first, until none is left."""
    ranks = {tuple(pair): rank for rank, pair in enumerate(layout["model"]["merges"])}
    symbols = list(string)
    while True:
        pairs = [(ranks.get(pair, len(ranks)), k) for k, pair in enumerate(zip(symbols, symbols[1:], strict=False))]
        rank, k = min(pairs, default=(len(ranks), 0))
        if rank == len(ranks):
            return [layout["model"]["vocab"][symbol] for symbol in symbols]
        symbols[k : k + 2] = ["".join(symbols[k : k + 2])]


def test_sentencepiece_parts_are_those_inside_a_text(base_tokenizer_dir: Path) -> None:
    """Without the `▁` that a tokenizer puts before a text, with the one that belongs to the piece."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(base_tokenizer_dir / "tokenizer.model"))
    pieces = ["你好", "xylophonist", "▁xylophonist", "machine▁learning", "龘", "</s>"]
    tokenizer = load_tokenizer(base_tokenizer_dir)
    parts = parts_of_pieces(tokenizer, tokenizer, pieces)
    assert processor.id_to_piece(parts[0]) == ["你", "好"]
    assert processor.id_to_piece(parts[1])[0] == "x"
    assert processor.id_to_piece(parts[2])[0].startswith("▁")
    assert len(parts[4]) == 3  # its bytes
    for piece, ids in zip(pieces, parts, strict=True):
        after_a_line_break = processor.encode("\n" + piece.replace("▁", " "))
        assert after_a_line_break[2:] == ids


def test_sentencepiece_parts_of_many_pieces_are_those_of_their_texts(
    base_tokenizer_dir: Path, english_texts: list[str]
) -> None:
    tokenizer = load_tokenizer(base_tokenizer_dir)
    words = {f"▁{word}" for text in english_texts for word in text.split()}
    pieces = [*sorted(words), *(text[i : i + n] for text in CHINESE for n in (2, 3, 4) for i in range(len(text) - n))]
    texts = [piece.replace("▁", " ") for piece in pieces]
    assert parts_of_pieces(tokenizer, tokenizer, pieces) == TextEncoder(tokenizer).encode_batch(
        texts, continuation=True
    )


PIECE = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters=" "), min_size=1, max_size=8)


@settings(deadline=None, max_examples=5)
@given(pieces=st.lists(PIECE, min_size=20, max_size=100))
def test_sentencepiece_parts_of_any_piece(tiny_tokenizer_dir: Path, pieces: list[str]) -> None:
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    texts = [piece.replace("▁", " ") for piece in pieces]
    assert parts_of_pieces(tokenizer, tokenizer, pieces) == TextEncoder(tokenizer).encode_batch(texts, True)


def test_byte_level_parts_also_of_half_a_character(byte_level_tokenizer_dir: Path, tmp_path: Path) -> None:
    whole = ["▁assert", "世界", "龘", "▁你", "statement▁of"]
    strings = [spell_bytes(piece) for piece in whole]
    halves = [spell_bytes("龘")[:2], spell_bytes("界龘")[:5], spell_bytes("龘")[1:]]
    grown = load_tokenizer(grow_byte_level(byte_level_tokenizer_dir, tmp_path / "grown", [*strings, *halves]))
    old = load_tokenizer(byte_level_tokenizer_dir)
    pieces = new_pieces(old, grown)
    assert set(pieces) == {*strings, *halves} | {s[:n] for s in [*strings, *halves] for n in range(2, len(s))} - {
        *old.get_vocab()
    }
    layout = json.loads((byte_level_tokenizer_dir / "tokenizer.json").read_text())
    parts = dict(zip(pieces, parts_of_pieces(old, grown, pieces), strict=True))
    for piece, ids in parts.items():
        assert ids == merge_by_hand(layout, piece)
    for piece, string in zip(whole, strings, strict=True):
        assert old.decode(parts[string]) == piece.replace("▁", " ")
    assert len(parts[halves[0]]) == len(parts[halves[2]]) == 2


@pytest.mark.parametrize("directory", ["tiny_tokenizer_dir", "byte_level_tokenizer_dir"])
def test_added_tokens_are_plain_text(directory: str, request: pytest.FixtureRequest) -> None:
    old, new = (load_tokenizer(request.getfixturevalue(directory)) for _ in range(2))
    tokens = ["<|tool call|>", "né", "<reserved_0>"]
    new.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens])
    pieces = new_pieces(old, new)
    assert pieces == tokens
    for token, ids in zip(tokens, parts_of_pieces(old, new, pieces), strict=True):
        assert TextEncoder(old).encode_batch([token], continuation=True) == [ids]
        assert old.decode(ids) == token


def test_a_piece_without_symbols_is_refused(byte_level_tokenizer_dir: Path) -> None:
    tokenizer = load_tokenizer(byte_level_tokenizer_dir)
    with pytest.raises(UserError, match="has no symbol of the new piece '龘'"):
        parts_of_pieces(tokenizer, tokenizer, ["a", "龘"])


def test_moved_ids_and_gaps_are_refused(tiny_tokenizer_dir: Path, base_tokenizer_dir: Path) -> None:
    tiny, base = load_tokenizer(tiny_tokenizer_dir), load_tokenizer(base_tokenizer_dir)
    assert new_pieces(tiny, tiny) == []
    with pytest.raises(UserError, match="in the target tokenizer; old ids must not move"):
        new_pieces(tiny, base)


def test_ids_with_gaps_are_refused(byte_level_tokenizer_dir: Path, tmp_path: Path) -> None:
    target = grow_byte_level(byte_level_tokenizer_dir, tmp_path / "grown", [spell_bytes("世界")])
    layout = json.loads((target / "tokenizer.json").read_text())
    layout["model"]["vocab"][spell_bytes("世界")] += 5  # the last one
    (target / "tokenizer.json").write_text(json.dumps(layout))
    with pytest.raises(UserError, match=r"new pieces do not have the ids 703 to \d+; expand this model's own"):
        new_pieces(load_tokenizer(byte_level_tokenizer_dir), load_tokenizer(target))
