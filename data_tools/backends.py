"""Libraries that encode text: a tokenizer comes in, the fastest one that gives its very ids goes out.

The reference is `tokenizers`, which transformers itself uses. A faster library is used only after it has given equal
ids on documents of the very corpus (`prove.py`), and is held against the reference on a few documents of every part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from tokenizer_tools.tokenizer import TextEncoder

BackendName = Literal["gigatoken", "sentencepiece", "tokenizers"]
REFERENCE: BackendName = "tokenizers"
FASTEST_FIRST: tuple[BackendName, ...] = ("gigatoken", "sentencepiece", "tokenizers")
SENTENCEPIECE_MODEL = "tokenizer.model"

# What libraries differ in: blanks at a text's start, control tokens and byte tokens spelt as text, composed characters,
# compatibility forms, characters that no piece holds, long runs.
PROBES = (
    *(" x", "  x", "\tx", "\nx", "x ", "\u3000x", "\u00a0x", "x\r\ny", "</s> <s><unk> <0x41>", "▁x", "\u200bx\ufeff"),
    *("e\u0301 é", "ﬁ Ａ①", "🙂👩‍👩‍👧", "龘𠀀\U0010ffff", "a" * 500, "你" * 500, "1234567890", "İı ẞß", "\x01\x7f"),
)


class Ids(NamedTuple):
    """Ids of some texts, end to end: `flat` [tokens] uint32, `lengths` [texts] int64."""

    flat: np.ndarray
    lengths: np.ndarray


Encode = Callable[[Sequence[str]], Ids]


class BackendDiffersError(Exception):
    """A fast library gave other ids than the reference, on a document of the corpus or on one of PROBES."""


def make_backend(name: BackendName, encoder: TextEncoder, tokenizer_dir: Path, continuation: bool) -> Encode:
    """The function text -> ids of one library. Raises whatever the library raises for a tokenizer it cannot take."""
    if name == "gigatoken":
        return _gigatoken(encoder.layout(continuation))
    if name == "sentencepiece":
        return _sentencepiece(tokenizer_dir / SENTENCEPIECE_MODEL, continuation)
    return reference_backend(encoder, continuation)


def reference_backend(encoder: TextEncoder, continuation: bool) -> Encode:
    """The library that transformers itself uses."""

    def encode(texts: Sequence[str]) -> Ids:
        return laid_end_to_end(encoder.encode_batch(texts, continuation))

    return encode


def proved_backend(name: BackendName, encoder: TextEncoder, tokenizer_dir: Path, continuation: bool) -> Encode:
    """The same, loaded with the first text (a large vocabulary takes a second) and then held against PROBES.

    The function raises BackendDiffersError if the library and the reference disagree there.
    """
    loaded: list[Encode] = []

    def encode(texts: Sequence[str]) -> Ids:
        if not loaded:
            backend = make_backend(name, encoder, tokenizer_dir, continuation)
            if name != REFERENCE and not same_ids(backend(PROBES), reference_backend(encoder, continuation)(PROBES)):
                raise BackendDiffersError(f"{name} gives other ids than the tokenizer does")
            loaded.append(backend)
        return loaded[0](texts)

    return encode


def same_ids(one: Ids, other: Ids) -> bool:
    """Whether two libraries agree on every text."""
    return np.array_equal(one.lengths, other.lengths) and np.array_equal(one.flat, other.flat)


def _gigatoken(layout: str) -> Encode:
    """Without the control tokens, which it would find in text, and without a post-processor."""
    import gigatoken
    import orjson

    value: dict[str, Any] = orjson.loads(layout)
    value["added_tokens"] = [token for token in value["added_tokens"] if not token["special"]]
    value["post_processor"] = None
    tokenizer = gigatoken.Tokenizer.from_json(orjson.dumps(value))

    def encode(texts: Sequence[str]) -> Ids:
        layout = tokenizer.encode_batch(list(texts), parallel=False).layout
        offsets = np.asarray(layout.offsets.data, np.int64)
        return Ids(np.asarray(layout.content.data, np.uint32)[offsets[0] : offsets[-1]], np.diff(offsets))

    return encode


def _sentencepiece(model_file: Path, continuation: bool) -> Encode:
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(model_file.read_bytes())
    if continuation:
        model.normalizer_spec.add_dummy_prefix = False
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())

    def encode(texts: Sequence[str]) -> Ids:
        return laid_end_to_end(processor.encode(list(texts), num_threads=1))

    return encode


def laid_end_to_end(ids: Sequence[Sequence[int]]) -> Ids:
    """Lists of ids as arrays."""
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    flat = np.fromiter((token for one in ids for token in one), np.uint32, int(lengths.sum()))
    return Ids(flat, lengths)
