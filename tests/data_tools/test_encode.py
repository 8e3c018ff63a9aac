"""Encoding: the ids of plain tokenizer calls, and loss exactly where segments bear it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools.backends import Encode, Ids, laid_end_to_end
from data_tools.encode import (
    Encoded,
    Encoders,
    bears_loss_whole,
    chosen_documents,
    encode_records,
    gathered,
    labels_of,
    reference_encoders,
)
from data_tools.records import Record, Segment
from tokenizer_tools.tokenizer import TextEncoder, load_tokenizer


def make_record(*segments: Segment, is_framed: bool = False) -> Record:
    return Record(segments, is_framed, "c", "f", 1, 0)


def plain(target: str, source: str = "") -> Record:
    segments = [Segment(source, False, False)] if source else []
    return make_record(*segments, Segment(target, True, False))


def letters(offset: int) -> Encode:
    """One id a letter, none for a blank."""

    def encode(texts: Sequence[str]) -> Ids:
        return laid_end_to_end([[ord(letter) + offset for letter in text if letter != " "] for text in texts])

    return encode


def letter_encoders(continues: bool, prefix_ids: list[int], eos_ids: list[int]) -> Encoders:
    """Text inside a document has ids 1000 higher."""
    controls = {"<s>": [1], "</s>": [2], "<x>": [3]}
    return Encoders(letters(0), letters(1000), controls, prefix_ids, eos_ids, continues)


def documents_of(encoded: Encoded) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) of each document."""
    borders = np.cumsum(encoded.lengths)[:-1]
    labels = labels_of(encoded)
    return [
        (i.tolist(), n.tolist())
        for i, n in zip(np.split(encoded.tokens, borders), np.split(labels, borders), strict=True)
    ]


segments_strategy = st.lists(
    st.one_of(
        st.builds(Segment, st.sampled_from(["a", "ab", "b a ", " ", "   "]), st.booleans(), st.just(False)),
        st.builds(Segment, st.sampled_from(["<s>", "</s>", "<x>"]), st.booleans(), st.just(True)),
    ),
    min_size=1,
    max_size=5,
)


# with and without BOS and EOS, and with more than one token of each
frames = st.tuples(st.sampled_from([[1], [], [1, 7]]), st.sampled_from([[2], [], [2, 8]]))


def expected_document(
    record: Record, continues: bool, prefix_ids: list[int], eos_ids: list[int]
) -> tuple[list[int], list[int]]:
    """A token at a time, as the module's first lines say it."""
    controls = {"<s>": 1, "</s>": 2, "<x>": 3}
    ids: list[int] = []
    labels: list[int] = []
    offset = 0
    if not record.is_framed:
        ids += prefix_ids
        labels += prefix_ids if len(record.segments) == 1 else [-100] * len(prefix_ids)
    for segment in record.segments:
        if segment.is_control:
            found, offset = [controls[segment.text]], 1000 * continues
        else:
            found, offset = [ord(c) + offset for c in segment.text if c != " "], 1000
        ids += found
        labels += found if segment.has_loss else [-100] * len(found)
    return (ids, labels) if record.is_framed else (ids + eos_ids, labels + eos_ids)


@given(st.lists(st.tuples(segments_strategy, st.booleans())), st.booleans(), frames)
def test_every_token_and_every_label_is_that_of_its_segment(
    drawn: list[tuple[list[Segment], bool]], continues: bool, frame: tuple[list[int], list[int]]
) -> None:
    records = [make_record(*segments, is_framed=is_framed) for segments, is_framed in drawn]
    encoded = encode_records(letter_encoders(continues, *frame), records)
    expected = [expected_document(record, continues, *frame) for record in records]
    assert documents_of(encoded)[: len(records)] == expected
    assert len(encoded.lengths) == len(encoded.num_spans) == len(records)
    assert 2 * encoded.num_spans.sum() == len(encoded.spans)
    has_text = [
        any(s.has_loss and not s.is_control and s.text.replace(" ", "") for s in record.segments) for record in records
    ]
    assert encoded.has_text.tolist() == has_text
    assert (encoded.spans[1::2] > encoded.spans[0::2]).all()


@given(st.lists(st.tuples(segments_strategy, st.booleans()), min_size=1), st.randoms())
def test_chosen_documents_are_the_same_documents(drawn: list[tuple[list[Segment], bool]], random: Any) -> None:
    encoded = encode_records(
        letter_encoders(True, [1], [2]), [make_record(*s, is_framed=framed) for s, framed in drawn]
    )
    places = [random.randrange(len(drawn)) for _ in range(5)]
    everything = documents_of(encoded)
    assert documents_of(chosen_documents(encoded, np.array(places))) == [everything[place] for place in places]


def test_a_document_of_no_token_at_all_has_no_loss() -> None:
    encoded = encode_records(letter_encoders(True, [], []), [plain("a"), plain(" "), plain("b")])
    assert documents_of(encoded) == [([97], [97]), ([], []), ([98], [98])]
    assert encoded.num_spans.tolist() == [1, 0, 1]
    assert encoded.has_text.tolist() == [True, False, True]


def test_gathered_lays_pieces_end_to_end() -> None:
    assert gathered(np.arange(9), np.array([7, 0, 3]), np.array([2, 0, 3])).tolist() == [7, 8, 3, 4, 5]
    assert gathered(np.arange(9), np.array([], int), np.array([], int)).tolist() == []


@pytest.fixture(scope="module")
def tokenizer(base_tokenizer_dir: Path) -> Any:
    return load_tokenizer(base_tokenizer_dir)


def encode_one(tokenizer: Any, record: Record) -> tuple[list[int], list[int]]:
    return documents_of(encode_records(reference_encoders(TextEncoder(tokenizer)), [record]))[0]


@pytest.mark.parametrize("text", ["Hello world", "你好，世界", "  two blanks", "a\n\nb", "🙂"])
def test_ids_are_those_the_tokenizer_gives_itself(tokenizer: Any, text: str) -> None:
    ids, labels = encode_one(tokenizer, plain(text))
    assert ids == labels == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]


def test_the_border_of_source_and_target_is_a_border_of_tokens(tokenizer: Any) -> None:
    ids, labels = encode_one(tokenizer, plain("s are bright", "The colour"))
    first = next(place for place, label in enumerate(labels) if label != -100)
    assert labels[first:] == ids[first:]
    assert tokenizer.decode(ids[:first]) == "<s> The colour"
    assert tokenizer.decode(ids) == "<s> The colours are bright</s>"


def test_control_tokens_in_text_stay_text(tokenizer: Any) -> None:
    ids, _ = encode_one(tokenizer, plain("a</s>b<s>", "q<s></s>"))
    assert ids.count(tokenizer.eos_token_id) == ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("fixture", ["base_tokenizer_dir", "byte_level_tokenizer_dir"])
def test_text_behind_a_control_token_is_what_the_tokenizer_makes_of_the_whole(
    request: pytest.FixtureRequest, fixture: str
) -> None:
    tokenizer = load_tokenizer(request.getfixturevalue(fixture))
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    texts = ["Human: hi there", "Assistant: hello"]
    segments = [s for text in texts for s in ((bos, True, True), (text, True, False), (eos, True, True))]
    ids, _ = encode_one(tokenizer, make_record(*(Segment(*segment) for segment in segments), is_framed=True))
    assert ids == tokenizer("".join(bos + text + eos for text in texts), add_special_tokens=False)["input_ids"]


@given(st.lists(st.tuples(segments_strategy, st.booleans())))
def test_whether_every_token_bears_loss_is_told_from_the_spans(drawn: list[tuple[list[Segment], bool]]) -> None:
    records = [make_record(*segments, is_framed=is_framed) for segments, is_framed in drawn]
    encoded = encode_records(letter_encoders(True, [1], [2]), records)
    assert bears_loss_whole(encoded) == (-100 not in labels_of(encoded))
