"""A matrix grows: its old rows and the parts of new pieces come in, all rows go out in chunks, with figures of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenizer_tools.command import UserError
from tokenizer_tools.initialisers import CHUNK_ROWS, Parts, mean, mix, norms_and_spread, row_maker

if TYPE_CHECKING:
    import torch

QUANTILES = {"min": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "max": 1.0}


@dataclass
class Figures:
    """What was seen of a matrix while it grew; norms and cosines are float32 tensors [rows], chunk by chunk."""

    rows_with_noise: int = 0
    identical_starting_rows: int = 0
    old_norms: list[torch.Tensor] = field(default_factory=list)
    new_norms: list[torch.Tensor] = field(default_factory=list)
    cosines: list[torch.Tensor] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """The figures as plain numbers."""
        return {
            "rows_with_noise": self.rows_with_noise,
            "identical_starting_rows": self.identical_starting_rows,
            "norm_of_old_rows": quantiles(self.old_norms),
            "norm_of_new_rows": quantiles(self.new_norms),
            "cosine_to_mean_of_parts": quantiles(self.cosines),
        }


@dataclass(frozen=True)
class Rule:
    """How the new rows of a matrix start. `noise` is in standard deviations of the old rows, column by column."""

    initialiser: str
    is_output: bool
    noise: float
    seed: int


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work alone: on chunks this small its threads mostly wait for one another."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def grow(rows: torch.Tensor, parts: Sequence[Parts], rule: Rule, figures: Figures) -> Iterator[torch.Tensor]:
    """Yield `rows` [vocabulary, hidden] bit for bit, then a new row for each of `parts`, in chunks of the same dtype.

    A new row that repeats an old or an earlier new one gets noise; all others are what the initialiser says. Raises
    UserError if a new row is not finite.
    """
    import torch

    yield rows
    norms, spread = norms_and_spread(rows)
    figures.old_norms.append(norms)
    if not parts:
        return
    generator = torch.Generator().manual_seed(rule.seed)
    make = row_maker(rule.initialiser, rows, rule.is_output, generator)
    known: set[int] = set()
    find_repeats(rows, known)
    for start in range(0, len(parts), CHUNK_ROWS):
        some = parts[start : start + CHUNK_ROWS]
        made = make(some)
        new = made.to(rows.dtype, copy=True)
        again = find_repeats(new, known)
        if again and rule.noise:
            noise = rule.noise * spread * torch.randn(len(again), rows.shape[1], generator=generator)
            new[again] = (made[again] + noise).to(rows.dtype)
            figures.rows_with_noise += len(again)
            again = find_repeats(new[again], known)
        figures.identical_starting_rows += len(again)
        means = made if rule.initialiser == "mean" else mix(rows, [mean(ids, rule.is_output) for ids in some])
        norms, cosines = _norms_and_cosines(new.float(), means)
        _check_finite(norms, len(rows) + start)
        figures.new_norms.append(norms)
        figures.cosines.append(cosines)
        yield new


def find_repeats(rows: torch.Tensor, known: set[int]) -> list[int]:
    """Which rows of [n, hidden] are bit for bit an earlier one or in `known` (their hashes), where all rows go.

    Hashes of 64 bits: a chance of some 1e-9 that one row of a vocabulary gets noise it did not need.
    """
    import torch

    found = []
    for k, row in enumerate(rows.contiguous().view(torch.uint8).numpy()):
        key = hash(row.tobytes())
        if key in known:
            found.append(k)
        known.add(key)
    return found


def _norms_and_cosines(rows: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[n] each: the norms of rows [n, hidden] and their cosines to `others`, 0 where one of the two is 0."""
    norms = rows.norm(dim=1)
    products = (norms * others.norm(dim=1)).clamp(min=1e-30)
    return norms, (rows * others).sum(1) / products


def _check_finite(norms: torch.Tensor, first_id: int) -> None:
    broken = (~norms.isfinite()).nonzero().flatten().tolist()
    if broken:
        raise UserError(
            f"the new row of id {first_id + broken[0]} would not be finite, as some old rows are not; "
            "the source model is broken, fetch it again"
        )


def quantiles(values: Sequence[torch.Tensor]) -> dict[str, float]:
    """{"min", "5%", "median", "95%", "max"} of all values that are finite, {} of none."""
    import torch

    finite = [some[some.isfinite()] for some in values]
    if not sum(map(len, finite)):
        return {}
    found = torch.cat(finite).quantile(torch.tensor(list(QUANTILES.values())))
    return {name: round(value, 6) for name, value in zip(QUANTILES, found.tolist(), strict=True)}
