"""Conversations -> segments: messages come in, the text of the tokenizer's chat template, cut by role, goes out.

What the template itself writes and what the messages say is told apart by rendering the same roles once with marks in
place of the contents. Every document is then rendered as it is, and must be the template's text with its contents in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from data_tools.records import Segment

if TYPE_CHECKING:
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

ROLES = {"human": "user", "gpt": "assistant"}  # the names of ShareGPT
ASSISTANT = "assistant"
TODAY = datetime(2024, 7, 26)  # templates that write the date (Llama-3.2) would make other bytes every day
_MARK = re.compile("\ue000([0-9]+)\ue001")  # of the private use area: no template writes it


class Message(NamedTuple):
    """One turn: who speaks (`user`, `assistant`, `system`, or another role of the template), and what."""

    role: str
    content: str


def messages_of(value: object, name: str) -> list[Message] | str:
    """The messages in the field `name`, or the reason of a refusal.

    A message is {"role", "content"} or {"from", "value"}; a content may be a list of parts {"type": "text", "text"}.
    """
    if not isinstance(value, list):
        return f"{name}_not_a_list"
    messages: list[Message] = []
    for item in value:
        if not isinstance(item, dict):
            return f"{name}_with_not_an_object"
        if item.get("tool_calls"):
            return f"{name}_with_tool_calls"
        role, content = (_first_given(item, *names) for names in (("role", "from"), ("content", "value")))
        content = _content(content)
        if not isinstance(role, str) or content is None:
            return f"{name}_not_strings"
        reason = _fault(role + content)
        if reason is not None:
            return f"{name}_{reason}"
        messages.append(Message(ROLES.get(role, role), content))
    answers = [message.content for message in messages if message.role == ASSISTANT]
    if not answers:
        return "no_assistant_turn"
    return messages if any(answer.strip() for answer in answers) else "empty_assistant_turns"


def _first_given(item: dict[str, Any], *names: str) -> Any:
    """The value of the first name that has one; a row of a table has them all, most of them null."""
    return next((item[name] for name in names if item.get(name) is not None), None)


def _content(content: object) -> str | None:
    """The text of a content, None if it is not, or not only, text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts = [_text_of_part(part) for part in content]
    return None if None in texts else "".join(text for text in texts if text)


def _text_of_part(part: object) -> str | None:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    return text if isinstance(text, str) else None


def _fault(text: str) -> str | None:
    if "\0" in text:
        return "with_nul"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "with_lone_surrogate"
    return None


class _Frame(NamedTuple):
    """A template's text for one sequence of roles: `texts` stand around the contents of the messages in `order`."""

    texts: list[str]  # one more than the messages
    order: list[int]


class ChatTemplate:
    """The chat template of a tokenizer, its default one if it has several; can be pickled.

    Raises ValueError if the tokenizer has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._template = tokenizer.get_chat_template()
        tokens = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        longest_first = sorted(tokens, key=len, reverse=True)
        self._control = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if tokens else None
        self._frames: dict[tuple[str, ...], _Frame | None] = {}

    def segments(self, messages: list[Message]) -> tuple[Segment, ...] | str:
        """The conversation as the template writes it, or the reason of a refusal.

        Joined, the segments are the rendered text. The template's control tokens are control segments, a control token
        spelt in a content stays text. Loss is on each assistant's content and on what ends the turn: the first control
        token behind it, if at most blanks lie between.
        """
        try:
            rendered = self._render(messages)
            frame = self._frame([message.role for message in messages])
        except Exception:  # a template raises what it likes: jinja's errors, TypeError, KeyError, ...
            return "template_refuses"
        contents = None if frame is None else _find_contents(rendered, frame, messages)
        if frame is None or contents is None:
            return "template_changes_text"
        return tuple(_merged(self._stretches(frame, contents, messages)))

    def _render(self, messages: list[Message]) -> str:
        return self._tokenizer.apply_chat_template(
            [message._asdict() for message in messages],
            chat_template=self._template,
            tokenize=False,
            strftime_now=TODAY.strftime,
        )

    def _frame(self, roles: list[str]) -> _Frame | None:
        """None if the template leaves out or repeats a content."""
        key = tuple(roles)
        if key not in self._frames:
            marked = [Message(role, f"\ue000{place}\ue001") for place, role in enumerate(roles)]
            parts = _MARK.split(self._render(marked))
            order = [int(place) for place in parts[1::2]]
            is_whole = sorted(order) == list(range(len(roles)))
            self._frames[key] = _Frame(parts[::2], order) if is_whole else None
        return self._frames[key]

    def _stretches(self, frame: _Frame, contents: list[str], messages: list[Message]) -> Iterator[Segment]:
        yield from self._template_text(frame.texts[0], False)
        for place, content, behind in zip(frame.order, contents, frame.texts[1:], strict=True):
            has_loss = messages[place].role == ASSISTANT
            yield Segment(content, has_loss, False)
            yield from self._template_text(behind, has_loss)

    def _template_text(self, text: str, ends_answer: bool) -> Iterator[Segment]:
        """The template's own text, cut at control tokens; what ends an answer bears loss."""
        parts = self._control.split(text) if self._control else [text]
        is_end = ends_answer and len(parts) > 1 and not parts[0].strip()
        for number, part in enumerate(parts):
            yield Segment(part, is_end and number < 2, number % 2 == 1)


def _find_contents(rendered: str, frame: _Frame, messages: list[Message]) -> list[str] | None:
    """Each content as it stands in the rendered text, as it is or stripped; None if neither fits everywhere."""
    contents: list[str] = []
    if not rendered.startswith(frame.texts[0]):
        return None
    at = len(frame.texts[0])
    for place, behind in zip(frame.order, frame.texts[1:], strict=True):
        content = messages[place].content
        fitting = [form for form in (content, content.strip()) if rendered.startswith(form + behind, at)]
        if not fitting:
            return None
        contents.append(fitting[0])
        at += len(fitting[0]) + len(behind)
    return contents if at == len(rendered) else None


def _merged(stretches: Iterator[Segment]) -> Iterator[Segment]:
    """The same text in as few segments as loss and control tokens allow, none of them empty."""
    text, has_loss = "", False
    for stretch in stretches:
        if not stretch.text:
            continue
        if text and (stretch.is_control or stretch.has_loss != has_loss):
            yield Segment(text, has_loss, False)
            text = ""
        if stretch.is_control:
            yield stretch
        else:
            text, has_loss = text + stretch.text, stretch.has_loss
    if text:
        yield Segment(text, has_loss, False)
