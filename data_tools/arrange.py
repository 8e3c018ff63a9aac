"""Which document goes where: all documents and the flags come in, the content of each bucket and the ledger go out.

Pure. Everything here depends on what documents hold (their hashes, lengths and categories), never on their
order.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from data_tools.buckets import assign_buckets
from data_tools.documents import Documents
from data_tools.mixture import Mixture, choose_copies, copies_of
from tokenizer_tools.command import UserError

logger = logging.getLogger(__name__)

LongDocuments = Literal["split", "truncate", "drop"]


@dataclass
class TokenFlow:
    """What became of the tokens of one category; `come_in` = tokens in bins + the sum of `dropped`."""

    come_in: int = 0
    repeated: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Arrangement:
    """Documents in the order in which they are written, bucket by bucket; arrays are [entries] int64.

    `document` indexes `Documents` and may name one more than once; `length` is what is used of it, in tokens; the
    entries of bucket b are `borders[b] : borders[b + 1]`. `flows` and `copies` have an entry a category.
    """

    document: np.ndarray
    length: np.ndarray
    borders: np.ndarray
    flows: list[TokenFlow]
    copies: np.ndarray


def arrange(
    documents: Documents,
    kept: np.ndarray,
    *,
    num_buckets: int,
    max_length: int,
    long_documents: LongDocuments,
    mixture: Mixture,
) -> Arrangement:
    """Place the documents `kept` [documents] bool: mix, treat the long ones, divide into buckets."""
    chosen = np.flatnonzero(kept)
    chosen = chosen[np.lexsort((documents.category[chosen], documents.hash[chosen]))]
    category = documents.category[chosen]
    num_categories = len(documents.category_names)
    num_bytes = np.bincount(category, documents.text_bytes[chosen], minlength=num_categories)
    by_name = {name: int(count) for name, count in zip(documents.category_names, num_bytes, strict=True)}
    for name in (name for name, wish in mixture.items() if wish.weight and not by_name.get(name)):
        logger.warning("warning: nothing of %r is left to mix in; the other categories share its weight", name)
    copies = np.array(list(copies_of(mixture, by_name).values()))
    entry, key = choose_copies(category, documents.text_bytes[chosen], documents.hash[chosen], copies)
    entry = chosen[entry]
    flows = _flows(documents, chosen, entry)

    is_long = documents.length[entry] > max_length
    length = documents.length[entry].astype(np.int64)
    if long_documents == "drop":
        _drop(flows, "long_document", documents.category[entry[is_long]], length[is_long])
        entry, key, length = entry[~is_long], key[~is_long], length[~is_long]
    elif long_documents == "truncate":
        bears_loss = documents.first_loss[entry] < max_length
        _drop(flows, "no_loss_left", documents.category[entry[~bears_loss]], length[~bears_loss])
        entry, key, length, is_long = entry[bears_loss], key[bears_loss], length[bears_loss], is_long[bears_loss]
        _drop(flows, "truncated", documents.category[entry[is_long]], length[is_long] - max_length)
        length = np.minimum(length, max_length)

    loss_tokens = np.minimum(documents.loss_tokens[entry], length - documents.first_loss[entry])
    _check_placed(documents, entry, copies)
    bucket = assign_buckets(documents.category[entry], loss_tokens, key, num_buckets)
    order = np.lexsort((documents.category[entry], key, bucket))
    borders = np.concatenate([[0], np.cumsum(np.bincount(bucket, minlength=num_buckets))])
    return Arrangement(entry[order], length[order], borders, flows, copies)


def _check_placed(documents: Documents, entry: np.ndarray, copies: np.ndarray) -> None:
    """Raise UserError if no document is placed; warn of a category of which none is, though some are wished for."""
    if not len(entry):
        raise UserError(
            "no document is left for the bins: --mixture or --long_documents leaves all of them out; loosen it"
        )
    placed = np.bincount(documents.category[entry], minlength=len(copies))
    for name, times, number in zip(documents.category_names, copies.tolist(), placed.tolist(), strict=True):
        if times > 0 and not number:
            logger.warning("warning: no document of %r is placed: each is longer than what is wished for", name)


def _flows(documents: Documents, chosen: np.ndarray, entry: np.ndarray) -> list[TokenFlow]:
    """Tokens that come in: those of every entry, and those of the documents that the mixture leaves out."""
    num_categories = len(documents.category_names)

    def tokens_by_category(of: np.ndarray) -> list[int]:
        lengths = documents.length[of].astype(np.float64)
        return np.bincount(documents.category[of], lengths, minlength=num_categories).astype(np.int64).tolist()

    left_out = np.setdiff1d(chosen, entry)
    once = np.unique(entry)
    flows = []
    for entered, first, left in zip(*(tokens_by_category(part) for part in (entry, once, left_out)), strict=True):
        dropped = Counter({"mixture": left}) if left else Counter()
        flows.append(TokenFlow(entered + left, entered - first, dropped))
    return flows


def _drop(flows: list[TokenFlow], reason: str, category: np.ndarray, tokens: np.ndarray) -> None:
    for index, count in enumerate(np.bincount(category, tokens, minlength=len(flows)).astype(np.int64).tolist()):
        if count:
            flows[index].dropped[reason] += count
