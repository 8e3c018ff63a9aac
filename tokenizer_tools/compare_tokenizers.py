"""Compare tokenizers on the same text: directories and data come in, a table (or one JSON document) goes out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from simple_parsing import field
from tqdm import tqdm

from tokenizer_tools.command import UserError, command
from tokenizer_tools.texts import find_text_files, read_texts, split_paths
from tokenizer_tools.tokenizer import TextEncoder, load_tokenizer

DOCUMENTS_PER_BATCH = 512
COLUMNS = {  # heading of the table: name of the figure, its form
    "documents": ("documents", "{:,}"),
    "tokens": ("tokens", "{:,}"),
    "tokens/char": ("tokens_per_character", "{:.4f}"),
    "tokens/byte": ("tokens_per_byte", "{:.4f}"),
    "tokens/doc": ("tokens_per_document", "{:.1f}"),
}


@dataclass
class CompareTokenizersConfig:
    """Vocabulary size, compression and average length of tokenizers on the same text, per category."""

    tokenizers: list[Path] = field(positional=True)
    """tokenizer directories"""
    data: str = field()
    """.jsonl or .txt files or directories of them, separated by commas"""
    json: bool = False
    """print one JSON document instead of tables"""


@dataclass
class Counts:
    """What a tokenizer made of some documents."""

    documents: int = 0
    tokens: int = 0
    characters: int = 0
    bytes: int = 0

    def add(self, text: str, num_tokens: int) -> None:
        """Count one document."""
        self.documents += 1
        self.tokens += num_tokens
        self.characters += len(text)
        self.bytes += len(text.encode())

    def figures(self) -> dict[str, float]:
        """The counts and their ratios, by their names in the JSON document; a ratio of no text is 0."""
        return {
            **vars(self),
            "tokens_per_character": self.tokens / max(self.characters, 1),
            "tokens_per_byte": self.tokens / max(self.bytes, 1),
            "tokens_per_document": self.tokens / max(self.documents, 1),
        }


@command(CompareTokenizersConfig)
def main(config: CompareTokenizersConfig) -> None:
    """The command: see CompareTokenizersConfig for its flags."""
    if not config.tokenizers:
        raise UserError("no tokenizer directory given; name one or more")
    files = find_text_files(split_paths(config.data))
    if not files:
        raise UserError("--data names no path; name .jsonl or .txt files or directories of them")
    tokenizers = {str(directory): load_tokenizer(directory) for directory in config.tokenizers}
    encoders = {name: TextEncoder(tokenizer) for name, tokenizer in tokenizers.items()}
    documents = tqdm(read_texts(files), desc="encoding", unit="doc", disable=None)
    counts = compare(encoders, documents)
    result = {name: {"vocab_size": len(tokenizers[name]), **_figures(counts[name])} for name in tokenizers}
    if config.json:
        print(json.dumps({"tokenizers": result}, ensure_ascii=False, indent=2))
    else:
        _print_tables(result)


def compare(encoders: dict[str, TextEncoder], documents: Iterable[tuple[str, str]]) -> dict[str, dict[str, Counts]]:
    """{encoder: {category: counts}} over (category, text) documents. Control tokens (BOS, EOS) are not counted."""
    counts: dict[str, dict[str, Counts]] = {name: {} for name in encoders}
    for batch in _batches(documents):
        texts = [text for _, text in batch]
        for name, encoder in encoders.items():
            for (category, text), ids in zip(batch, encoder.encode_batch(texts), strict=True):
                counts[name].setdefault(category, Counts()).add(text, len(ids))
    return counts


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    iterator = iter(documents)
    while batch := list(islice(iterator, DOCUMENTS_PER_BATCH)):
        yield batch


def _figures(counts: dict[str, Counts]) -> dict[str, dict]:
    total = Counts(*(sum(column) for column in zip(*(vars(each).values() for each in counts.values()), strict=True)))
    return {
        "categories": {category: counts[category].figures() for category in sorted(counts)},
        "total": total.figures(),
    }


def _print_tables(result: dict[str, dict]) -> None:
    """A table a tokenizer on stdout, one line a category."""
    for name, tokenizer in result.items():
        table = Table(title=f"{name}: {tokenizer['vocab_size']} pieces", title_justify="left", box=SIMPLE)
        table.add_column("category")
        for heading in COLUMNS:
            table.add_column(heading, justify="right", no_wrap=True)
        for category, figures in [*tokenizer["categories"].items(), ("total", tokenizer["total"])]:
            cells = [form.format(figures[key]) for key, form in COLUMNS.values()]
            table.add_row(category, *cells)
        Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
