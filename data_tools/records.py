"""What a document is to every other room: the contract between readers, encoder and ledger. Plain data."""

from __future__ import annotations

from typing import NamedTuple

DEFAULT_CATEGORY = "default"


class Segment(NamedTuple):
    """A stretch of a document that bears loss as a whole or not at all.

    `text` is plain text, in which a spelt control token (`</s>`) means nothing; with `is_control` it is the spelling of
    exactly one control token of the tokenizer and is meant as such.
    """

    text: str
    has_loss: bool
    is_control: bool


class Record(NamedTuple):
    """One document: clean text (UTF-8 can hold it, no NUL) and the place it came from.

    A document that `is_framed` brings its BOS and EOS as control segments; to any other the encoder adds them.
    `line_number` counts from 1 at the first line of the span that was read (rows in a table), `byte_offset` is where
    the record begins in the file, after decompression; None in Parquet.
    """

    segments: tuple[Segment, ...]
    is_framed: bool
    category: str
    file: str
    line_number: int
    byte_offset: int | None


class Refusal(NamedTuple):
    """One document that cannot be used, or one file of which the rest cannot, and why: a word in snake_case.

    The place is told as in `Record`. `category` is None where the document does not tell it.
    """

    file: str
    line_number: int
    byte_offset: int | None
    reason: str
    category: str | None
