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


class Ids(NamedTuple):
    """Ids of some texts, end to end: `flat` [tokens] uint32, `lengths` [texts] int64."""

    flat: np.ndarray
    lengths: np.ndarray


Encode = Callable[[Sequence[str]], Ids]


class BackendDiffersError(Exception):
    """A fast backend gave other ids than the reference on a document of the corpus."""


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


def lazy_backend(name: BackendName, encoder: TextEncoder, tokenizer_dir: Path, continuation: bool) -> Encode:
    """The same, but loaded with the first text: a large vocabulary takes a second."""
    loaded: list[Encode] = []

    def encode(texts: Sequence[str]) -> Ids:
        if not loaded:
            loaded.append(make_backend(name, encoder, tokenizer_dir, continuation))
        return loaded[0](texts)

    return encode


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
