"""The command as users run it, read back by transformers and sentencepiece."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from transformers import AutoTokenizer

from tests.conftest import write_jsonl
from tokenizer_tools import expand, init_tokenizer
from tokenizer_tools.expand import ModelProto, load_model

PIECES = ["人工智能", "猜谜语", "xylophonist", "▁xylophonist", "深度学习", "哈哈哈"]


def run(source: Path, target: Path, pieces: Path, *more: str) -> int:
    flags = {"source_tokenizer_dir": source, "target_tokenizer_dir": target, "expand_tokens_file": pieces}
    return init_tokenizer.main([*(part for name, value in flags.items() for part in (f"--{name}", str(value))), *more])


def write_pieces(path: Path, pieces: list[str]) -> Path:
    return write_jsonl(path, [{"piece": piece} for piece in pieces])


def change_settings(directory: Path, **settings: object) -> None:
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def only_error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr that starts with `error: `."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture
def source(tmp_path: Path, tiny_tokenizer_dir: Path) -> Path:
    """A copy of the small tokenizer that a test may change."""
    return shutil.copytree(tiny_tokenizer_dir, tmp_path / "source")


@pytest.fixture
def pieces_file(tmp_path: Path) -> Path:
    return write_pieces(tmp_path / "pieces.jsonl", PIECES)


@pytest.fixture(scope="module")
def expanded(base_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real 32,000-piece tokenizer with PIECES."""
    directory = tmp_path_factory.mktemp("expanded")
    file = write_pieces(directory / "pieces.jsonl", [*PIECES, "the", "人工智能", "a\n", "x</s>"])
    assert run(base_tokenizer_dir, directory / "target", file) == 0
    return directory / "target"


def test_each_piece_is_one_id_in_all_three_tokenizers(expanded: Path) -> None:
    slow, fast = (AutoTokenizer.from_pretrained(expanded, use_fast=use_fast) for use_fast in (False, True))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(expanded / "tokenizer.model"))
    for k, piece in enumerate(PIECES):
        text = "。" + piece.replace("▁", " ") + "。"
        for ids in (slow.encode(text)[1:], fast.encode(text)[1:], processor.encode(text)):
            assert 32000 + k in ids
        assert fast.convert_tokens_to_ids(piece) == slow.convert_tokens_to_ids(piece) == 32000 + k


def test_whole_texts_agree_and_come_back(expanded: Path, english_texts: list[str]) -> None:
    slow, fast = (AutoTokenizer.from_pretrained(expanded, use_fast=use_fast) for use_fast in (False, True))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(expanded / "tokenizer.model"))
    for text in [*english_texts[:5], "".join(PIECES).replace("▁", " "), "我爱人工智能，也爱猜谜语。", "哈哈哈哈哈哈哈"]:
        ids = processor.encode(text)
        assert ids == slow.encode(text)[1:] == fast.encode(text)[1:]
        assert fast.decode(ids) == text


def test_old_ids_and_old_text_do_not_move(expanded: Path, base_tokenizer_dir: Path, english_texts: list[str]) -> None:
    old, new = (AutoTokenizer.from_pretrained(directory) for directory in (base_tokenizer_dir, expanded))
    assert old.get_vocab().items() <= new.get_vocab().items()
    for text in english_texts:
        assert old.encode(text) == new.encode(text)


def test_first_word_keeps_its_blank(expanded: Path) -> None:
    """transformers clears add_dummy_prefix in its copy of the model when `legacy` is off: ours comes from the file."""
    assert load_model(expanded / "tokenizer.model").normalizer_spec.add_dummy_prefix
    assert AutoTokenizer.from_pretrained(expanded).tokenize("machine learning") == ["▁machine", "▁learning"]


def test_manifest_and_report(expanded: Path) -> None:
    manifest = json.loads((expanded / "manifest.json").read_text())
    intermediates = manifest["intermediates"]
    assert manifest["vocab_size"] == {"before": 32000, "after": 32000 + len(PIECES) + len(intermediates)}
    assert manifest["pieces"] == {
        "read": 10,
        "added": 6,
        "skipped": {"duplicate": 1, "already in the vocabulary": 1},
        "refused": {"control character": 1, "contains a special token": 1},
    }
    assert (manifest["unreachable"], manifest["old_text_changes"]) == (0, 0)
    ids = AutoTokenizer.from_pretrained(expanded).convert_tokens_to_ids(intermediates)
    assert ids == list(range(32000 + len(PIECES), manifest["vocab_size"]["after"]))
    report = (expanded / "tokenizer_report.md").read_text()
    assert "pieces.jsonl:9: control character: " in report
    assert "pieces.jsonl:10: contains a special token: 'x</s>' contains '</s>'" in report


@pytest.mark.parametrize("legacy", [True, False, None])
def test_every_legacy_setting_survives(source: Path, tmp_path: Path, pieces_file: Path, legacy: bool | None) -> None:
    change_settings(source, legacy=legacy, model_max_length=77)
    (source / "chat_template.jinja").write_text("{{ messages }}")
    assert run(source, tmp_path / "target", pieces_file) == 0
    for name in ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"):
        assert (tmp_path / "target" / name).read_bytes() == (source / name).read_bytes()
    assert AutoTokenizer.from_pretrained(tmp_path / "target").model_max_length == 77


def test_same_input_same_bytes(source: Path, tmp_path: Path, pieces_file: Path) -> None:
    for name in ("one", "two"):
        assert run(source, tmp_path / name, pieces_file) == 0
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()


def test_can_be_expanded_again(source: Path, tmp_path: Path, pieces_file: Path) -> None:
    assert run(source, tmp_path / "one", pieces_file) == 0
    assert run(tmp_path / "one", tmp_path / "two", write_pieces(tmp_path / "more.jsonl", ["机器学习"])) == 0
    one, two = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("one", "two"))
    assert one.get_vocab().items() < two.get_vocab().items()
    assert two.convert_tokens_to_ids("机器学习") == len(one)


def test_stdout_holds_the_report(
    source: Path, tmp_path: Path, pieces_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, tmp_path / "target", pieces_file) == 0
    assert capsys.readouterr().out == (tmp_path / "target" / "tokenizer_report.md").read_text()


def test_existing_target_needs_overwrite(
    source: Path, tmp_path: Path, pieces_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine.txt").write_text("keep")
    assert run(source, tmp_path / "target", pieces_file) == 2
    assert "exists and is not empty; add --overwrite" in only_error(capsys)
    assert (tmp_path / "target" / "mine.txt").read_text() == "keep"
    assert run(source, tmp_path / "target", pieces_file, "--overwrite") == 0


def test_target_may_not_hold_the_source(
    source: Path, tmp_path: Path, pieces_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for target in (source, tmp_path):
        assert run(source, target, pieces_file, "--overwrite") == 2
        assert "would replace the source" in only_error(capsys)
    assert (source / "tokenizer.model").is_file()


def test_nothing_new_is_refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = load_model(source / "tokenizer.model").pieces[400].piece
    assert run(source, tmp_path / "target", write_pieces(tmp_path / "p.jsonl", [known])) == 2
    assert f"p.jsonl: no new piece in 1 lines, for example {tmp_path / 'p.jsonl'}:1: already" in only_error(capsys)
    assert run(source, tmp_path / "target", write_pieces(tmp_path / "p.jsonl", [])) == 2
    assert "p.jsonl: no new piece in 0 lines; write one" in only_error(capsys)
    assert not (tmp_path / "target").exists()


def test_added_tokens_beyond_the_model_are_refused(
    source: Path, tmp_path: Path, pieces_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_settings(source, added_tokens_decoder={"512": {"content": "<pad>", "special": True}}, pad_token="<pad>")
    assert run(source, tmp_path / "target", pieces_file) == 2
    assert "has added tokens beyond tokenizer.model ('<pad>': 512)" in only_error(capsys)


def test_two_vocabularies_in_one_directory_are_refused(
    source: Path, tmp_path: Path, pieces_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, tmp_path / "one", pieces_file) == 0
    shutil.copy(tmp_path / "one" / "tokenizer.json", source)
    assert run(source, tmp_path / "target", pieces_file) == 2
    assert "tokenizer.json and tokenizer.model hold different vocabularies" in only_error(capsys)


def test_only_tokenizer_json_is_refused(
    source: Path, tmp_path: Path, pieces_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (source / "tokenizer.model").rename(tmp_path / "away")
    assert run(source, tmp_path / "target", pieces_file) == 2
    assert "only sentencepiece tokenizers can be expanded so far" in only_error(capsys)


def reverse(field: str) -> Callable[[ModelProto], ModelProto]:
    """A fault: a hundred old pieces get each other's `field`."""

    def change(model: ModelProto) -> ModelProto:
        old = model.pieces[259:359]
        for piece, value in zip(old, [getattr(piece, field) for piece in reversed(old)], strict=True):
            setattr(piece, field, value)
        return model

    return change


@pytest.mark.parametrize(
    ("name", "fault", "message"),
    [
        ("scores_below", lambda _: lambda lowest, count: [0.0] * count, "differ on"),
        ("find_intermediates", lambda _: lambda model, pieces: [], "sentencepiece: '人工智能' gives"),
        (
            "write_tokenizer",
            lambda write: lambda s, t, model: write(s, t, reverse("piece")(model)),
            "ids not as planned",
        ),
        ("write_tokenizer", lambda write: lambda s, t, model: write(s, t, reverse("score")(model)), "old text '"),
    ],
)
def test_a_fault_of_ours_is_found_and_leaves_nothing(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    fault: Callable[[Callable[..., Any]], Callable[..., Any]],
    message: str,
) -> None:
    pieces_file = write_pieces(tmp_path / "pieces.jsonl", [*PIECES, "乙丙", "甲乙", "丙丁"])
    module = expand if name == "scores_below" else init_tokenizer
    monkeypatch.setattr(module, name, fault(getattr(module, name)))
    with pytest.raises(RuntimeError, match=f"the expanded tokenizer is not what it should be: .*{message}"):
        run(source, tmp_path / "target", pieces_file)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "pieces.jsonl"}
