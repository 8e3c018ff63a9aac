"""What tokenizers make of documents: (category, text) pairs come in, counts and their ratios go out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import sentencepiece

from tokenizer_tools.command import UserError
from tokenizer_tools.languages import language_of
from tokenizer_tools.tokenizer import TextEncoder, load_tokenizer

DOCUMENTS_PER_BATCH = 512
JSON_FILE = "tokenizer.json"

if TYPE_CHECKING:
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast


class Encoder(Protocol):
    """Texts -> ids without BOS and EOS."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """One list of ids a text."""


class SentencePieceEncoder:
    """A bare sentencepiece model, BPE, unigram, word or character."""

    def __init__(self, path: Path) -> None:
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=path.read_bytes())
        except RuntimeError:  # whatever its parser says
            raise UserError(
                f"{path}: not a sentencepiece model, or only a part of one; name a tokenizer directory or a .model file"
            ) from None
        self.vocab_size: int = self._processor.get_piece_size()

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """One list of ids a text."""
        return self._processor.encode(list(texts))


def open_tokenizer(path: Path) -> tuple[int, Encoder]:
    """(vocabulary size, encoder) of a tokenizer directory or a sentencepiece file. Raises UserError for neither."""
    if path.is_file():
        model = SentencePieceEncoder(path)
        return model.vocab_size, model
    only_json = path.is_dir() and [file.name for file in path.iterdir()] == [JSON_FILE]
    tokenizer = _load_json(path / JSON_FILE) if only_json else load_tokenizer(path)
    return len(tokenizer), TextEncoder(tokenizer)


def _load_json(path: Path) -> PreTrainedTokenizerFast:
    """A tokenizer.json without settings, of which AutoTokenizer could not tell the class."""
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast(tokenizer_file=str(path))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{path}: not a readable tokenizer ({error}); fetch the file again") from None


@dataclass
class Counts:
    """What a tokenizer made of some documents."""

    documents: int = 0
    tokens: int = 0
    characters: int = 0
    bytes: int = 0

    def add(self, other: Counts) -> None:
        """Count other documents too."""
        self.documents += other.documents
        self.tokens += other.tokens
        self.characters += other.characters
        self.bytes += other.bytes

    def figures(self) -> dict[str, float]:
        """The counts and their ratios, by their names in the JSON document; a ratio of no text is 0."""
        return {
            **vars(self),
            "tokens_per_character": self.tokens / max(self.characters, 1),
            "tokens_per_byte": self.tokens / max(self.bytes, 1),
            "tokens_per_document": self.tokens / max(self.documents, 1),
        }


@dataclass
class Tally:
    """The counts of one tokenizer: in all, by category and by language."""

    total: Counts
    categories: dict[str, Counts]
    languages: dict[str, Counts]

    def add(self, category: str, language: str, counts: Counts) -> None:
        """Count a document wherever it belongs."""
        self.total.add(counts)
        self.categories.setdefault(category, Counts()).add(counts)
        self.languages.setdefault(language, Counts()).add(counts)

    def figures(self) -> dict[str, dict]:
        """{"categories": {name: figures}, "languages": {name: figures}, "total": figures}, names in order."""
        return {
            "categories": {name: self.categories[name].figures() for name in sorted(self.categories)},
            "languages": {name: self.languages[name].figures() for name in sorted(self.languages)},
            "total": self.total.figures(),
        }


def tally(encoders: Mapping[str, Encoder], documents: Iterable[tuple[str, str]]) -> dict[str, Tally]:
    """{encoder: its tally} over (category, text) documents. Control tokens (BOS, EOS) are not counted."""
    tallies = {name: Tally(Counts(), {}, {}) for name in encoders}
    for batch in batches(documents):
        texts = [text for _, text in batch]
        languages = [language_of(text) for text in texts]
        for name, encoder in encoders.items():
            encoded = encoder.encode_batch(texts)
            for (category, text), language, ids in zip(batch, languages, encoded, strict=True):
                tallies[name].add(category, language, Counts(1, len(ids), len(text), len(text.encode())))
    return tallies


def batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Lists of at most DOCUMENTS_PER_BATCH documents, in order."""
    iterator = iter(documents)
    while batch := list(islice(iterator, DOCUMENTS_PER_BATCH)):
        yield batch
