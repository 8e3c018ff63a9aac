"""How an old vocabulary spells new pieces: two tokenizers come in, the old ids of each new piece go out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenizer_tools.command import UserError
from tokenizer_tools.spelling import speller_of

if TYPE_CHECKING:
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast


def new_pieces(old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast) -> list[str]:
    """The pieces that only `new` has, in the order of their ids. Raises UserError if an old piece has moved."""
    old_ids, new_ids = old.get_vocab(), new.get_vocab()
    moved = sorted((i, piece) for piece, i in old_ids.items() if new_ids.get(piece) != i)
    if moved:
        old_id, piece = moved[0]
        raise UserError(
            f"piece {piece!r} has id {old_id} beside the model, but {new_ids.get(piece)} in the target tokenizer; "
            "old ids must not move, expand this model's own tokenizer with init_tokenizer"
        )
    pieces = sorted(new_ids.keys() - old_ids.keys(), key=new_ids.__getitem__)
    expected = range(len(old_ids), len(new_ids))
    if [new_ids[piece] for piece in pieces] != list(expected):
        raise UserError(
            f"the target tokenizer's {len(pieces)} new pieces do not have the ids {expected.start} to "
            f"{expected.stop - 1}; expand this model's own tokenizer with init_tokenizer"
        )
    return pieces


def parts_of_pieces(
    old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast, pieces: Sequence[str]
) -> list[list[int]]:
    """The old ids of each piece of `new`, by the old vocabulary's own merges: no blank is put before the piece.

    The strings of both vocabularies are spelled alike, so the merges apply to them as they are; in a byte-level
    vocabulary a piece may be half a character, which no text could ask for. Added tokens are kept as plain text.
    Raises UserError for a piece that the old vocabulary has no symbols for.
    """
    spell, added, model = speller_of(old), new.get_added_vocab(), old.backend_tokenizer.model
    strings = [spell(piece) if piece in added else piece for piece in pieces]
    parts = [[token.id for token in model.tokenize(string)] for string in strings]
    for piece, ids in zip(pieces, parts, strict=True):
        if not ids:
            raise UserError(
                f"the vocabulary beside the model has no symbol of the new piece {piece!r}, so its row has nothing to "
                "start from; leave the piece out"
            )
    return parts
