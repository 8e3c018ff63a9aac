"""JSON documents: lines or elements come in, a record or a refusal for each goes out.

orjson reads what is clean; what it refuses is read again by Python's json, which is slower, tells what is wrong, and
takes some documents that orjson does not (NaN in a field of no interest, half a surrogate pair in another).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import orjson

from data_tools.fields import Reading, category_of, document_of, is_unicode
from data_tools.records import Record, Refusal
from data_tools.streams import Piece

INVALID_JSON = "invalid_json"
INVALID_UTF8 = "invalid_utf8"
NOT_AN_OBJECT = "not_an_object"


def read_json(pieces: Iterable[Piece], reading: Reading) -> Iterator[Record | Refusal]:
    """The document of each piece. Blank lines are no documents."""
    loads, file = orjson.loads, reading.file
    for number, offset, data in pieces:
        if isinstance(data, str):
            yield Refusal(file, number, offset, data, None)
            continue
        try:
            value = loads(data)
        except orjson.JSONDecodeError:
            if data.strip():
                yield _read_slowly(data, reading, number, offset)
            continue
        if isinstance(value, dict):
            yield document_of(value, reading, number, offset)
        else:
            yield Refusal(file, number, offset, NOT_AN_OBJECT, None)


def _read_slowly(data: bytes, reading: Reading, number: int, offset: int) -> Record | Refusal:
    options, file = reading
    value = _load(data)
    if isinstance(value, str):
        return Refusal(file, number, offset, value, None)
    for name in (options.category_field, options.source_field, options.text_field):
        if isinstance(value.get(name), str) and not is_unicode(value[name]):
            return Refusal(file, number, offset, f"{name}_with_lone_surrogate", category_of(value, options))
    return document_of(value, reading, number, offset)


def _load(data: bytes) -> dict[str, Any] | str:
    """The JSON object in `data`, or the reason why there is none."""
    try:
        value = json.loads(data.decode("utf-8"), parse_int=float)  # int() refuses thousands of digits
    except UnicodeDecodeError:
        return INVALID_UTF8
    except (ValueError, RecursionError):  # no JSON, thousands of brackets
        return INVALID_JSON
    return value if isinstance(value, dict) else NOT_AN_OBJECT
