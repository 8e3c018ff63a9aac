"""Where a new id starts: old rows and the old ids of each new piece come in, one mean row a piece goes out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING

from tokenizer_tools.spelling import BLANK
from tokenizer_tools.tokenizer import TextEncoder

if TYPE_CHECKING:
    import torch
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast


def old_ids_of_pieces(old: PreTrainedTokenizerFast, pieces: Sequence[str]) -> list[list[int]]:
    """How the old tokenizer writes each piece's own text: as inside a text, without a blank that is not the piece's."""
    texts = [piece.replace(BLANK, " ") for piece in pieces]
    return TextEncoder(old).encode_batch(texts, continuation=True)


def mean_rows(rows: torch.Tensor, bags: Sequence[Sequence[int]]) -> torch.Tensor:
    """[len(bags), hidden] in the dtype of `rows` [vocabulary, hidden]: row k is the float32 mean of rows[bags[k]].

    Raises ValueError if a bag is empty: nothing has no mean.
    """
    import torch

    if not all(bags):
        raise ValueError("a new piece without old ids has no mean row")
    sizes = torch.tensor([0, *map(len, bags)])
    ids = torch.tensor(list(chain.from_iterable(bags)), dtype=torch.long)
    used, positions = ids.unique(return_inverse=True)  # only the rows in use are widened to float32
    means = torch.nn.functional.embedding_bag(positions, rows[used].float(), sizes.cumsum(0)[:-1], mode="mean")
    return means.to(rows.dtype)


def grow(rows: torch.Tensor, num_old: int, bags: Sequence[Sequence[int]]) -> torch.Tensor:
    """[num_old + len(bags), hidden]: the first `num_old` rows bit for bit, then mean rows. Padding is gone."""
    import torch

    return torch.cat([rows[:num_old], mean_rows(rows[:num_old], bags)])


def count_repeats(rows: torch.Tensor) -> int:
    """How many rows of [n, hidden] are bit for bit the same as an earlier one."""
    import torch

    seen = {hashlib.sha256(row.contiguous().view(torch.uint8).numpy()).digest() for row in rows}
    return len(rows) - len(seen)
