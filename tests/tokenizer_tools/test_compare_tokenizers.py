"""The comparison, counted again by sentencepiece."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from tests.conftest import CHINESE, write_jsonl
from tests.tokenizer_tools.test_init_tokenizer import only_error
from tokenizer_tools import compare_tokenizers, figures

ENGLISH = ["Hello world", "a </s> b"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    records = [{"source": text[:4], "target": text[4:], "category": "zh"} for text in CHINESE]
    records += [{"source": "", "target": text, "category": "en"} for text in ENGLISH]
    return write_jsonl(tmp_path / "data" / "a.jsonl", records)


def expected_figures(directory: Path, texts: list[str]) -> dict[str, Any]:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    tokens = sum(map(len, processor.encode(texts)))
    characters, num_bytes = sum(map(len, texts)), sum(len(text.encode()) for text in texts)
    return {
        "documents": len(texts),
        "tokens": tokens,
        "characters": characters,
        "bytes": num_bytes,
        "tokens_per_character": tokens / characters,
        "tokens_per_byte": tokens / num_bytes,
        "tokens_per_document": tokens / len(texts),
    }


@pytest.mark.parametrize("batch", [1, 4, 512])
def test_json_document(
    data: Path,
    base_tokenizer_dir: Path,
    tiny_tokenizer_dir: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
) -> None:
    monkeypatch.setattr(figures, "DOCUMENTS_PER_BATCH", batch)
    directories = [str(base_tokenizer_dir), str(tiny_tokenizer_dir)]
    assert compare_tokenizers.main([*directories, "--data", str(data.parent), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == {
        "tokenizers": {
            str(directory): {
                "vocab_size": size,
                "categories": {
                    "en": expected_figures(directory, ENGLISH),
                    "zh": expected_figures(directory, list(CHINESE)),
                },
                "languages": {
                    "latin": expected_figures(directory, ENGLISH),
                    "zh": expected_figures(directory, list(CHINESE)),
                },
                "total": expected_figures(directory, [*ENGLISH, *CHINESE]),
            }
            for directory, size in ((base_tokenizer_dir, 32000), (tiny_tokenizer_dir, 512))
        }
    }


def cells(figures: dict[str, Any]) -> list[str]:
    """tokens and the three ratios, as a table shows them."""
    return [
        f"{figures['tokens']:,}",
        f"{figures['tokens_per_character']:.4f}",
        f"{figures['tokens_per_byte']:.4f}",
        f"{figures['tokens_per_document']:.1f}",
    ]


def test_tables_show_the_tokenizers_side_by_side(
    data: Path, base_tokenizer_dir: Path, tiny_tokenizer_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directories = {"base": base_tokenizer_dir, "tiny": tiny_tokenizer_dir}
    for name, directory in directories.items():
        (tmp_path / name).symlink_to(directory)
    argv = [str(tmp_path / name) for name in directories] + ["--data", str(data)]
    assert compare_tokenizers.main([*argv, "--markdown", str(tmp_path / "new" / "t.md")]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    lines = [line.strip("|").split("|") for line in (tmp_path / "new" / "t.md").read_text().splitlines()]
    written = [[cell.strip() for cell in line] for line in lines]
    total = [expected_figures(directory, [*ENGLISH, *CHINESE]) for directory in directories.values()]
    chinese = [expected_figures(directory, list(CHINESE)) for directory in directories.values()]
    assert ["#1", str(tmp_path / "base"), "32,000", *cells(total[0])] in written
    assert ["#2", str(tmp_path / "tiny"), "512", *cells(total[1])] in written
    assert written.count(["zh", "4", "#1", *cells(chinese[0])]) == 2  # as a language and as a category
    assert written.count(["", "", "#2", *cells(chinese[1])]) == 2
    assert printed.count(["zh", "4", "#1", *cells(chinese[0])]) == 2
    assert printed.count(["#2", *cells(chinese[1])]) == 2
    assert [row[-5:] for row in printed if row[:1] == ["#1"]][0] == ["32,000", *cells(total[0])]


def test_bars_cannot_break_a_markdown_table(data: Path, tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "a|b").symlink_to(tiny_tokenizer_dir)
    argv = [str(tmp_path / "a|b"), "--data", str(data), "--markdown", str(tmp_path / "t.md")]
    assert compare_tokenizers.main(argv) == 0
    assert "a\\|b |" in (tmp_path / "t.md").read_text()


def train_unigram(path: Path) -> Path:
    """A bare sentencepiece file that is no BPE."""
    with path.open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([*CHINESE, *ENGLISH] * 9),
            model_writer=model,
            model_type="unigram",
            vocab_size=120,
            hard_vocab_limit=False,
            minloglevel=2,
        )
    return path


def test_every_kind_of_tokenizer(
    data: Path,
    base_tokenizer_dir: Path,
    byte_level_tokenizer_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tokenizers import Tokenizer

    bpe = tmp_path / "tokenizer.model.v1"
    bpe.write_bytes((base_tokenizer_dir / "tokenizer.model").read_bytes())
    unigram = train_unigram(tmp_path / "unigram.model")
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "tokenizer.json").write_bytes((byte_level_tokenizer_dir / "tokenizer.json").read_bytes())
    paths = [bpe, unigram, byte_level_tokenizer_dir, bare]
    assert compare_tokenizers.main([*map(str, paths), "--data", str(data), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["tokenizers"]
    texts = [*ENGLISH, *CHINESE]
    for path in (bpe, unigram):
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        assert result[str(path)]["vocab_size"] == processor.get_piece_size()
        assert result[str(path)]["total"]["tokens"] == sum(map(len, processor.encode(texts)))
    byte_level = Tokenizer.from_file(str(bare / "tokenizer.json"))
    for path in (byte_level_tokenizer_dir, bare):
        assert result[str(path)]["vocab_size"] == byte_level.get_vocab_size()
        tokens = sum(len(byte_level.encode(text, add_special_tokens=False).ids) for text in texts)
        assert result[str(path)]["total"]["tokens"] == tokens


def test_plot(data: Path, tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    argv = [str(tiny_tokenizer_dir), "--data", str(data), "--plot", str(tmp_path / "new" / "t.png")]
    assert compare_tokenizers.main(argv) == 0
    assert (tmp_path / "new" / "t.png").read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["t.png"]


def test_empty_documents_divide_nothing_by_nothing(
    tmp_path: Path, tiny_tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = write_jsonl(tmp_path / "a.jsonl", [])
    assert compare_tokenizers.main([str(tiny_tokenizer_dir), "--data", str(empty), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)["tokenizers"][str(tiny_tokenizer_dir)]
    assert (result["categories"], result["total"]["tokens_per_byte"]) == ({}, 0)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--data", "{data}"], "no tokenizer given; name one or more"),
        (["{tokenizer}", "--data", ","], "--data names no path; name"),
        (["{tmp}/nix", "--data", "{data}"], "no such directory; name a tokenizer directory"),
        (["{data}", "--data", "{data}"], "a.jsonl: not a sentencepiece model, or only a part of one; name a tokenizer"),
        (["{tmp}/broken", "--data", "{data}"], "tokenizer.json: not a readable tokenizer"),
        (["{tokenizer}"], "--data"),
        (["{tokenizer}", "--data", "{data}", "--markdown", "{data}"], "a.jsonl: exists; add --overwrite to replace it"),
        (["{tokenizer}", "--data", "{data}", "--markdown", "{tmp}"], "is a directory, but the output is a file"),
        (["{tokenizer}", "--data", "{data}", "--plot", "{tmp}/t.jpg"], "t.jpg: has to end in .png"),
    ],
)
def test_refusals(
    data: Path,
    tmp_path: Path,
    tiny_tokenizer_dir: Path,
    argv: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text('{"model": ')
    words = [word.format(data=data, tokenizer=tiny_tokenizer_dir, tmp=tmp_path) for word in argv]
    assert compare_tokenizers.main(words) == 2
    assert message in only_error(capsys)
