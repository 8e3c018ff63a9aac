"""One object of named fields -> a document: a row or a JSON object comes in, a `Record` or a `Refusal` goes out. Pure.

The text field makes the document; without one, `messages` or `conversations` do. The text must hold more than blanks;
a source may be missing, null or empty, a category too (DEFAULT_CATEGORY). Other fields are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from data_tools.chat import ChatTemplate, messages_of
from data_tools.records import DEFAULT_CATEGORY, Record, Refusal, Segment
from data_tools.streams import OVER_LONG
from data_tools.turns import segments_of_turns

NO_CHAT_TEMPLATE = "no_chat_template"
CHAT_FIELDS = ("messages", "conversations")


@dataclass(frozen=True)
class ReadOptions:
    """How files become documents; can be pickled.

    `txt_documents` is "file", "line" or "blank_lines": what of a .txt file is a document. `text_format` is "plain" or
    "human_assistant"; the latter's `<s>` and `</s>` become `bos_token` (None: nothing) and `eos_token`. `chat` turns
    messages into text; without one they are refused.
    """

    text_field: str = "target"
    source_field: str = "source"
    category_field: str = "category"
    txt_documents: str = "file"
    text_format: str = "plain"
    max_document_bytes: int = 2**26
    bos_token: str | None = "<s>"
    eos_token: str = "</s>"
    chat: ChatTemplate | None = None


class Reading(NamedTuple):
    """What every reader is told: how to read, and the file's name."""

    options: ReadOptions
    file: str


def document_of(
    fields: Mapping[str, Any], reading: Reading, line_number: int, byte_offset: int | None
) -> Record | Refusal:
    """The record that the fields hold, or the reason why they hold none."""
    options, file = reading
    text: Any = fields.get(options.text_field)
    source = fields.get(options.source_field)
    category = fields.get(options.category_field)
    reason = _fault(options.category_field, category)
    if reason is None and text is None:
        return _conversation(fields, reading, line_number, byte_offset)
    reason = reason or _fault(options.source_field, source) or _fault(options.text_field, text)
    if reason is None and (not text or text.isspace()):
        reason = f"empty_{options.text_field}"
    if reason is None and len(text) > options.max_document_bytes:
        reason = OVER_LONG
    if reason is not None:
        return Refusal(file, line_number, byte_offset, reason, category_of(fields, options))
    category = category or DEFAULT_CATEGORY
    if options.text_format == "human_assistant":
        segments = segments_of_turns(text, options.bos_token, options.eos_token)
        if isinstance(segments, str):
            return Refusal(file, line_number, byte_offset, segments, category)
        return Record(segments, True, category, file, line_number, byte_offset)
    if source:
        with_source = (Segment(source, False, False), Segment(text, True, False))
        return Record(with_source, False, category, file, line_number, byte_offset)
    return Record((Segment(text, True, False),), False, category, file, line_number, byte_offset)


def category_of(fields: Mapping[str, Any], options: ReadOptions) -> str | None:
    """The category of a refused document, None if the category itself is at fault."""
    category = fields.get(options.category_field) or DEFAULT_CATEGORY
    is_clean = isinstance(category, str) and "\0" not in category and is_unicode(category)
    return category if is_clean else None


def is_unicode(text: str) -> bool:
    """False for a lone half of a surrogate pair, which JSON can spell (`\\ud800`) and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _fault(name: str, text: object) -> str | None:
    """What a text must not be; whether it is Unicode has been seen to by who read it. None is no fault."""
    if text is None:
        return None
    if not isinstance(text, str):
        return f"{name}_not_a_string"
    return f"{name}_with_nul" if "\0" in text else None


def _conversation(
    fields: Mapping[str, Any], reading: Reading, line_number: int, byte_offset: int | None
) -> Record | Refusal:
    """The document of an object without text: its messages through the chat template, if it has any."""
    options, file = reading
    category = category_of(fields, options)
    name = next((name for name in CHAT_FIELDS if fields.get(name) is not None), None)
    segments: tuple[Segment, ...] | str
    if name is None:
        segments = f"missing_{options.text_field}"
    elif options.chat is None:
        segments = NO_CHAT_TEMPLATE
    else:
        messages = messages_of(fields[name], name)
        segments = messages if isinstance(messages, str) else options.chat.segments(messages)
    if isinstance(segments, str):
        return Refusal(file, line_number, byte_offset, segments, category)
    return Record(segments, True, category or DEFAULT_CATEGORY, file, line_number, byte_offset)
