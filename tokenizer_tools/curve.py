"""The curve over the number of pieces: chosen pieces and divided documents come in, lines, a report, a plot go out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tokenizer_tools.closure import close
from tokenizer_tools.held_out import LEARN, PROOF, Shares
from tokenizer_tools.result_files import draw
from tokenizer_tools.savings import Forecast, Savings
from tokenizer_tools.vocabulary import Vocabulary

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PROVED_SHARES = (0.25, 0.5, 1)  # of the budget


@dataclass
class Curve:
    """One entry a piece, best first; `tokens_per_character` has one more in front, for no piece at all.

    `occurrences_if_last`: how often a piece is seen as a token in the planned training if the list ends with it.
    """

    pieces: list[str]
    counts: list[int]
    tokens_saved: list[int]
    tokens_per_character: np.ndarray
    expected_occurrences: np.ndarray
    occurrences_if_last: np.ndarray


@dataclass
class Proof:
    """What was predicted for held-out documents, and what the tokenizer expanded by `num_pieces` makes of them."""

    num_pieces: int
    num_intermediates: int  # that init_tokenizer adds: parts of characters, which a byte-level BPE merges byte by byte
    predicted_tokens: float
    real_tokens: int
    num_characters: int

    @property
    def error(self) -> float:
        """Relative: above 0 where more tokens were predicted than there are."""
        return self.predicted_tokens / self.real_tokens - 1


def make_curve(pieces: Sequence[str], savings: Savings, forecast: Forecast, shares: Shares, planned: float) -> Curve:
    """The curve of the text that pieces were learned from, as that text would be if they had not been."""
    learned = shares[LEARN]
    num_characters = sum(counted.num_characters for counted in learned.values())
    num_tokens = sum(counted.num_tokens for counted in learned.values())
    made = [savings.counts.made[piece] for piece in savings.pieces]
    used = [savings.counts.used[piece] for piece in savings.pieces]
    saved = [gain * count for gain, count in zip(savings.gains, made, strict=True)]
    tokens_left = num_tokens - np.cumsum(saved)
    return Curve(
        pieces=list(pieces),
        counts=made,
        tokens_saved=saved,
        tokens_per_character=forecast.predict(learned) / num_characters,
        expected_occurrences=planned * np.array(used) / tokens_left[-1],
        occurrences_if_last=planned * np.array(made) / tokens_left,  # nothing longer is made of the last piece
    )


def prove(curve: Curve, forecast: Forecast, shares: Shares, vocabulary: Vocabulary, cut_off: int) -> list[Proof]:
    """Predictions for the held-out documents beside what really expanded tokenizers make of them, at some budgets."""
    documents = shares[PROOF]
    texts = [text for counted in documents.values() for text in counted.texts]
    if not texts:
        return []
    predicted = forecast.predict(documents)
    num_characters = sum(counted.num_characters for counted in documents.values())
    heads = {max(1, round(share * len(curve.pieces))) for share in PROVED_SHARES} | ({cut_off} - {0})
    proofs = []
    for num_pieces in sorted(heads):
        new = [vocabulary.spell(piece) for piece in curve.pieces[:num_pieces]]
        closure = close(vocabulary, new)  # as init_tokenizer does
        real = sum(map(len, vocabulary.encode([*closure.pieces, *closure.intermediates], texts)))
        proofs.append(Proof(num_pieces, len(closure.intermediates), float(predicted[num_pieces]), real, num_characters))
    return proofs


def written_lines(curve: Curve) -> str:
    """The pieces file."""
    columns = zip(
        curve.pieces,
        curve.counts,
        curve.tokens_saved,
        curve.tokens_per_character[1:],
        curve.expected_occurrences,
        strict=True,
    )
    return "".join(
        json.dumps(
            {
                "piece": piece,
                "count": count,
                "tokens_saved": saved,
                "tokens_per_character": round(float(ratio), 6),
                "expected_occurrences": round(float(expected), 1),
            },
            ensure_ascii=False,
        )
        + "\n"
        for piece, count, saved, ratio, expected in columns
    )


def draw_curve(path: Path, curve: Curve, cut_off: int, proofs: Sequence[Proof]) -> None:
    """Tokens per character over the number of pieces, the suggested cut-off and what was proved."""

    def paint(axes: Axes) -> None:
        axes.plot(curve.tokens_per_character, label="this text, predicted")
        axes.axvline(cut_off, color="0.6", linestyle="--", label=f"suggested cut-off: {cut_off:,} pieces")
        places = [proof.num_pieces for proof in proofs]
        if proofs:
            predicted = [proof.predicted_tokens / proof.num_characters for proof in proofs]
            axes.plot(places, predicted, "x", color="C1", label="held-out documents, predicted")
            real = [proof.real_tokens / proof.num_characters for proof in proofs]
            axes.plot(places, real, "o", markerfacecolor="none", color="C1", label="held-out documents, real")
        axes.set(xlabel="new pieces", ylabel="tokens per character", ylim=(0, None))
        axes.legend(frameon=False)

    draw(path, (9, 4.5), paint)
