"""A byte-level vocabulary grown by new pieces, checked by the tokenizers library and the slow class of transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, GPT2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from tests.conftest import CHINESE
from tokenizer_tools.byte_level_bpe import ByteLevelBpe, grow_layout, merges_of, parts_first
from tokenizer_tools.closure import close
from tokenizer_tools.command import UserError
from tokenizer_tools.spelling import spell_bytes, text_of_bytes


@pytest.fixture(scope="module")
def vocabulary(byte_level_tokenizer_dir: Path) -> ByteLevelBpe:
    return ByteLevelBpe(byte_level_tokenizer_dir)


def write_slow(directory: Path, new: list[str]) -> Qwen2Tokenizer:
    """The slow class over a grown vocabulary, from its files."""
    for name in ("vocab.json", "merges.txt"):
        (directory / "source" / name).write_text("{}")
    source = ByteLevelBpe(directory / "source")
    (directory / "grown").mkdir()
    source.write(directory / "grown", new, [])
    return Qwen2Tokenizer(directory / "grown" / "vocab.json", directory / "grown" / "merges.txt")


def test_old_ids_stay_and_control_tokens_keep_theirs(vocabulary: ByteLevelBpe) -> None:
    grown = grow_layout(vocabulary.layout, vocabulary.ids, ["zz", "zzz"])
    ids = grown["model"]["vocab"]
    assert vocabulary.ids.items() <= ids.items()
    assert ids["zz"] == len(vocabulary.ids) and ids["zzz"] == len(vocabulary.ids) + 1
    assert list(ids.values()) == list(range(len(ids)))
    assert grown["model"]["merges"][: len(vocabulary.layout["model"]["merges"])] == vocabulary.layout["model"]["merges"]


def test_merges_in_the_old_notation_are_read(vocabulary: ByteLevelBpe) -> None:
    merges = [" ".join(merge) for merge in vocabulary.layout["model"]["merges"]]
    old = vocabulary.layout | {"model": vocabulary.layout["model"] | {"merges": merges}}
    assert grow_layout(old, vocabulary.ids, ["zz"]) == grow_layout(vocabulary.layout, vocabulary.ids, ["zz"])


def test_every_way_to_a_piece_is_a_merge() -> None:
    vocabulary = dict.fromkeys(["a", "b", "c", "ab", "bc", "abc"], 0)
    assert merges_of("abc", vocabulary) == [("a", "bc"), ("ab", "c")]
    assert merges_of("abd", vocabulary) == []


def test_parts_go_first_and_else_the_order_stays() -> None:
    new = ["abc", "xy", "ab", "cd"]
    assert parts_first(new, dict.fromkeys(["a", "b", "c", "d", "x", "y", *new], 0)) == ["ab", "abc", "xy", "cd"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.text("甲乙丙ab", min_size=1, max_size=6), min_size=1, max_size=8, unique=True),
    text=st.text("甲乙丙丁abc ", max_size=30),
)
def test_closed_and_old_text_unchanged_for_any_pieces(vocabulary: ByteLevelBpe, pieces: list[str], text: str) -> None:
    new = [string for string in map(spell_bytes, pieces) if string not in vocabulary.ids]
    closure = close(vocabulary, new)
    added = [*closure.pieces, *closure.intermediates]
    assert vocabulary.segment(added, added) == [[string] for string in added]
    assert not closure.refused
    if not any(string in spell_bytes(text) for string in added):
        assert vocabulary.encode(added, [text]) == vocabulary.encode([], [text])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(st.text("甲乙ab", min_size=2, max_size=5), min_size=1, max_size=8, unique=True), data=st.data())
def test_the_slow_class_agrees_whatever_the_order(
    vocabulary: ByteLevelBpe,
    byte_level_tokenizer_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
    pieces: list[str],
    data: st.DataObject,
) -> None:
    directory = tmp_path_factory.mktemp("slow")
    shutil.copytree(byte_level_tokenizer_dir, directory / "source")
    closure = close(vocabulary, [string for string in map(spell_bytes, pieces) if string not in vocabulary.ids])
    added = [*closure.pieces, *closure.intermediates]
    slow = write_slow(directory, added)
    texts = data.draw(st.lists(st.text("甲乙ab", max_size=12), min_size=5, max_size=5))
    assert [slow.convert_tokens_to_ids(slow.tokenize(text)) for text in texts] == vocabulary.encode(added, texts)


def test_the_slow_class_agrees_where_a_piece_stands_before_its_part(
    vocabulary: ByteLevelBpe, byte_level_tokenizer_dir: Path, tmp_path: Path
) -> None:
    """One by one, 甲乙 甲 would become 甲乙甲 before the second 甲乙 is made; all at once it would not."""
    shutil.copytree(byte_level_tokenizer_dir, tmp_path / "source")
    closure = close(vocabulary, [spell_bytes(piece) for piece in ("甲", "乙", "甲乙甲", "甲乙")])
    added = [*closure.pieces, *closure.intermediates]
    slow = write_slow(tmp_path, added)
    assert [slow.encode("甲乙甲乙")] == vocabulary.encode(added, ["甲乙甲乙"])


def test_whole_words_of_llama3_do_not_hide_missing_merges(vocabulary: ByteLevelBpe) -> None:
    """`ignore_merges` finds the word 人工 itself, but nothing inside a longer word: segment() has to see that."""
    assert vocabulary.layout["model"]["ignore_merges"]
    new = [spell_bytes("龘龘")]
    assert len(vocabulary.encode(new, ["龘龘"])[0]) == 1
    assert len(vocabulary.segment(new, new)[0]) > 1


def test_characters_come_before_parts_of_characters(vocabulary: ByteLevelBpe) -> None:
    closure = close(vocabulary, [spell_bytes("龘靐齉")])
    texts = list(map(text_of_bytes, closure.intermediates))
    assert {"龘", "靐", "齉"} <= set(texts)
    assert all(len(text) <= 2 for text in texts if text is not None)


def test_what_does_not_reach_the_merges(tmp_path: Path, byte_level_tokenizer_dir: Path) -> None:
    source = shutil.copytree(byte_level_tokenizer_dir, tmp_path / "source")
    layout = json.loads((source / "tokenizer.json").read_text())
    (source / "tokenizer.json").write_text(json.dumps(layout | {"normalizer": {"type": "NFC"}}))
    vocabulary = ByteLevelBpe(source)
    assert vocabulary.fault_of("▁中国") is None
    assert vocabulary.fault_of("人工智能") is None
    assert vocabulary.fault_of("e\u0301") == ("changed by the normaliser", "é")
    reason, detail = vocabulary.fault_of("你好，世界") or ("", "")
    assert (reason, detail.count(" + ")) == ("split by the pre-tokenizer", 1)


def test_other_kinds_of_model_are_refused(tmp_path: Path, byte_level_tokenizer_dir: Path) -> None:
    source = shutil.copytree(byte_level_tokenizer_dir, tmp_path / "source")
    layout = json.loads((source / "tokenizer.json").read_text())
    ids = layout["model"]["vocab"]
    layout["model"] = {"type": "WordLevel", "vocab": ids, "unk_token": "a"}
    (source / "tokenizer.json").write_text(json.dumps(layout))
    with pytest.raises(UserError, match="source: is a WordLevel tokenizer; only BPE can be expanded"):
        ByteLevelBpe(source)


def test_written_files_are_read_by_every_class(
    vocabulary: ByteLevelBpe, byte_level_tokenizer_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(byte_level_tokenizer_dir, tmp_path / "source")
    closure = close(vocabulary, [spell_bytes(piece) for piece in ("人工智能", "▁xylophonist")])
    added = [*closure.pieces, *closure.intermediates]
    slow = write_slow(tmp_path, added)
    gpt2 = GPT2Tokenizer(tmp_path / "grown" / "vocab.json", tmp_path / "grown" / "merges.txt")
    fast = AutoTokenizer.from_pretrained(tmp_path / "grown")
    assert slow.get_vocab().items() >= fast.get_vocab().items()
    first_merge = text_of_bytes("".join(vocabulary.layout["model"]["merges"][0])) or ""
    for text in (*CHINESE, "a xylophonist", "the 人工智能", first_merge):
        ids = fast.encode(text, add_special_tokens=False)
        assert slow.encode(text) == gpt2.encode(text) == ids
        assert fast.decode(ids) == text
