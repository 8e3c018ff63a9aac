"""Which library encodes: some documents of the corpus come in, the fastest that gives their very ids goes out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import islice

import numpy as np

from data_tools.backends import FASTEST_FIRST, REFERENCE, BackendDiffersError, BackendName
from data_tools.encode import encode_records
from data_tools.input_files import Span, format_of
from data_tools.parts import Part
from data_tools.readers import read_span
from data_tools.records import Record
from data_tools.tools import Tools
from tokenizer_tools.command import UserError

SAMPLE_PLACES = 32
RECORDS_A_PLACE = 8
PLACE_BYTES = 2**14
MOST_CHARACTERS = 2**13  # a longer document proves little more and costs the reference much

logger = logging.getLogger(__name__)


def sample_records(parts: Sequence[Part], tools: Tools) -> list[Record]:
    """Some documents from places all over the corpus, those of moderate length."""
    spans = [span for part in parts for span in part.spans if span.stop > span.start]
    records: list[Record] = []
    for index in np.unique(np.linspace(0, len(spans) - 1, SAMPLE_PLACES).astype(int)).tolist() if spans else []:
        found = (item for item in read_span(_beginning(spans[index]), tools.read_options) if isinstance(item, Record))
        records += islice((record for record in found if _num_characters(record) <= MOST_CHARACTERS), RECORDS_A_PLACE)
    return records


def _beginning(span: Span) -> Span:
    """The first PLACE_BYTES, where lines are read; other readers need not go on after some documents."""
    is_cut = format_of(span.path) == ("jsonl", "")
    return Span(span.path, span.start, min(span.stop, span.start + PLACE_BYTES)) if is_cut else span


def _num_characters(record: Record) -> int:
    return sum(len(segment.text) for segment in record.segments)


def check_backend(tools: Tools, name: BackendName) -> None:
    """Raise UserError if the user's choice of a library cannot take the tokenizer."""
    try:
        tools.encoders(name).start(["text"])
    except BackendDiffersError:
        raise  # then the reference is used
    except Exception as error:  # a library may refuse a tokenizer in any way it likes
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"--backend {name}: cannot take this tokenizer ({reason}); choose auto") from None


def fastest_exact(tools: Tools, records: Sequence[Record]) -> BackendName:
    """The first of FASTEST_FIRST that gives the reference's ids on the records; says why the others are not taken."""
    expected = encode_records(tools.reference, records)
    for name in FASTEST_FIRST[:-1]:
        try:
            found = encode_records(tools.encoders(name), records)
        except BackendDiffersError as error:
            logger.warning("warning: %s; it is not used", error)
            continue
        except Exception as error:  # a library may refuse a tokenizer in any way it likes
            logger.info("%s cannot take this tokenizer: %s", name, " ".join(str(error).split())[:160])
            continue
        if np.array_equal(found.lengths, expected.lengths) and np.array_equal(found.tokens, expected.tokens):
            return name
        logger.warning("warning: %s gives other ids than the tokenizer does on this text; it is not used", name)
    return REFERENCE
