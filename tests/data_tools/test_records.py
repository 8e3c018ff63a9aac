"""Fields -> records: what is kept, what is refused, and texts that spell their turns."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.fields import Reading, ReadOptions, document_of
from data_tools.reasons import way_out
from data_tools.records import Record, Refusal, Segment

FRAMED = ReadOptions(text_format="human_assistant", bos_token="<|b|>", eos_token="<|e|>")


def document(fields: dict[str, Any], options: ReadOptions | None = None) -> Record | Refusal:
    return document_of(fields, Reading(options or ReadOptions(), "f.jsonl"), 7, 100)


def control(token: str, has_loss: bool = False) -> Segment:
    return Segment(token, has_loss, True)


@pytest.mark.parametrize(
    ("fields", "source", "category"),
    [
        ({"target": "a"}, "", "default"),
        ({"target": "a", "source": None, "category": None}, "", "default"),
        ({"target": "a", "source": "", "category": "zh"}, "", "zh"),
        ({"target": "a", "source": "s", "category": "", "extra": 1}, "s", "default"),
        ({"target": "a", "source": " ", "category": "zh"}, " ", "zh"),
    ],
)
def test_source_and_category_may_be_missing(fields: dict[str, Any], source: str, category: str) -> None:
    source_segments = (Segment(source, False, False),) if source else ()
    expected = Record((*source_segments, Segment("a", True, False)), False, category, "f.jsonl", 7, 100)
    assert document(fields) == expected


@pytest.mark.parametrize(
    ("fields", "reason", "category"),
    [
        ({"text": "other field"}, "missing_target", "default"),
        ({"target": None, "category": "zh"}, "missing_target", "zh"),
        ({"target": "", "category": "zh"}, "empty_target", "zh"),
        ({"target": " \n\t\u3000"}, "empty_target", "default"),
        ({"target": 5}, "target_not_a_string", "default"),
        ({"target": ["a"]}, "target_not_a_string", "default"),
        ({"target": False}, "target_not_a_string", "default"),
        ({"target": "a", "source": ["b"]}, "source_not_a_string", "default"),
        ({"target": "a", "category": 3}, "category_not_a_string", None),
        ({"target": "a\0b"}, "target_with_nul", "default"),
        ({"target": "a", "source": "\0"}, "source_with_nul", "default"),
        ({"target": "a", "category": "\0"}, "category_with_nul", None),
        ({"category": "\0"}, "category_with_nul", None),
        ({"target": "a" * 11}, "over_long", "default"),
        ({"messages": []}, "no_chat_template", "default"),
        ({"conversations": []}, "no_chat_template", "default"),
    ],
)
def test_a_bad_document_is_refused_with_its_place_and_reason(
    fields: dict[str, Any], reason: str, category: str | None
) -> None:
    assert document(fields, ReadOptions(max_document_bytes=10)) == Refusal("f.jsonl", 7, 100, reason, category)
    assert way_out(reason, ReadOptions())


def test_fields_have_the_names_they_are_given() -> None:
    options = ReadOptions(text_field="text", source_field="prompt", category_field="lang")
    fields = {"text": "t", "prompt": "p", "lang": "zh", "target": 1, "source": 2, "category": 3}
    segments = (Segment("p", False, False), Segment("t", True, False))
    assert document(fields, options) == Record(segments, False, "zh", "f.jsonl", 7, 100)
    missing = document({"target": "t"}, options)
    assert missing == Refusal("f.jsonl", 7, 100, "missing_text", "default")
    assert "--text_field" in str(way_out("missing_text", options))
    assert way_out("missing_target", options) is None


def test_text_that_spells_a_control_token_stays_text() -> None:
    record = document({"target": "<s>Human: a</s>"})
    assert isinstance(record, Record)
    assert record.segments == (Segment("<s>Human: a</s>", True, False),)


def test_the_text_goes_before_messages() -> None:
    record = document({"target": "a", "messages": "anything"})
    assert isinstance(record, Record)
    assert record.segments == (Segment("a", True, False),)


def test_turns_are_framed_and_bear_loss_on_the_assistants_words_and_their_end() -> None:
    text = "<s>Human: a</s>b\n</s><s>Assistant: c<s>d</s><s>Human: </s><s>Assistant: </s>\n"
    record = document({"target": text, "source": "where it comes from"}, FRAMED)
    assert isinstance(record, Record)
    assert record.is_framed
    begin, end = control("<|b|>"), control("<|e|>")
    assert record.segments == (
        *(begin, Segment("Human: a</s>b\n", False, False), end),
        *(begin, Segment("Assistant: ", False, False), Segment("c<s>d", True, False), control("<|e|>", True)),
        *(begin, Segment("Human: ", False, False), end),
        *(begin, Segment("Assistant: ", False, False), control("<|e|>", True)),
    )


def test_without_a_bos_turns_have_only_an_end() -> None:
    options = ReadOptions(text_format="human_assistant", bos_token=None, eos_token="<|e|>")
    record = document({"target": "<s>Human: a</s><s>Assistant: b</s>"}, options)
    assert isinstance(record, Record)
    assert [segment.text for segment in record.segments] == ["Human: a", "<|e|>", "Assistant: ", "b", "<|e|>"]


@given(st.lists(st.tuples(st.text("ab \n:<>/s", max_size=9), st.text("ab \n:<>/s", max_size=9)), min_size=1))
def test_any_turns_come_back(turns: list[tuple[str, str]]) -> None:
    """Contents of letters that cannot spell a border of turns."""
    text = "".join(f"<s>Human: {human}</s><s>Assistant: {answer}</s>" for human, answer in turns)
    record = document({"target": text}, FRAMED)
    if not any(answer.strip() for _, answer in turns):
        assert isinstance(record, Refusal)
        assert record.reason == "empty_assistant_turns"
        return
    assert isinstance(record, Record)
    spelling = {"<|b|>": "<s>", "<|e|>": "</s>"}
    joined = "".join(spelling[part.text] if part.is_control else part.text for part in record.segments)
    assert joined == text
    lossy = [segment.text for segment in record.segments if segment.has_loss and not segment.is_control]
    assert lossy == [answer for _, answer in turns if answer]
    assert [s.text for s in record.segments if s.has_loss and s.is_control] == ["<|e|>"] * len(turns)


@pytest.mark.parametrize(
    "text",
    [
        "plain text",
        "<s>Human: a</s>",
        "<s>Assistant: a</s>",
        "<s>Human: a</s><s>Assistant: b",
        "Human: a</s><s>Assistant: b</s>",
        "<s>Human: a</s><s>Human: b</s><s>Assistant: c</s>",
        "<s>Human: a</s><s>Assistant: b</s><s>Assistant: c</s>",
        "<s>Human: a</s> <s>Assistant: b</s>",
        "<s>System: s</s><s>Human: a</s><s>Assistant: b</s>",
    ],
)
def test_text_without_such_turns_is_refused(text: str) -> None:
    assert document({"target": text}, FRAMED) == Refusal("f.jsonl", 7, 100, "not_human_assistant", "default")
    assert way_out("not_human_assistant", FRAMED)


@given(
    st.dictionaries(
        st.sampled_from(["target", "source", "category", "messages"]),
        st.recursive(
            st.none() | st.booleans() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        ),
    )
)
def test_no_fields_make_it_stumble(fields: dict[str, Any]) -> None:
    result = document(fields)
    assert isinstance(result, Record) or way_out(result.reason, ReadOptions())
