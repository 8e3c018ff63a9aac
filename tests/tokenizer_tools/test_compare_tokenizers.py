"""The comparison, counted again by sentencepiece."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from tests.conftest import CHINESE, write_jsonl
from tests.tokenizer_tools.test_init_tokenizer import only_error
from tokenizer_tools import compare_tokenizers

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
    monkeypatch.setattr(compare_tokenizers, "DOCUMENTS_PER_BATCH", batch)
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
                "total": expected_figures(directory, [*ENGLISH, *CHINESE]),
            }
            for directory, size in ((base_tokenizer_dir, 32000), (tiny_tokenizer_dir, 512))
        }
    }


def test_table(data: Path, tiny_tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_tokenizers.main([str(tiny_tokenizer_dir), "--data", str(data)]) == 0
    lines = capsys.readouterr().out.splitlines()
    figures = expected_figures(tiny_tokenizer_dir, list(CHINESE))
    cells = next(line.split() for line in lines if "zh" in line)
    assert cells[:3] == ["zh", "4", str(figures["tokens"])]
    assert cells[3:] == [
        f"{figures['tokens_per_character']:.4f}",
        f"{figures['tokens_per_byte']:.4f}",
        f"{figures['tokens_per_document']:.1f}",
    ]
    assert any("512 pieces" in line for line in lines)
    assert any(line.split()[:2] == ["total", "6"] for line in lines)


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
        (["--data", "{data}"], "no tokenizer directory given; name one or more"),
        (["{tokenizer}", "--data", ","], "--data names no path; name"),
        (["{data}", "--data", "{data}"], "no such directory; name a tokenizer directory"),
        (["{tokenizer}"], "--data"),
    ],
)
def test_refusals(
    data: Path, tiny_tokenizer_dir: Path, argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(data=data, tokenizer=tiny_tokenizer_dir) for word in argv]
    assert compare_tokenizers.main(words) == 2
    assert message in only_error(capsys)
