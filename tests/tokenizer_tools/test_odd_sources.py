"""Sources and pieces with which a review broke an expansion: each is expanded right, or refused in words."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import AutoTokenizer

from tests.tokenizer_tools.test_init_tokenizer import change_settings, only_error, run, write_pieces
from tests.tokenizer_tools.test_vocabulary import with_normaliser
from tokenizer_tools.sentencepiece_bpe import Piece, SentencePieceBpe, load_model
from tokenizer_tools.tokenizer import load_tokenizer
from tokenizer_tools.verify_tokenizer import anchor_for


@pytest.fixture
def source(tmp_path: Path, tiny_tokenizer_dir: Path) -> Path:
    return shutil.copytree(tiny_tokenizer_dir, tmp_path / "source")


@pytest.fixture
def byte_level(tmp_path: Path, byte_level_tokenizer_dir: Path) -> Path:
    return shutil.copytree(byte_level_tokenizer_dir, tmp_path / "byte_level")


def change_layout(directory: Path, **parts: Any) -> dict[str, Any]:
    layout = json.loads((directory / "tokenizer.json").read_text()) | parts
    (directory / "tokenizer.json").write_text(json.dumps(layout))
    return layout


def refused(target: Path) -> dict[str, int]:
    return json.loads((target / "manifest.json").read_text())["pieces"]["refused"]


def test_a_text_that_starts_with_a_piece_of_several_words_comes_back(source: Path, tmp_path: Path) -> None:
    file = write_pieces(tmp_path / "pieces.jsonl", ["▁New▁York", "▁of▁the▁world"])
    assert run(source, tmp_path / "target", file) == 0
    for use_fast in (False, True):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "target", use_fast=use_fast)
        for text in ("New York is", "of the world it is", "in New York of the world"):
            assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize("kind", [Piece.USER_DEFINED, Piece.CONTROL])
def test_the_models_own_symbols_mean_what_they_meant(source: Path, tmp_path: Path, kind: int) -> None:
    model = load_model(source / "tokenizer.model")
    model.pieces.add(piece="<im_start>", score=0.0, type=kind)
    (source / "tokenizer.model").write_bytes(model.SerializeToString())
    assert run(source, tmp_path / "target", write_pieces(tmp_path / "pieces.jsonl", ["天气"])) == 0
    for use_fast in (False, True):
        old, new = (AutoTokenizer.from_pretrained(d, use_fast=use_fast) for d in (source, tmp_path / "target"))
        for text in ("hello<im_start>world", "a <im_start> b", "<im_start>"):
            assert new.encode(text) == old.encode(text)
            assert new.decode(new.encode(text)) == old.decode(old.encode(text))


def test_symbols_that_mean_something_else_than_before_are_found(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(source / "tokenizer.model")
    model.pieces.add(piece="<im_start>", score=0.0, type=Piece.CONTROL)
    (source / "tokenizer.model").write_bytes(model.SerializeToString())
    monkeypatch.setattr(SentencePieceBpe, "_keep_added_tokens", lambda self, target: None)
    with pytest.raises(RuntimeError, match="slow tokenizer: other added tokens than before"):
        run(source, tmp_path / "target", write_pieces(tmp_path / "pieces.jsonl", ["天气"]))


def test_the_anchor_merges_with_nothing() -> None:
    assert anchor_for(["a\ue000b", "\ue001"]) == "\ue002"


@pytest.mark.parametrize("rule", ["nmt_nfkc", "nmt_nfkc_cf"])
def test_sentencepieces_default_normaliser(tiny_tokenizer_dir: Path, tmp_path: Path, rule: str) -> None:
    source = with_normaliser(tiny_tokenizer_dir, tmp_path / "source", rule)
    assert run(source, tmp_path / "target", write_pieces(tmp_path / "pieces.jsonl", ["人工智能", "xylo"])) == 0
    assert not refused(tmp_path / "target")


def test_a_source_that_removes_blanks_refuses_pieces_with_them(source: Path, tmp_path: Path) -> None:
    model = load_model(source / "tokenizer.model")
    model.normalizer_spec.remove_extra_whitespaces = True
    (source / "tokenizer.model").write_bytes(model.SerializeToString())
    assert run(source, tmp_path / "target", write_pieces(tmp_path / "pieces.jsonl", ["a▁▁b", "▁xylo", "天气"])) == 0
    assert refused(tmp_path / "target") == {"changed by the normaliser": 1}


def test_added_tokens_are_seen_in_pieces_however_they_match(source: Path, tmp_path: Path) -> None:
    added = {"512": {"content": "foo bar", "special": False, "normalized": False}}
    change_settings(source, added_tokens_decoder=added)
    assert run(source, tmp_path / "target", write_pieces(tmp_path / "pieces.jsonl", ["foo▁bars", "天气"])) == 0
    assert refused(tmp_path / "target") == {"contains a special token": 1}


def test_characters_unknown_to_a_source_without_bytes_can_be_added(tmp_path: Path, english_texts: list[str]) -> None:
    from tests.conftest import write_llama_tokenizer

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(english_texts[:20]), model_writer=model, model_type="bpe", vocab_size=300,
        normalization_rule_name="identity", minloglevel=2, max_sentence_length=1 << 20,
    )  # fmt: skip
    source = write_llama_tokenizer(tmp_path / "source", model.getvalue())
    assert run(source, tmp_path / "target", write_pieces(tmp_path / "pieces.jsonl", ["天气"])) == 0
    assert not refused(tmp_path / "target")


def test_a_slow_class_that_splits_more_finely_is_heard(byte_level: Path, tmp_path: Path) -> None:
    layout = change_layout(byte_level)
    (byte_level / "vocab.json").write_text(json.dumps(layout["model"]["vocab"]))
    merges = "".join(" ".join(merge) + "\n" for merge in layout["model"]["merges"])
    (byte_level / "merges.txt").write_text("#version: 0.2\n" + merges)
    change_settings(byte_level, tokenizer_class="Qwen2Tokenizer", unk_token=None)
    layout["model"]["ignore_merges"] = False
    change_layout(byte_level, model=layout["model"])
    assert run(byte_level, tmp_path / "target", write_pieces(tmp_path / "pieces.jsonl", ["123", "天气"])) == 0
    assert refused(tmp_path / "target") == {"split by the slow tokenizer": 1}
    assert "'123' becomes '1 + 2 + 3'" in (tmp_path / "target" / "tokenizer_report.md").read_text()


def test_a_number_of_thousands_of_digits_is_a_bad_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_pieces(tmp_path / "pieces.jsonl", ["天气"])
    (tmp_path / "texts.jsonl").write_text('{"target": ' + "9" * 5000 + "}\n")
    assert run(source, tmp_path / "target", file, "--proof_texts", str(tmp_path / "texts.jsonl")) == 2
    assert "texts.jsonl:1: not JSON" in only_error(capsys)
    file.write_text(file.read_text() + '{"piece": "x", "count": ' + "9" * 5000 + "}\n")
    assert run(source, tmp_path / "target", file) == 0
    assert refused(tmp_path / "target") == {"not JSON": 1}


def test_a_plain_fast_class_beside_a_sentencepiece_model(source: Path, tmp_path: Path) -> None:
    load_tokenizer(source).backend_tokenizer.save(str(source / "tokenizer.json"))
    change_settings(source, tokenizer_class="PreTrainedTokenizerFast")
    assert run(source, tmp_path / "target", write_pieces(tmp_path / "pieces.jsonl", ["天气"])) == 0
    assert AutoTokenizer.from_pretrained(tmp_path / "target").tokenize("a天气")[-1] == "天气"


def test_a_byte_level_source_may_lie_beside_a_file_for_tiktoken(byte_level: Path, tmp_path: Path) -> None:
    (byte_level / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    assert run(byte_level, tmp_path / "target", write_pieces(tmp_path / "pieces.jsonl", ["天气"])) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "tokenizer.model").write_bytes(b""), "not a sentencepiece model, or only a part of one"),
        (
            lambda d: (d / "tokenizer_config.json").unlink(),
            "source: holds no tokenizer_config.json; save the tokenizer",
        ),
        (lambda d: change_settings(d, tokenizer_class="NoSuchTokenizer"), "whose tokenizer_config.json names a"),
        (
            lambda d: change_settings(d, added_tokens_decoder={k: {"content": f"<{k}>"} for k in ("512", "514")}),
            "added tokens have to follow the pieces of tokenizer.model without a hole",
        ),
    ],
)
def test_a_broken_source_is_named_in_a_short_line(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    change(source)
    assert run(source, tmp_path / "target", write_pieces(tmp_path / "pieces.jsonl", ["天气"])) == 2
    error = only_error(capsys)
    assert message in error and len(error) < 600


def test_a_blank_before_every_text_is_refused(
    byte_level: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_layout(byte_level, pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True})
    change_settings(byte_level, add_prefix_space=True)
    assert run(byte_level, tmp_path / "target", write_pieces(tmp_path / "pieces.jsonl", ["天气"])) == 2
    assert "puts a blank before every text (add_prefix_space)" in only_error(capsys)


@pytest.mark.parametrize("flag", ["--proof_texts", "--forbid_old_text_changes"])
def test_texts_without_a_document_prove_nothing(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    (tmp_path / "empty.jsonl").touch()
    file = write_pieces(tmp_path / "pieces.jsonl", ["天气"])
    assert run(source, tmp_path / "target", file, flag, str(tmp_path / "empty.jsonl")) == 2
    assert "holds no document" in only_error(capsys)
    assert not (tmp_path / "target").exists()


def test_a_file_that_is_read_is_not_replaced(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_pieces(tmp_path / "target" / "pieces.jsonl", ["天气"])
    assert run(source, tmp_path / "target", file, "--overwrite") == 2
    assert f"would replace {file}, which is read" in only_error(capsys)
    assert file.is_file()
