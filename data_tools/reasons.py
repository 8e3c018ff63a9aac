"""Reasons of refusals in words: a reason comes in, what it means and what to do about it go out."""

from __future__ import annotations

from data_tools.fields import CHAT_FIELDS, ReadOptions

OF_FIELDS = {
    "missing_{}": "there is no field {}; if the text is in another field, name it with --text_field",
    "empty_{}": "{} holds nothing but blanks",
    "{}_not_a_string": "{} is a number, a list or an object; name a field that holds text",
    "{}_with_nul": "{} holds the character NUL; remove it",
    "{}_with_lone_surrogate": "{} holds half a character (such as \\ud800), which UTF-8 cannot hold",
}
OF_MESSAGES = {
    "{}_not_a_list": "{} is not a list of messages",
    "{}_with_not_an_object": "a message is not an object of role and content",
    "{}_with_tool_calls": "a message calls tools, which is no text; write the calls as text",
    "{}_not_strings": "a role or content is not text",
    "{}_with_nul": "a message holds the character NUL; remove it",
    "{}_with_lone_surrogate": "a message holds half a character (such as \\ud800), which UTF-8 cannot hold",
}
OF_FILES = {
    "over_long": "longer than --max_document_bytes; raise it or cut the document",
    "invalid_json": "no JSON; a .jsonl file holds one object a line",
    "invalid_utf8": "the bytes are not UTF-8; convert the file",
    "not_an_object": 'JSON, but no object; write {"target": ...}',
    "not_an_array": "a .json file holds one array of objects; name a file of one object a line .jsonl",
    "truncated_file": "the file ends too early, what stood before was read; fetch it again",
    "damaged_file": "the file is broken, what stood before was read; fetch it again",
    "data_after_end": "something follows the end of the data, which itself was read; cut it off",
    "utf16_file": "the file is UTF-16 or UTF-32; convert it to UTF-8",
    "not_a_gz_file": "named .gz, but not compressed by gzip; rename it",
    "not_a_zst_file": "named .zst, but not compressed by zstd; rename it",
    "not_a_parquet_file": "named .parquet, but something else; rename it",
    "invalid_csv": "a quote is not closed, or something follows where it is closed; write quotes in cells twice",
    "ragged_row": "the row has more or fewer cells than the header; put cells that hold commas in quotes",
}
OF_CONVERSATIONS = {
    "no_chat_template": "messages need a tokenizer with a chat_template; name one, or a text with --text_field",
    "no_assistant_turn": "nobody named assistant (or gpt) speaks, so there is nothing to learn",
    "empty_assistant_turns": "the assistant says nothing but blanks",
    "template_refuses": "the tokenizer's chat template raises an error for these roles; give roles in its order",
    "template_changes_text": "the tokenizer's chat template drops or rewrites a content, so its place cannot be told",
    "not_human_assistant": "the text is not <s>Human: ...</s><s>Assistant: ...</s>; choose --text_format plain",
}


def way_out(reason: str, options: ReadOptions) -> str | None:
    """What a reason means and the way out, in a few words; None for a reason that readers do not give."""
    names = (options.text_field, options.source_field, options.category_field)
    words = {form.format(name): text.format(name) for name in CHAT_FIELDS for form, text in OF_MESSAGES.items()}
    words |= {form.format(name): text.format(name) for name in names for form, text in OF_FIELDS.items()}
    return (OF_FILES | OF_CONVERSATIONS | words).get(reason)
