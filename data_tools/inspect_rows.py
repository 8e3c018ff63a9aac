"""Command: a prepared dataset and its tokenizer come in, rows as a person reads them go out.

A row is shown document by document, with what bears no loss marked and control tokens told apart from text.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from simple_parsing import field

from data_tools.bins import Bin, Bins, open_bins
from data_tools.encode import IGNORED_LABEL
from data_tools.visible import terminal, visible, visible_name
from tokenizer_tools.command import UserError, command
from tokenizer_tools.tokenizer import TextEncoder, fingerprint, load_tokenizer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from data_tools.token_text import TokenText

MASKED_BRACKETS = ("⟦", "⟧")  # hardly any text has them


@dataclass
class InspectRowsConfig:
    """Show rows of a prepared dataset as text: documents, masked parts, control tokens.

    On a terminal text without loss is dim and control tokens are coloured; elsewhere text without loss stands in ⟦ ⟧.
    --json also tells a control token from text that only spells one.
    """

    dataset: Path
    """A directory written by prepare_pretrain_dataset, or one of its buckets"""
    tokenizer_dir: Path
    """The tokenizer that it was prepared with"""
    bucket: int = 0
    """Number of the bucket, from 0, where --dataset holds several"""
    row: list[int] = field(default_factory=list)
    """Numbers of rows of the bucket, from 0; default: the first ones"""
    num_rows: int = 3
    """How many rows to show if --row names none"""
    json: bool = False
    """Print one JSON document instead of text"""


@dataclass(frozen=True)
class Part:
    """Neighbouring tokens that all bear loss or all bear none, and all are control tokens or all are text."""

    text: str
    has_loss: bool
    is_control: bool


@dataclass(frozen=True)
class Document:
    """A document, or what a row holds of one that was cut. `begins` and `ends` are None where the ids do not tell.

    `source` is `file:line`, None where the dataset does not say.
    """

    category: str
    tokens: int
    loss_tokens: int
    begins: bool | None
    ends: bool | None
    source: str | None
    text: str
    parts: list[Part]


@command(InspectRowsConfig)
def main(config: InspectRowsConfig) -> None:
    """The command: see InspectRowsConfig for its flags."""
    if config.num_rows < 1:
        raise UserError(f"--num_rows {config.num_rows}: nothing would be shown; choose 1 or more")
    bins = open_bins([config.dataset])
    opened = _choose_bucket(config, bins)
    numbers = _choose_rows(config, opened)
    reader = _reader_of(config, bins)
    rows = {number: reader.documents(opened, number) for number in numbers}
    if config.json:
        found = [{"row": number, "documents": list(map(asdict, documents))} for number, documents in rows.items()]
        print(json.dumps({"bucket": opened.path.name, "rows": found}, ensure_ascii=False, indent=2))
    else:
        print_rows(opened, rows)


def _choose_bucket(config: InspectRowsConfig, bins: Bins) -> Bin:
    """Raises UserError for a bucket that is not there or holds nothing."""
    num_buckets = len(bins.bins)
    if not 0 <= config.bucket < num_buckets:
        raise UserError(
            f"--bucket {config.bucket}: {config.dataset} has {num_buckets} of them, counted from 0; choose 0 to "
            f"{num_buckets - 1}"
        )
    opened = bins.bins[config.bucket]
    if not opened.num_rows:
        raise UserError(f"--bucket {config.bucket}: {opened.path.name} holds no row; choose another one")
    return opened


def _choose_rows(config: InspectRowsConfig, opened: Bin) -> list[int]:
    """Raises UserError for a row that is not there."""
    for number in config.row:
        if not 0 <= number < opened.num_rows:
            raise UserError(
                f"--row {number}: {opened.path.name} has {opened.num_rows} rows, counted from 0; choose 0 to "
                f"{opened.num_rows - 1}"
            )
    return config.row or list(range(min(config.num_rows, opened.num_rows)))


def _reader_of(config: InspectRowsConfig, bins: Bins) -> RowReader:
    """Raises UserError if the tokenizer is not the one of the dataset: its ids would read as other text."""
    from data_tools.token_text import TokenText

    tokenizer = load_tokenizer(config.tokenizer_dir)
    found, expected = fingerprint(tokenizer), bins.tokenizer_fingerprint
    if found != expected:
        raise UserError(
            f"--tokenizer_dir {config.tokenizer_dir}: tokenizer {found[:12]}, but {config.dataset} was prepared with "
            f"tokenizer {expected[:12]}; name that one"
        )
    encoder = TextEncoder(tokenizer)
    return RowReader(TokenText(tokenizer), encoder.prefix_ids, encoder.eos_ids, bins)


class RowReader:
    """Turns rows of `bins` into documents; `prefix_ids` and `eos_ids` frame every plain document (or are empty)."""

    def __init__(self, token_text: TokenText, prefix_ids: list[int], eos_ids: list[int], bins: Bins) -> None:
        self._token_text = token_text
        self._prefix_ids = prefix_ids
        self._eos_ids = eos_ids
        self._max_length = bins.max_length
        self._categories = bins.categories

    def documents(self, opened: Bin, number: int) -> list[Document]:
        """The documents of row `number`. Raises UserError if the row holds ids that mean nothing."""
        row = opened.row(number)
        borders = np.cumsum(row.document_lengths)[:-1]
        pieces = zip(np.split(row.input_ids, borders), np.split(row.labels, borders), strict=True)
        categories = [self._categories[index] for index in row.document_categories]
        sources: Sequence[str | None] = opened.sources(number) or [None] * len(categories)
        try:
            return [
                self._document(category, source, ids.tolist(), (labels != IGNORED_LABEL).tolist())
                for category, source, (ids, labels) in zip(categories, sources, pieces, strict=True)
            ]
        except KeyError as error:
            raise UserError(
                f"{opened.path}: row {number} holds id {error}, which its tokenizer does not have; the rows are "
                "damaged, copy or prepare the dataset again"
            ) from None

    def _document(self, category: str, source: str | None, ids: list[int], has_loss: list[bool]) -> Document:
        control_ids = self._token_text.control_ids
        kinds = [(loss, i in control_ids) for i, loss in zip(ids, has_loss, strict=True)]
        parts: list[Part] = []
        for (loss, is_control), group in groupby(range(len(ids)), key=kinds.__getitem__):
            parts.append(Part(self._token_text.text([ids[place] for place in group]), loss, is_control))
        text = "".join(part.text for part in parts)
        return Document(category, len(ids), sum(has_loss), self._begins(ids), self._ends(ids), source, text, parts)

    def _begins(self, ids: list[int]) -> bool | None:
        """Chats bring control tokens of their own: where one stands first, the ids do not tell."""
        if not self._prefix_ids or ids[:1] == self._prefix_ids:
            return True if self._prefix_ids else None
        return None if ids[0] in self._token_text.control_ids else False

    def _ends(self, ids: list[int]) -> bool | None:
        """Only documents that fill the row go on in another one: `pack` cuts nowhere else."""
        if len(ids) < self._max_length or ids[-1:] == self._eos_ids:
            return True
        return None if ids[-1] in self._token_text.control_ids else False


def print_rows(opened: Bin, rows: dict[int, list[Document]]) -> None:
    """The rows on stdout, coloured where that is possible."""
    console = terminal()
    has_colours = console.color_system is not None and not console.no_color
    for number, documents in rows.items():
        print(_styled(console, _title(opened, number, documents)))
        for place, document in enumerate(documents, start=1):
            print(_styled(console, _border(place, document)))
            print(_styled(console, coloured(document)) if has_colours else bracketed(document))
        print()


def _styled(console: Console, text: Text) -> str:
    """What the console would print, markup and all."""
    with console.capture() as captured:
        console.print(text, soft_wrap=True, end="")
    return captured.get()


def _title(opened: Bin, number: int, documents: list[Document]) -> Text:
    from rich.text import Text

    num_tokens = sum(document.tokens for document in documents)
    counts = f"{num_tokens} tokens, {len(documents)} document{'s' if len(documents) > 1 else ''}"
    return Text(f"{opened.path.name}, row {number} of {opened.num_rows}: {counts}", style="bold")


def _border(place: int, document: Document) -> Text:
    from rich.text import Text

    num_masked = document.tokens - document.loss_tokens
    facts = [f"document {place}", visible_name(document.category), f"{document.tokens} tokens"]
    facts += [f"{num_masked} without loss"] if num_masked else []
    facts += ["goes on from another row"] if document.begins is False else []
    facts += ["is cut at the end of the row"] if document.ends is False else []
    facts += [visible_name(document.source)] if document.source else []
    return Text(f"── {' · '.join(facts)} ──", style="yellow")


def coloured(document: Document) -> Text:
    """The document with control tokens in colour and masked parts dim."""
    from rich.text import Text

    text = Text()
    for part in document.parts:
        style = ("cyan" if part.is_control else "") + ("" if part.has_loss else " dim")
        text.append(visible(part.text), style=style.strip())
    return text


def bracketed(document: Document) -> str:
    """The document with masked parts in MASKED_BRACKETS."""
    opening, closing = MASKED_BRACKETS
    texts = []
    for has_loss, parts in groupby(document.parts, key=lambda part: part.has_loss):
        text = visible("".join(part.text for part in parts))
        texts.append(text if has_loss else opening + text + closing)
    return "".join(texts)


if __name__ == "__main__":
    sys.exit(main())
