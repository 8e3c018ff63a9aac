"""The proof of an expansion: a written tokenizer directory comes in, nothing comes out, or a RuntimeError does.

Read back as users will read it: sentencepiece, the slow and the fast tokenizer have to agree, every new piece has to be
one id, and no old id and no old text may have changed. A failure is a fault of this program, never of the user.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import sentencepiece
from tqdm import tqdm

from tokenizer_tools.expand import bare_processor, load_model
from tokenizer_tools.tokenizer import PROBE_TEXT, TextEncoder, load_slow_tokenizer, load_tokenizer

PIECES_PER_TEXT = 20  # joined pieces: enough neighbours for merges across their borders, short enough to be shown
ANCHOR = "\x01"  # merges with nothing, so that what follows it is encoded as inside a text


def verify_expansion(source: Path, target: Path, new_pieces: Sequence[str]) -> int:
    """Prove `target` (expanded from `source` by `new_pieces`, ids in that order). Returns how many texts were compared.

    Raises RuntimeError that names the first piece or text that fails.
    """
    old_model, new_model = (load_model(directory / "tokenizer.model") for directory in (source, target))
    _check_ids(source, target, new_pieces)
    _check_reach(target, bare_processor(new_model), new_pieces)
    old_pieces = [entry.piece for entry in old_model.pieces if entry.type == entry.NORMAL]
    old_texts = [*old_pieces, *_joined(old_pieces), *PROBE_TEXT.split()]
    _check_old_texts(bare_processor(old_model), bare_processor(new_model), old_texts, new_pieces)
    texts = [*_joined(new_pieces), *_joined(new_pieces[::-1]), *_joined(old_pieces), PROBE_TEXT]
    _check_agreement(target, texts)
    return len(old_texts) + len(texts)


def _joined(pieces: Sequence[str]) -> Iterator[str]:
    """Texts of pieces side by side, none starting with a blank: there the slow and the fast class differ by design."""
    for start in range(0, len(pieces), PIECES_PER_TEXT):
        yield "".join(pieces[start : start + PIECES_PER_TEXT]).replace("▁", " ").strip()


def _check_ids(source: Path, target: Path, new_pieces: Sequence[str]) -> None:
    """Every old piece keeps its id and the new ones follow in order."""
    old_ids = load_tokenizer(source).get_vocab()
    expected = old_ids | {piece: len(old_ids) + k for k, piece in enumerate(new_pieces)}
    for name, load in (("fast", load_tokenizer), ("slow", load_slow_tokenizer)):
        ids = load(target).get_vocab()
        wrong = [piece for piece, piece_id in expected.items() if ids.get(piece) != piece_id]
        _require(not wrong and len(ids) == len(expected), f"{name} tokenizer: ids not as planned: {wrong[:3]}")


def _check_reach(target: Path, bare: sentencepiece.SentencePieceProcessor, new_pieces: Sequence[str]) -> None:
    """Each new piece alone is exactly its one id, in sentencepiece, in the slow and in the fast tokenizer."""
    slow, fast = load_slow_tokenizer(target), load_tokenizer(target)
    first_id = bare.get_piece_size() - len(new_pieces)
    anchor_ids = slow.encode(ANCHOR, add_special_tokens=False)
    merge = fast.backend_tokenizer.model.tokenize
    progress = tqdm(new_pieces, desc="proving", unit="piece", disable=None)
    for piece_id, (piece, ids) in enumerate(zip(progress, bare.encode(list(new_pieces)), strict=True), first_id):
        _require(ids == [piece_id], f"sentencepiece: {piece!r} gives {ids}, not its id {piece_id}")
        slow_ids = slow.encode(ANCHOR + piece, add_special_tokens=False)
        _require(slow_ids == [*anchor_ids, piece_id], f"slow tokenizer: {piece!r} gives {slow_ids}, not {piece_id}")
        fast_ids = [token.id for token in merge(piece)]
        _require(fast_ids == [piece_id], f"fast tokenizer: {piece!r} gives {fast_ids}, not its id {piece_id}")


def _check_old_texts(
    old: sentencepiece.SentencePieceProcessor,
    new: sentencepiece.SentencePieceProcessor,
    texts: Sequence[str],
    new_pieces: Sequence[str],
) -> None:
    """A text in which no new piece occurs has the same ids as before."""
    pieces = frozenset(new_pieces)
    lengths = sorted({len(piece) for piece in pieces})
    for text, old_ids, new_ids in zip(texts, old.encode(list(texts)), new.encode(list(texts)), strict=True):
        if old_ids != new_ids:
            _require(_contains_any(text.replace(" ", "▁"), pieces, lengths), f"old text {text!r} got other ids")


def _contains_any(text: str, pieces: frozenset[str], lengths: Sequence[int]) -> bool:
    return any(text[i : i + length] in pieces for length in lengths for i in range(len(text) - length + 1))


def _check_agreement(target: Path, texts: Sequence[str]) -> None:
    """sentencepiece, slow and fast tokenizer give the same ids for whole texts."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(target / "tokenizer.model"))
    slow, fast = load_slow_tokenizer(target), load_tokenizer(target)
    encoder = TextEncoder(fast)
    for text, ids, ours in zip(texts, processor.encode(list(texts)), encoder.encode_batch(texts), strict=True):
        _require(ids == ours, f"sentencepiece and fast tokenizer differ on {text!r}")
        slow_ids = slow.encode(text, add_special_tokens=False)
        fast_ids = fast.encode(text, add_special_tokens=False)
        _require(slow_ids == fast_ids, f"slow and fast tokenizer differ on {text!r}")


def _require(holds: bool, claim: str) -> None:
    if not holds:
        raise RuntimeError(f"the expanded tokenizer is not what it should be: {claim}")
