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

from tests.conftest import CHINESE, write_jsonl
from tokenizer_tools import closure, init_tokenizer, sentencepiece_bpe
from tokenizer_tools.byte_level_bpe import ByteLevelBpe
from tokenizer_tools.sentencepiece_bpe import ModelProto, SentencePieceBpe, load_model

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
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
        assert "would replace" in only_error(capsys)
    assert (source / "tokenizer.model").is_file()


def test_nothing_new_is_refused(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = load_model(source / "tokenizer.model").pieces[400].piece
    assert run(source, tmp_path / "target", write_pieces(tmp_path / "p.jsonl", [known])) == 2
    assert f"p.jsonl: no new piece in 1 lines, for example {tmp_path / 'p.jsonl'}:1: already" in only_error(capsys)
    assert run(source, tmp_path / "target", write_pieces(tmp_path / "p.jsonl", [])) == 2
    assert "p.jsonl: no new piece in 0 lines; write one" in only_error(capsys)
    assert not (tmp_path / "target").exists()


def test_added_tokens_behind_the_model_keep_their_ids(source: Path, tmp_path: Path, pieces_file: Path) -> None:
    added = {
        "512": {"content": "<pad>", "special": True},
        "513": {"content": "<|user|>", "special": True, "lstrip": True},
        "514": {"content": "[tool]", "special": False, "normalized": False},
    }
    change_settings(source, added_tokens_decoder=added, pad_token="<pad>")
    assert run(source, tmp_path / "target", pieces_file) == 0
    for use_fast in (False, True):
        old, new = (AutoTokenizer.from_pretrained(d, use_fast=use_fast) for d in (source, tmp_path / "target"))
        assert old.convert_tokens_to_ids(["<pad>", "<|user|>", "[tool]"]) == [512, 513, 514]
        assert old.get_vocab().items() <= new.get_vocab().items()
        assert new.pad_token_id == 512
        assert {k: str(token) for k, token in old.added_tokens_decoder.items()} == {
            k: str(token) for k, token in new.added_tokens_decoder.items()
        }
        text = "the <|user|> of[tool] a<pad>"
        assert new.encode(text) == old.encode(text)
        assert {512, 513, 514} <= set(new.encode(text))
        assert new.convert_tokens_to_ids(PIECES) == list(range(515, 515 + len(PIECES)))
        assert 515 in new.encode("。人工智能<|user|>。")


def test_the_fast_class_made_anew_from_the_slow_one_agrees(source: Path, tmp_path: Path, pieces_file: Path) -> None:
    assert run(source, tmp_path / "target", pieces_file) == 0
    written, anew = (AutoTokenizer.from_pretrained(tmp_path / "target", from_slow=slow) for slow in (False, True))
    for text in (*CHINESE, "".join(PIECES).replace("▁", " "), "the machine"):
        assert written.encode(text) == anew.encode(text)


def test_a_fast_class_of_its_own_making_stays_so(source: Path, tmp_path: Path) -> None:
    """Many directories hold a tokenizer.json made before `legacy` was set to false: it is not made anew."""
    change_settings(source, legacy=True)
    AutoTokenizer.from_pretrained(source).backend_tokenizer.save(str(source / "tokenizer.json"))
    change_settings(source, legacy=False)
    old_normaliser = json.loads((source / "tokenizer.json").read_text())["normalizer"]
    assert run(source, tmp_path / "target", write_pieces(tmp_path / "pieces.jsonl", PIECES)) == 0
    assert json.loads((tmp_path / "target" / "tokenizer.json").read_text())["normalizer"] == old_normaliser
    assert old_normaliser["type"] == "Sequence"


def test_what_surrounds_the_pieces_stays_as_the_source_has_it(
    byte_level_tokenizer_dir: Path, source: Path, tmp_path: Path, pieces_file: Path
) -> None:
    for name, directory in (("sentencepiece", source), ("byte level", byte_level_tokenizer_dir)):
        AutoTokenizer.from_pretrained(directory).backend_tokenizer.save(str(tmp_path / "before.json"))
        assert run(directory, tmp_path / name, pieces_file) == 0
        before = json.loads((tmp_path / "before.json").read_text())
        after = json.loads((tmp_path / name / "tokenizer.json").read_text())
        for layout in (before, after):
            del layout["model"]["vocab"], layout["model"]["merges"]
        assert after == before


def test_two_vocabularies_in_one_directory_are_refused(
    source: Path, tmp_path: Path, pieces_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, tmp_path / "one", pieces_file) == 0
    shutil.copy(tmp_path / "one" / "tokenizer.json", source)
    assert run(source, tmp_path / "target", pieces_file) == 2
    assert "tokenizer.json and tokenizer.model hold different vocabularies" in only_error(capsys)


def test_a_file_of_every_fault(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ['{"piece": "甲"}', "{", '{"piece": 3}', "{}", '{"piece": ""}', '{"piece": "  "}', '{"piece": "甲"}', "",
             '{"piece": "a\\u0007"}', '{"piece": "the"}', '{"piece": "<s>"}', '{"piece": "<0xE4>"}',
             json.dumps({"piece": "长" * 65}), '{"piece": "x y"}', '{"piece": "x▁y"}']  # fmt: skip
    file = tmp_path / "pieces.jsonl"
    file.write_text("\n".join(lines) + "\n")
    assert run(source, tmp_path / "target", file) == 0
    report = (tmp_path / "target" / "tokenizer_report.md").read_text()
    assert [line.split(": ")[0].rpartition(":")[2] for line in report.splitlines() if "pieces.jsonl:" in line] == (
        ["2", "3", "4", "5", "6", "9", "11", "12", "13"]
        + ["7", "8", "15"]
        + (["10"] if "10: already" in report else [])
    )
    assert json.loads((tmp_path / "target" / "manifest.json").read_text())["pieces"]["read"] == len(lines)
    assert run(source, tmp_path / "strict", file, "--strict") == 2
    assert only_error(capsys) == (
        f"error: {file}:2: not JSON: '{{'; correct or remove the line, or leave out --strict (9 are refused)"
    )
    assert not (tmp_path / "strict").exists()


def test_strict_lets_harmless_lines_pass(source: Path, tmp_path: Path) -> None:
    file = write_pieces(tmp_path / "pieces.jsonl", ["甲", "甲"])
    assert run(source, tmp_path / "target", file, "--strict") == 0


def test_no_intermediates_refuses_what_needs_them(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_pieces(tmp_path / "pieces.jsonl", ["甲", "乙", "甲乙", "甲乙丙", "甲丁"])
    assert run(source, tmp_path / "none", file, "--no_intermediates") == 0
    manifest = json.loads((tmp_path / "none" / "manifest.json").read_text())
    assert (manifest["pieces"]["added"], manifest["intermediates"]) == (3, [])
    assert manifest["pieces"]["refused"] == {"needs more intermediates than allowed": 2}
    assert (
        "pieces.jsonl:4: needs more intermediates than allowed: '甲乙丙' needs '丙' as a step"
        in capsys.readouterr().out
    )
    assert run(source, tmp_path / "one", file, "--max_intermediates", "1") == 0
    manifest = json.loads((tmp_path / "one" / "manifest.json").read_text())
    assert (manifest["pieces"]["added"], manifest["intermediates"]) == (4, ["丙"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--no_intermediates", "--max_intermediates", "3"],
            "--no_intermediates means --max_intermediates 0; give only",
        ),
        (["--max_intermediates", "-1"], "--max_intermediates -1: has to be 0 or more; leave it out for no limit"),
        (["--pad_vocab_to_multiple_of", "0"], "--pad_vocab_to_multiple_of 0: has to be 1"),
        (["--proof_texts", "nowhere"], "nowhere: no such file or directory"),
        (["--forbid_old_text_changes", "nowhere"], "nowhere: no such file or directory"),
    ],
)
def test_flags_that_cannot_work(
    source: Path, tmp_path: Path, pieces_file: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(source, tmp_path / "target", pieces_file, *flags) == 2
    assert message in only_error(capsys)
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("kind", ["sentencepiece", "byte level"])
def test_the_vocabulary_is_filled_up_with_reserved_pieces(
    kind: str, source: Path, byte_level_tokenizer_dir: Path, tmp_path: Path
) -> None:
    directory = source if kind == "sentencepiece" else byte_level_tokenizer_dir
    file = write_pieces(tmp_path / "pieces.jsonl", [*PIECES, "reserved"])
    assert run(directory, tmp_path / "target", file, "--pad_vocab_to_multiple_of", "64") == 0
    reserved = json.loads((tmp_path / "target" / "manifest.json").read_text())["reserved"]
    assert reserved == [f"<reserved_{k}>" for k in range(len(reserved))] and 0 < len(reserved) < 64
    for use_fast in (False, True):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "target", use_fast=use_fast)
        assert len(tokenizer) % 64 == 0
        assert tokenizer.convert_tokens_to_ids(reserved) == list(range(len(tokenizer) - len(reserved), len(tokenizer)))
        ids = tokenizer.encode("a <reserved_0><reserved_1> b")
        assert not set(ids) & set(tokenizer.convert_tokens_to_ids(reserved))
        assert tokenizer.decode(ids, skip_special_tokens=True) == "a <reserved_0><reserved_1> b"
    assert run(tmp_path / "target", tmp_path / "again", file.rename(tmp_path / "p") and write_pieces(file, ["寿"]),
               "--pad_vocab_to_multiple_of", "64") == 0  # fmt: skip
    again = json.loads((tmp_path / "again" / "manifest.json").read_text())["reserved"]
    assert not set(again) & set(reserved)


@pytest.fixture
def texts(tmp_path: Path, english_texts: list[str]) -> Path:
    records = [{"target": text, "category": "en"} for text in english_texts[:6]]
    records += [{"target": text, "category": "zh"} for text in CHINESE]
    return write_jsonl(tmp_path / "texts" / "all.jsonl", records)


@pytest.mark.parametrize("kind", ["sentencepiece", "byte level"])
def test_real_text_is_compared_and_what_changes_is_told(
    kind: str, source: Path, byte_level_tokenizer_dir: Path, tmp_path: Path, texts: Path
) -> None:
    directory = source if kind == "sentencepiece" else byte_level_tokenizer_dir
    file = write_pieces(tmp_path / "pieces.jsonl", ["天气", "▁management", "世界", "xylophonist"])
    assert run(directory, tmp_path / "target", file, "--proof_texts", str(texts)) == 0
    proof = json.loads((tmp_path / "target" / "manifest.json").read_text())["proof_texts"]
    old, new = (AutoTokenizer.from_pretrained(d) for d in (directory, tmp_path / "target"))
    records = [json.loads(line) for line in texts.read_text().splitlines()]
    for category in ("en", "zh"):
        documents = [record["target"] for record in records if record["category"] == category]
        before, after = ([t.encode(d, add_special_tokens=False) for d in documents] for t in (old, new))
        assert proof[category]["documents"] == len(documents)
        assert proof[category]["changed"] == sum(map(list.__ne__, before, after))
        assert proof[category]["tokens_before"] == sum(map(len, before))
        assert proof[category]["tokens_after"] == sum(map(len, after))
    assert proof["en"]["most_common_new_pieces"]["▁management"] == sum(
        record["target"].count(" management") for record in records if record["category"] == "en"
    )
    assert proof["zh"]["most_common_new_pieces"]["天气"] == 1
    assert "| en | 6 | " in (tmp_path / "target" / "tokenizer_report.md").read_text()


@pytest.mark.parametrize("kind", ["sentencepiece", "byte level"])
def test_pieces_that_change_old_text_can_be_forbidden(
    kind: str, source: Path, byte_level_tokenizer_dir: Path, tmp_path: Path, english_texts: list[str]
) -> None:
    directory = source if kind == "sentencepiece" else byte_level_tokenizer_dir
    old_text = write_jsonl(tmp_path / "old.jsonl", [{"target": text} for text in english_texts])
    # anagement leads to management and is in the text itself; managementx is not, but its way leads over management
    file = write_pieces(tmp_path / "pieces.jsonl", ["天气", "▁management", "anagement", "▁managementx", "xylophonist"])
    assert run(directory, tmp_path / "target", file, "--forbid_old_text_changes", str(old_text)) == 0
    old, new = (AutoTokenizer.from_pretrained(d) for d in (directory, tmp_path / "target"))
    for text in english_texts:
        assert old.encode(text) == new.encode(text)
    ids = new.get_vocab()
    manifest = json.loads((tmp_path / "target" / "manifest.json").read_text())
    assert manifest["pieces"]["refused"]["changes old text"] >= 2
    assert "Ġmanagement" not in ids and "▁management" not in ids and "anagement" not in ids and "xylophonist" in ids
    assert (
        "pieces.jsonl:2: changes old text: '▁management' " in (tmp_path / "target" / "tokenizer_report.md").read_text()
    )


@pytest.fixture
def slow_source(tmp_path: Path, byte_level_tokenizer_dir: Path) -> Path:
    """A Qwen-like directory: tokenizer.json and, for the slow class, vocab.json and merges.txt."""
    directory = shutil.copytree(byte_level_tokenizer_dir, tmp_path / "qwen")
    layout = json.loads((directory / "tokenizer.json").read_text())
    ids = layout["model"]["vocab"]
    (directory / "vocab.json").write_text(json.dumps(ids))
    merges = [" ".join(merge) for merge in layout["model"]["merges"]]
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    layout["model"]["ignore_merges"] = False
    layout["normalizer"] = {"type": "NFC"}
    layout["post_processor"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    layout["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = QWEN_SPLIT
    (directory / "tokenizer.json").write_text(json.dumps(layout))
    controls = {str(token["id"]): {"content": token["content"], "special": True} for token in layout["added_tokens"]}
    first = layout["added_tokens"][0]["content"]
    settings = {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": controls, "bos_token": None}
    settings |= {"eos_token": first, "pad_token": first, "unk_token": None, "split_special_tokens": False}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "special_tokens_map.json").unlink()
    return directory


def test_the_slow_class_of_a_byte_level_source_goes_along(slow_source: Path, tmp_path: Path, texts: Path) -> None:
    file = write_pieces(tmp_path / "pieces.jsonl", PIECES)
    flags = ["--proof_texts", str(texts), "--pad_vocab_to_multiple_of", "8"]
    assert run(slow_source, tmp_path / "target", file, *flags) == 0
    slow, fast = (AutoTokenizer.from_pretrained(tmp_path / "target", use_fast=use_fast) for use_fast in (False, True))
    assert not slow.is_fast and fast.is_fast
    assert slow.get_vocab() == fast.get_vocab()
    old = AutoTokenizer.from_pretrained(slow_source)
    assert old.get_vocab().items() <= fast.get_vocab().items()
    first_id = len(old)
    for k, piece in enumerate(PIECES):
        for tokenizer in (slow, fast):
            assert tokenizer.encode(piece.replace("▁", " ")) == [first_id + k]
    for text in (*CHINESE, "a <|end_of_text|> b", "".join(PIECES).replace("▁", " ")):
        assert slow.encode(text) == fast.encode(text)


def test_a_piece_that_its_text_cannot_reach_is_found(
    byte_level_tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ByteLevelBpe, "fault_of", lambda self, piece: None)
    with pytest.raises(RuntimeError, match=r"fast tokenizer: '.*' gives \[.*\], not"):
        run(byte_level_tokenizer_dir, tmp_path / "target", write_pieces(tmp_path / "p.jsonl", ["你好，世界"]))
    assert not (tmp_path / "target").exists()


def test_llama3_sources_are_expanded(byte_level_tokenizer_dir: Path, tmp_path: Path) -> None:
    file = write_pieces(tmp_path / "pieces.jsonl", [*PIECES, "你好，世界"])
    assert run(byte_level_tokenizer_dir, tmp_path / "target", file) == 0
    old, new = (AutoTokenizer.from_pretrained(d) for d in (byte_level_tokenizer_dir, tmp_path / "target"))
    assert new.bos_token_id == old.bos_token_id and new.encode("a")[0] == old.bos_token_id
    assert new.model_max_length == old.model_max_length
    for k, piece in enumerate(PIECES):
        assert new.encode(piece.replace("▁", " "), add_special_tokens=False) == [len(old) + k]
        assert len(old) + k in new.encode("我" + piece.replace("▁", " ") + "了")
    manifest = json.loads((tmp_path / "target" / "manifest.json").read_text())
    assert manifest["pieces"]["refused"] == {"split by the pre-tokenizer": 1}
    assert all(isinstance(piece, str) and piece for piece in manifest["intermediates"])


def reverse(field: str) -> Callable[[ModelProto], ModelProto]:
    """A fault: a hundred old pieces get each other's `field`."""

    def change(model: ModelProto) -> ModelProto:
        old = model.pieces[259:359]
        for piece, value in zip(old, [getattr(piece, field) for piece in reversed(old)], strict=True):
            setattr(piece, field, value)
        return model

    return change


def faulty_write(change: Callable[[ModelProto], ModelProto]) -> Callable[..., None]:
    """SentencePieceBpe.write, but what it writes is changed."""
    write = SentencePieceBpe.write

    def write_changed(self: SentencePieceBpe, target: Path, new: list[str], reserved: list[str]) -> None:
        write(self, target, new, reserved)
        model = change(load_model(target / "tokenizer.model"))
        (target / "tokenizer.model").write_bytes(model.SerializeToString())
        (target / "tokenizer.json").unlink()

    return write_changed


@pytest.mark.parametrize(
    ("room", "name", "fault", "message"),
    [
        (sentencepiece_bpe, "scores_below", lambda lowest, count: [0.0] * count, "differ on"),
        (init_tokenizer, "close", lambda _, pieces, limit: closure.Closure(pieces), "fast tokenizer: '人工智能' gives"),
        (SentencePieceBpe, "write", faulty_write(reverse("piece")), "ids not as planned"),
        (SentencePieceBpe, "write", faulty_write(reverse("score")), "the old piece "),
        (init_tokenizer, "reserved_pieces", lambda taken, multiple: ["甲乙丙"], "a reserved piece can be made"),
    ],
)
def test_a_fault_of_ours_is_found_and_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: object, name: str, fault: Any, message: str
) -> None:
    pieces_file = write_pieces(tmp_path / "pieces.jsonl", [*PIECES, "乙丙", "甲乙", "丙丁"])
    monkeypatch.setattr(room, name, fault)
    with pytest.raises(RuntimeError, match=message):
        run(source, tmp_path / "target", pieces_file)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "pieces.jsonl"}
