"""What new pieces save: counts on some text come in, predictions for other text go out, for every head of the list.

A prediction for a text knows what the old tokenizer makes of it (how often each symbol stands in it), but nothing of
the new pieces: a piece is expected as much more or less often as its symbols are more or less frequent there.
Pieces fit the text that they were learned from too well, and categories differ: so each prediction is scaled by how far
it is off in documents of the same category that no piece was learned from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from tokenizer_tools.held_out import Documents
from tokenizer_tools.mine import Counts, Merges

Spelling = Mapping[str, Sequence[str]]  # unit -> its parts in symbols


class Savings:
    """The tokens that pieces (as symbols, best first; `costs` is per symbol) save in the text they were learned from.

    Arrays are [1 + number of pieces]: with the first 0, 1, 2, ... pieces.
    """

    def __init__(self, pieces: Sequence[str], costs: Mapping[str, int], learned: Mapping[str, int]) -> None:
        self.pieces, self.costs = pieces, costs
        self.gains = [costs[piece] - 1 if len(piece) == 1 else 1 for piece in pieces]  # tokens saved a making
        self._merges = Merges([piece for piece in pieces if len(piece) > 1], costs)
        self._num_symbols = symbols_in(learned)
        self.counts: Counts = self._merges.count(learned)

    def count_left(self, sequences: Mapping[str, int]) -> np.ndarray:
        """The tokens of `sequences` as they are: counted."""
        made = self._merges.count(sequences).made
        return self._left(sequences, [made[piece] for piece in self.pieces])

    def expect_left(self, sequences: Mapping[str, int]) -> np.ndarray:
        """The tokens of `sequences` by the frequency of their symbols alone: expected, not scaled yet."""
        num_symbols = symbols_in(sequences)
        ratios = {symbol: num_symbols[symbol] / count for symbol, count in self._num_symbols.items()}
        made = self.counts.made
        return self._left(
            sequences, [made[piece] * sum(map(ratios.__getitem__, piece)) / len(piece) for piece in self.pieces]
        )

    def _left(self, sequences: Mapping[str, int], made: Sequence[float]) -> np.ndarray:
        saved = np.cumsum([0.0, *(gain * count for gain, count in zip(self.gains, made, strict=True))])
        return tokens_in(sequences, self.costs) - saved


def symbols_in(sequences: Mapping[str, int]) -> Counter[str]:
    """How often each symbol stands in `sequences`."""
    symbols: Counter[str] = Counter()
    for sequence, count in sequences.items():
        for symbol in sequence:
            symbols[symbol] += count
    return symbols


def tokens_in(sequences: Mapping[str, int], costs: Mapping[str, int]) -> int:
    """The old tokens of `sequences`."""
    return sum(count * sum(map(costs.__getitem__, sequence)) for sequence, count in sequences.items())


def spelled(units: Mapping[str, int], spelling: Spelling) -> Counter[str]:
    """`units` as sequences of symbols, with their numbers."""
    sequences: Counter[str] = Counter()
    for unit, count in units.items():
        for part in spelling[unit]:
            sequences[part] += count
    return sequences


class Forecast:
    """Predicts the tokens of documents, each category scaled by what `curve` documents of it show."""

    def __init__(self, savings: Savings, spelling: Spelling, curve: Mapping[str, Documents]) -> None:
        self._savings, self._spelling = savings, spelling
        sequences = {category: spelled(counted.units, spelling) for category, counted in curve.items()}
        pairs = {
            name: (savings.count_left(some), savings.expect_left(some)) for name, some in sequences.items() if some
        }
        self._scales = {category: counted / expected for category, (counted, expected) in pairs.items()}
        # a category without such documents: by those of all others; without any: not at all
        counted, expected = (sum(arrays) for arrays in zip(*pairs.values(), strict=True)) if pairs else (1.0, 1.0)
        self._scale_of_all = counted / expected

    def predict(self, documents: Mapping[str, Documents]) -> np.ndarray:
        """[1 + number of pieces]: the tokens of all `documents` with the first 0, 1, 2, ... pieces."""
        total = np.zeros(1 + len(self._savings.pieces))
        for category, counted in documents.items():
            sequences = spelled(counted.units, self._spelling)
            outside_units = counted.num_tokens - tokens_in(sequences, self._savings.costs)
            scale = self._scales.get(category, self._scale_of_all)
            total += outside_units + scale * self._savings.expect_left(sequences)
        return total


def find_cut_off(occurrences: np.ndarray, minimum: float) -> int:
    """The number of pieces beyond which none has `minimum` occurrences (one a piece, best first)."""
    reached = np.flatnonzero(occurrences >= minimum)
    return int(reached[-1]) + 1 if len(reached) else 0
