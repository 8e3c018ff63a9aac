"""Where new ids start: the old rows and the parts of each new piece come in, one float32 row a piece goes out.

Parts are the old ids that spell a piece so far. Most rules say how much of each part's row the new row takes; rows that
are the same mixture are bit for bit the same row, so that repeats can be found and told apart by noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Parts = Sequence[int]
Mixture = dict[int, float]  # old id -> its share of the new row
RowMaker = Callable[[Sequence[Parts]], "torch.Tensor"]  # parts of n pieces -> [n, hidden] float32

POSITION_SLOPE = 2.0
COVARIANCE_JITTER = 1e-6
CHUNK_ROWS = 256  # a few megabytes in float32: larger pieces come fresh from the system, page by page


def mean(parts: Parts, is_output: bool) -> Mixture:
    """Every part alike: Gee et al. 2022, "Fast Vocabulary Transfer for Language Model Compression"."""
    return {part: parts.count(part) / len(parts) for part in parts}


def position_mean(parts: Parts, is_output: bool) -> Mixture:
    """Shares e^2, e^4, ... toward the last part for input rows, toward the first for output rows.

    Nakash et al. 2025, "AdaptiVocab": an input row stands where the last part stood, before what follows; an output row
    is asked for where the first part was.
    """
    ranks = range(len(parts), 0, -1) if is_output else range(1, len(parts) + 1)
    powers = [math.exp(POSITION_SLOPE * (rank - len(parts))) for rank in ranks]
    mixture = dict.fromkeys(parts, 0.0)
    for part, power in zip(parts, powers, strict=True):
        mixture[part] += power / sum(powers)
    return mixture


def copy(parts: Parts, is_output: bool) -> Mixture:
    """The last part's row for input, the first part's for output: where `position_mean` leads as its slope grows.

    The output half is that of Kim et al. 2024, "Efficient and Effective Vocabulary Expansion" (EEVE).
    """
    return {parts[0 if is_output else -1]: 1.0}


def zero(parts: Parts, is_output: bool) -> Mixture:
    """Nothing of any part: the baseline of Hewitt 2021 that he warns of (logits of 0 can outweigh all trained ones)."""
    return {}


MIXTURES: dict[str, Callable[[Parts, bool], Mixture]] = {
    "mean": mean,
    "position_mean": position_mean,
    "copy": copy,
    "zero": zero,
}


def mix(rows: torch.Tensor, mixtures: Sequence[Mixture]) -> torch.Tensor:
    """[len(mixtures), hidden] float32: row k is the sum of rows[id] * share over mixtures[k], in the order of the ids.

    Raises IndexError for an id that `rows` [vocabulary, hidden] has not.
    """
    import torch

    ordered = [sorted(mixture.items()) for mixture in mixtures]
    ids = torch.tensor([i for pairs in ordered for i, _ in pairs], dtype=torch.long)
    shares = torch.tensor([share for pairs in ordered for _, share in pairs], dtype=torch.float32)
    starts = torch.tensor([0, *map(len, ordered)])[:-1].cumsum(0)
    used, positions = ids.unique(return_inverse=True)  # only the rows in use are widened to float32
    return torch.nn.functional.embedding_bag(
        positions, rows[used].float(), starts, mode="sum", per_sample_weights=shares
    )


def normal(rows: torch.Tensor, generator: torch.Generator) -> RowMaker:
    """Draws from the normal distribution with the mean and the covariance of all old rows; parts play no role.

    Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models"; his code shrinks the covariance by
    1e-5, which leaves the mean row with a little noise. Here it is whole: new rows are spread as the old ones are.
    """
    import torch

    center, covariance = mean_and_covariance(rows)
    jitter = COVARIANCE_JITTER * covariance.diagonal().mean() * torch.eye(len(covariance))  # fewer rows than columns
    factor = torch.linalg.cholesky(covariance + jitter)

    def make(parts: Sequence[Parts]) -> torch.Tensor:
        return center + torch.randn(len(parts), len(center), generator=generator) @ factor.T

    return make


def row_maker(name: str, rows: torch.Tensor, is_output: bool, generator: torch.Generator) -> RowMaker:
    """The initialiser `name` for a matrix whose old rows are `rows` [vocabulary, hidden]."""
    if name == "normal":
        return normal(rows, generator)
    rule = MIXTURES[name]
    return lambda parts: mix(rows, [rule(ids, is_output) for ids in parts])


def norms_and_spread(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[vocabulary] and [hidden], float32: the norm of each row, and the standard deviation of each column."""
    import torch

    norms, sums, squares = [], *(torch.zeros(rows.shape[1], dtype=torch.float64) for _ in range(2))
    for chunk in chunks(rows):
        square = chunk.square()
        norms.append(square.sum(1).sqrt())
        sums += chunk.sum(0)
        squares += square.sum(0)
    variances = squares / len(rows) - (sums / len(rows)).square()
    return torch.cat(norms), variances.clamp(min=0).sqrt().float()


def mean_and_covariance(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[hidden] and [hidden, hidden] float32: of the rows as a whole population."""
    import torch

    center = torch.stack([chunk.sum(0) for chunk in chunks(rows)]).sum(0) / len(rows)
    covariance = torch.zeros(rows.shape[1], rows.shape[1])
    for chunk in chunks(rows):
        centered = chunk - center
        covariance.addmm_(centered.T, centered)
    return center, covariance / len(rows)


def chunks(rows: torch.Tensor) -> Iterator[torch.Tensor]:
    """The rows in float32, some at a time: the whole matrix in float32 would be the largest thing in memory."""
    for chunk in rows.split(CHUNK_ROWS):
        yield chunk.float()
