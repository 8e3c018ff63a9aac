"""Text -> ids: records come in, their ids laid end to end with the places that bear loss go out. Pure.

A record that is not framed becomes BOS + its segments + EOS; EOS bears loss, BOS only where everything does. Segments
are encoded apart, so that no token lies across their border and the loss begins exactly there.
"""

from __future__ import annotations

from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING

import numpy as np

from data_tools.backends import Encode, Ids, laid_end_to_end, reference_backend
from data_tools.records import Record, Segment

if TYPE_CHECKING:
    from tokenizer_tools.tokenizer import TextEncoder

IGNORED_LABEL = -100
CONTROL, START, INSIDE = 0, 1, 2  # where a segment's ids come from


@dataclass(frozen=True)
class Encoded:
    """Documents laid end to end. `tokens` [tokens] uint32, `lengths` [documents] int64.

    `spans` [2 * spans] int64: first and behind last place, within its document, of each run of tokens that bear loss;
    `num_spans` [documents] int64. `has_text` [documents] bool: some text that bears loss has become tokens.
    """

    tokens: np.ndarray
    lengths: np.ndarray
    spans: np.ndarray
    num_spans: np.ndarray
    has_text: np.ndarray


@dataclass(frozen=True)
class Encoders:
    """What turns segments into ids: text at a document's start, text inside it, and control tokens."""

    start: Encode
    inside: Encode
    control_ids: dict[str, list[int]]
    prefix_ids: list[int]
    eos_ids: list[int]
    continues_after_control: bool


def encoders_of(encoder: TextEncoder, start: Encode, inside: Encode) -> Encoders:
    """The encoders of a tokenizer, whose texts go through `start` and `inside`."""
    return Encoders(
        start,
        inside,
        encoder.control_ids,
        encoder.prefix_ids,
        encoder.eos_ids,
        encoder.continues_after_control,
    )


def reference_encoders(encoder: TextEncoder) -> Encoders:
    """The encoders that go through transformers' own library."""
    return encoders_of(encoder, reference_backend(encoder, False), reference_backend(encoder, True))


class _Pieces:
    """The segments of many documents as columns: where their ids come from, which ones, whether they bear loss."""

    def __init__(self, encoders: Encoders) -> None:
        self._encoders = encoders
        self._controls: list[list[int]] = [encoders.prefix_ids, encoders.eos_ids]
        self._control_index: dict[str, int] = {}
        self.texts: tuple[list[str], list[str]] = ([], [])
        self.pool: list[int] = []
        self.index: list[int] = []
        self.has_loss: list[bool] = []
        self.num_pieces: list[int] = []

    def add(self, record: Record) -> None:
        """One more document."""
        before = len(self.pool)
        if not record.is_framed:
            self._put(CONTROL, 0, len(record.segments) == 1)
        pool = START
        for segment in record.segments:
            if segment.is_control:
                self._put(CONTROL, self._control(segment), segment.has_loss)
                pool = INSIDE if self._encoders.continues_after_control else START
            else:
                texts = self.texts[pool - START]
                self._put(pool, len(texts), segment.has_loss)
                texts.append(segment.text)
                pool = INSIDE
        if not record.is_framed:
            self._put(CONTROL, 1, True)
        self.num_pieces.append(len(self.pool) - before)

    def _put(self, pool: int, index: int, has_loss: bool) -> None:
        self.pool.append(pool)
        self.index.append(index)
        self.has_loss.append(has_loss)

    def _control(self, segment: Segment) -> int:
        if segment.text not in self._control_index:
            self._control_index[segment.text] = len(self._controls)
            self._controls.append(self._encoders.control_ids[segment.text])
        return self._control_index[segment.text]

    def ids(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`flat` ids of all pools, and `start` and `length` of each piece in it."""
        controls = Ids(
            np.array([token for ids in self._controls for token in ids], np.uint32),
            np.array([len(ids) for ids in self._controls], np.int64),
        )
        encoded = (
            encode(texts) if texts else laid_end_to_end([])
            for encode, texts in zip((self._encoders.start, self._encoders.inside), self.texts, strict=True)
        )
        pools = [controls, *encoded]
        lengths = np.concatenate([pool.lengths for pool in pools])
        starts = np.cumsum(lengths) - lengths
        first_of_pool = np.cumsum([0, *(len(pool.lengths) for pool in pools[:-1])])
        piece = first_of_pool[np.array(self.pool, np.int64)] + np.array(self.index, np.int64)
        return np.concatenate([pool.flat for pool in pools]), starts[piece], lengths[piece]


def encode_records(encoders: Encoders, records: ListLike[Record]) -> Encoded:
    """The records' documents, in order. An empty list gives no documents."""
    is_plain = np.array([_is_plain(record) for record in records], bool)
    if is_plain.all():
        return _encode_plain(encoders, [record.segments[0].text for record in records])
    plain = _encode_plain(encoders, [record.segments[0].text for record in compress(records, is_plain)])
    others = _encode_segments(encoders, list(compress(records, ~is_plain)))
    together = Encoded(*map(np.concatenate, zip(_columns(plain), _columns(others), strict=True)))
    order = np.concatenate([np.flatnonzero(is_plain), np.flatnonzero(~is_plain)])
    return chosen_documents(together, np.argsort(order))


def _is_plain(record: Record) -> bool:
    only = record.segments[0]
    return len(record.segments) == 1 and not record.is_framed and only.has_loss and not only.is_control


def _columns(encoded: Encoded) -> tuple[np.ndarray, ...]:
    return encoded.tokens, encoded.lengths, encoded.spans, encoded.num_spans, encoded.has_text


def _encode_plain(encoders: Encoders, texts: ListLike[str]) -> Encoded:
    """BOS + text + EOS, all of which bears loss: nearly every document of a corpus, so it is done for all at once."""
    ids = encoders.start(texts) if texts else laid_end_to_end([])
    num_before, num_behind = len(encoders.prefix_ids), len(encoders.eos_ids)
    lengths = num_before + ids.lengths + num_behind
    ends = np.cumsum(lengths)
    tokens = np.empty(int(lengths.sum()), np.uint32)
    is_text = np.ones(len(tokens), bool)
    for offset, token in enumerate(encoders.prefix_ids):
        tokens[ends - lengths + offset] = token
        is_text[ends - lengths + offset] = False
    for offset, token in enumerate(encoders.eos_ids):
        tokens[ends - num_behind + offset] = token
        is_text[ends - num_behind + offset] = False
    tokens[is_text] = ids.flat
    spans = np.stack([np.zeros(len(lengths), np.int64), lengths], axis=1).reshape(-1)
    num_spans = (lengths > 0).astype(np.int64)
    return Encoded(tokens, lengths, spans[np.repeat(lengths > 0, 2)], num_spans, ids.lengths > 0)


def _encode_segments(encoders: Encoders, records: ListLike[Record]) -> Encoded:
    pieces = _Pieces(encoders)
    for record in records:
        pieces.add(record)
    flat, start, length = pieces.ids()
    num_pieces = np.array(pieces.num_pieces, np.int64)
    has_loss = np.array(pieces.has_loss, bool)
    first_piece = np.cumsum(num_pieces) - num_pieces
    document = np.repeat(np.arange(len(num_pieces)), num_pieces)
    is_text = np.array(pieces.pool, np.int64) != CONTROL
    text_tokens = np.bincount(document, length * (is_text & has_loss), minlength=len(num_pieces))
    spans, num_spans = _loss_spans(has_loss, length, document, first_piece)
    return Encoded(
        tokens=gathered(flat, start, length),
        lengths=np.bincount(document, length, minlength=len(num_pieces)).astype(np.int64),
        spans=spans,
        num_spans=num_spans,
        has_text=text_tokens > 0,
    )


def _loss_spans(
    has_loss: np.ndarray, length: np.ndarray, document: np.ndarray, first_piece: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Runs of neighbouring pieces of one document that bear loss and hold tokens: borders, and runs a document."""
    end = np.cumsum(length)
    origin = (end - length)[first_piece][document] if len(document) else end  # where the document begins
    kept = np.flatnonzero(has_loss & (length > 0))
    begins, ends, of = (end - length)[kept], end[kept], document[kept]
    opens = np.ones(len(kept), bool)
    opens[1:] = (begins[1:] != ends[:-1]) | (of[1:] != of[:-1])
    closes = np.append(opens[1:], True)[: len(kept)]
    borders = np.stack([begins[opens] - origin[kept][opens], ends[closes] - origin[kept][closes]], axis=1)
    return borders.reshape(-1), np.bincount(of[opens], minlength=len(first_piece))


def chosen_documents(encoded: Encoded, places: np.ndarray) -> Encoded:
    """The documents at `places` [int64], in this order."""
    starts = np.cumsum(encoded.lengths) - encoded.lengths
    num_borders = 2 * encoded.num_spans
    borders = np.cumsum(num_borders) - num_borders
    return Encoded(
        gathered(encoded.tokens, starts[places], encoded.lengths[places]),
        encoded.lengths[places],
        gathered(encoded.spans, borders[places], num_borders[places]),
        encoded.num_spans[places],
        encoded.has_text[places],
    )


def gathered(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """values[starts[0] :] up to lengths[0] of them, then those of the next piece, laid end to end.

    Slices, because an index array over every token takes five times as long.
    """
    pieces = [values[start:stop] for start, stop in zip(starts.tolist(), (starts + lengths).tolist(), strict=True)]
    return np.concatenate(pieces) if pieces else values[:0]


def bears_loss_whole(encoded: Encoded) -> bool:
    """Whether every token bears loss, as in most corpora."""
    return int((encoded.spans[1::2] - encoded.spans[0::2]).sum()) == len(encoded.tokens)


def labels_of(encoded: Encoded) -> np.ndarray:
    """[tokens] int32: the ids themselves, IGNORED_LABEL for those that bear no loss."""
    origin = np.repeat(np.cumsum(encoded.lengths) - encoded.lengths, encoded.num_spans)
    labels = np.full(len(encoded.tokens), IGNORED_LABEL, np.int32)
    starts, stops = encoded.spans[0::2] + origin, encoded.spans[1::2] + origin
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        labels[start:stop] = encoded.tokens[start:stop]
    return labels
