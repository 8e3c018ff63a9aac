"""Fixtures for stage 3: a small corpus of several categories, and the command as a user runs it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_tools import bucket_writer, parts, prepare_pretrain_dataset

WORDS = [
    "the",
    "river",
    "runs",
    "人工智能",
    "正在",
    "改变",
    "世界",
    "colour",
    "colours",
    "naïve",
    "</s>",
    "<s>",
    "🙂",
    "def",
    "f(x):",
    "12345",
    "月光",
    "如水",
]

Documents = list[dict[str, str]]
Prepare = Callable[..., Path]
Run = Callable[..., int]


def make_documents(num_documents: int, seed: int = 0) -> Documents:
    """Three categories, every third document with a source, lengths from 1 to 400 words, each text once."""
    draw = random.Random(seed)
    documents = []
    for index in range(num_documents):
        words = draw.choices(WORDS, k=int(draw.paretovariate(0.8)) % 400 + 1)
        source = f"question {index}? " if index % 3 == 0 else ""
        category = ("en", "poetry", "zh")[index % 7 % 3]
        documents.append({"source": source, "target": f"{index} " + " ".join(words), "category": category})
    return documents


def write_documents(path: Path, documents: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(document) + "\n" for document in documents))


@pytest.fixture
def documents() -> Documents:
    return make_documents(200)


@pytest.fixture
def corpus_dir(tmp_path: Path, documents: Documents) -> Path:
    write_documents(tmp_path / "corpus" / "a.jsonl", documents[:80])
    write_documents(tmp_path / "corpus" / "below" / "b.jsonl", documents[80:])
    return tmp_path / "corpus"


@pytest.fixture
def prepare(tmp_path: Path, tiny_tokenizer_dir: Path, corpus_dir: Path) -> Prepare:
    """`prepare("name", max_length=64, ...)` runs the command on the corpus and gives its output directory."""

    def run(name: str = "bins", **flags: Any) -> Path:
        flags = {"data_input_dirs": corpus_dir, "max_length": 128, "num_spliced_dataset_bins": 4} | flags
        flags |= {"tokenizer_dir": tiny_tokenizer_dir, "data_arrow_output_dir": tmp_path / name}
        words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
        assert prepare_pretrain_dataset.main(words) == 0
        return tmp_path / name

    return run


@pytest.fixture
def run(tmp_path: Path, tiny_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command on a corpus of some parts and buckets, each a task of its own."""
    monkeypatch.setattr(parts, "PART_BYTES", 20_000)
    monkeypatch.setattr(bucket_writer, "SHARD_TOKENS", 4_000)
    documents = make_documents(200)
    (tmp_path / "corpus").mkdir()
    write_documents(tmp_path / "corpus" / "a.jsonl", documents[:150])
    write_documents(tmp_path / "corpus" / "b.jsonl", [*documents[150:], {"target": ""}])

    def command(name: str = "out", **flags: Any) -> int:
        defaults = {"data_input_dirs": tmp_path / "corpus", "tokenizer_dir": tiny_tokenizer_dir, "num_workers": 1}
        defaults |= {"max_length": 128, "num_spliced_dataset_bins": 3, "data_arrow_output_dir": tmp_path / name}
        words = [word for flag, value in (defaults | flags).items() for word in (f"--{flag}", str(value))]
        return prepare_pretrain_dataset.main(words)

    return command
