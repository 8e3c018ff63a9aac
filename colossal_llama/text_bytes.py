"""How many bytes of text each token of a row spells: a tokenizer comes in, `TextBytes` goes out.

Loss per byte of text compares tokenizers, so bytes are counted as the text has them, whatever the pieces look like.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from data_tools.token_text import bytes_of_letters, bytes_of_piece
from tokenizer_tools.spelling import is_byte_level
from tokenizer_tools.tokenizer import TextEncoder

if TYPE_CHECKING:
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast


@dataclass(frozen=True)
class TextBytes:
    """`lengths` int64 [vocabulary]: UTF-8 bytes of each id, 0 for control tokens.

    `has_blank` bool [vocabulary]: pieces that begin with the blank which the tokenizer puts before a document; it is no
    byte of the text. None do where it puts no blank. `prefix_ids` [0 or 1] is what comes before that piece.
    """

    lengths: torch.Tensor
    has_blank: torch.Tensor
    prefix_ids: list[int]

    def count(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(bytes of the text that each token spells, whether it spells any), int64 and bool [rows, length].

        A document begins where `position_ids` is 0. The rest of a document that was cut begins so too, but without the
        prefix; only where the tokenizer has none is the blank of such a rest taken for an added one. A piece that is
        nothing but the added blank spells text of 0 bytes: it is part of what the text costs.
        """
        lengths = self.lengths[input_ids]
        opens = position_ids == len(self.prefix_ids)
        if self.prefix_ids:
            opens[:, 1:] &= input_ids[:, :-1] == self.prefix_ids[0]
        return lengths - (opens & self.has_blank[input_ids]).long(), lengths > 0

    def to(self, device: torch.device) -> TextBytes:
        """The same on `device`."""
        return TextBytes(self.lengths.to(device), self.has_blank.to(device), self.prefix_ids)


def text_bytes(tokenizer: PreTrainedTokenizerFast) -> TextBytes:
    """What the ids of `tokenizer` spell; it takes a second for a large vocabulary."""
    encoder = TextEncoder(tokenizer)
    is_letters = is_byte_level(json.loads(encoder.layout()))
    spell = bytes_of_letters if is_letters else bytes_of_piece
    spelled = {index: spell(piece) for piece, index in tokenizer.get_vocab().items()}
    for index, token in tokenizer.added_tokens_decoder.items():
        spelled[index] = b"" if token.special else token.content.encode()
    puts_blank = encoder.encode_batch(["a"]) != encoder.encode_batch(["a"], continuation=True)
    in_order = [spelled.get(index, b"") for index in range(max(spelled) + 1)]
    return TextBytes(
        torch.tensor([len(text) for text in in_order]),
        torch.tensor([puts_blank and text.startswith(b" ") for text in in_order]),
        encoder.prefix_ids,
    )
