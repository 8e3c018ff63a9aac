"""Which pieces can be made, and what has to be added so that they can: pieces come in, a closed list goes out.

BPE builds a piece by merging two neighbours that are pieces themselves. A piece without such a path can never appear:
the missing steps, its intermediates, are added behind it, or the piece is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tokenizer_tools.vocabulary import Vocabulary

NO_PATH = "can never be made"
TOO_MANY = "needs more intermediates than allowed"


@dataclass
class Closure:
    """Pieces that can all be made once `intermediates` stand behind them, in this order."""

    pieces: list[str]
    needs: dict[str, list[str]] = field(default_factory=dict)  # piece -> intermediates that were added for it
    intermediates: dict[str, str] = field(default_factory=dict)  # each once -> the first piece that needed it
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)  # piece -> (reason, what stands in its way)

    def add_step(self, string: str, step: str) -> None:
        """Add a step to `string`, a piece or an intermediate, behind all other steps."""
        piece = self.intermediates.get(string, string)
        self.needs.setdefault(piece, []).append(step)
        self.intermediates.setdefault(step, piece)


def close(vocabulary: Vocabulary, pieces: Sequence[str], max_intermediates: int | None = None) -> Closure:
    """Close `pieces` under their intermediates, of which there may be `max_intermediates`; the best pieces come first.

    A piece without a path, or whose intermediates do not fit any more, is refused. What it was a step for may be stuck
    then, so the closure is made anew until nothing more has to go.
    """
    refused: dict[str, tuple[str, str]] = {}
    while True:
        closure = _close_all(vocabulary, [piece for piece in pieces if piece not in refused])
        if max_intermediates is not None:
            closure.refused |= _beyond(closure, vocabulary, max_intermediates)
        if not closure.refused:
            closure.refused = refused
            return closure
        refused |= closure.refused


def _close_all(vocabulary: Vocabulary, pieces: Sequence[str]) -> Closure:
    """Round by round: the parts that a string cannot do without; then, for each string that stays in parts, the pair of
    its symbols that is stuck most often in all.

    Each round adds a new string, and there are no more than the pieces have parts: so it ends.
    """
    closure = Closure(list(pieces))
    known = {*vocabulary.ids, *pieces}
    num_steps = -1
    while num_steps < len(closure.intermediates):
        num_steps = len(closure.intermediates)
        for string in [*pieces, *closure.intermediates]:
            for part in vocabulary.needed_parts(string):
                if part not in known:
                    closure.add_step(string, part)
        known.update(closure.intermediates)
        strings = [*pieces, *closure.intermediates]
        segmentations = zip(strings, vocabulary.segment(strings, strings), strict=True)
        # in a merge table two symbols may stay apart although their join is an old piece: it is made in another way
        stuck = {
            string: [left + right for left, right in pairwise(symbols) if left + right not in known]
            for string, symbols in segmentations
            if len(symbols) > 1
        }
        counts = Counter(join for joins in stuck.values() for join in joins)
        for string, joins in stuck.items():
            if joins:
                closure.add_step(string, max(joins, key=counts.__getitem__))
            else:
                piece = closure.intermediates.get(string, string)
                closure.refused[piece] = (
                    NO_PATH,
                    f"has no way to {_readable(vocabulary, string)!r}: its parts join to old pieces only",
                )
    return closure


def _beyond(closure: Closure, vocabulary: Vocabulary, max_intermediates: int) -> dict[str, tuple[str, str]]:
    """The pieces, from the best on, whose intermediates do not fit under `max_intermediates` beside those before."""
    taken: set[str] = set()
    beyond = {}
    for piece in closure.pieces:
        missing = [step for step in closure.needs.get(piece, ()) if step not in taken]
        if len(taken) + len(missing) > max_intermediates:
            step = _readable(vocabulary, missing[0])
            beyond[piece] = (TOO_MANY, f"needs {step!r} as a step, beyond {max_intermediates} intermediates")
        else:
            taken.update(missing)
    return beyond


def _readable(vocabulary: Vocabulary, string: str) -> str:
    return vocabulary.text_of(string) or string  # a part of a character has no text
