"""Documents come in; they go out counted, in three shares: to learn pieces from, to draw the curve, to prove it.

A document's share follows from a hash of its text: the order of the files has no say, and copies stay together.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tokenizer_tools.figures import batches
from tokenizer_tools.tokenizer import TextEncoder
from tokenizer_tools.units import find_units

LEARN, CURVE, PROOF = "learn", "curve", "proof"


@dataclass
class Documents:
    """Documents of one share and category. `texts` are kept of the proof only."""

    num_characters: int = 0
    num_tokens: int = 0  # by the old tokenizer
    units: Counter[str] = field(default_factory=Counter)
    texts: list[str] = field(default_factory=list)


Shares = dict[str, dict[str, Documents]]  # share -> category -> its documents


def share_of(text: str, held_out_share: float) -> str:
    """LEARN, or for a share of all texts, half and half, CURVE or PROOF."""
    place = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
    if place < held_out_share / 2:
        return CURVE
    return PROOF if place < held_out_share else LEARN


def divide(documents: Iterable[tuple[str, str]], encoder: TextEncoder, unit: str, held_out_share: float) -> Shares:
    """Count (category, text) documents into their shares, their units (of the kind `unit`) with them."""
    shares: Shares = {LEARN: {}, CURVE: {}, PROOF: {}}
    for batch in batches(documents):
        encoded = encoder.encode_batch([text for _, text in batch])
        for (category, text), ids in zip(batch, encoded, strict=True):
            share = share_of(text, held_out_share)
            counted = shares[share].setdefault(category, Documents())
            counted.num_characters += len(text)
            counted.num_tokens += len(ids)
            counted.units.update(find_units(text, unit))
            if share == PROOF:
                counted.texts.append(text)
    return shares


def units_of(documents: dict[str, Documents]) -> Counter[str]:
    """The units of all categories together."""
    units: Counter[str] = Counter()
    for category in documents.values():
        units.update(category.units)
    return units
