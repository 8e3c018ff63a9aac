"""Texts that spell their turns, `<s>Human: ...</s><s>Assistant: ...</s>`: a text comes in, segments go out. Pure."""

from __future__ import annotations

import re

from data_tools.records import Segment

HUMAN, ASSISTANT = "Human: ", "Assistant: "
NOT_HUMAN_ASSISTANT = "not_human_assistant"
EMPTY_ASSISTANT_TURNS = "empty_assistant_turns"
_BORDER = re.compile(r"</s><s>(?=Human: |Assistant: )")


def segments_of_turns(text: str, bos_token: str | None, eos_token: str) -> tuple[Segment, ...] | str:
    """The turns, each between `bos_token` (None: nothing) and `eos_token` as controls, or the reason of a refusal.

    Loss is on the assistant's words and the token that closes them. Blanks around the whole text are passed over; a
    marker that opens or closes no turn stays text.
    """
    inside = text.strip()
    if not (inside.startswith("<s>") and inside.endswith("</s>")):
        return NOT_HUMAN_ASSISTANT
    turns = _BORDER.split(inside[len("<s>") : -len("</s>")])
    speakers = (HUMAN, ASSISTANT)
    if len(turns) % 2 or not all(turn.startswith(speakers[place % 2]) for place, turn in enumerate(turns)):
        return NOT_HUMAN_ASSISTANT
    if not any(turn[len(ASSISTANT) :].strip() for turn in turns[1::2]):
        return EMPTY_ASSISTANT_TURNS
    segments: list[Segment] = []
    for place, turn in enumerate(turns):
        has_loss = place % 2 == 1
        opening = len(ASSISTANT) if has_loss else len(turn)
        if bos_token is not None:
            segments.append(Segment(bos_token, False, True))
        segments.append(Segment(turn[:opening], False, False))
        if turn[opening:]:
            segments.append(Segment(turn[opening:], True, False))
        segments.append(Segment(eos_token, has_loss, True))
    return tuple(segments)
