"""Held-out figures against one document at a time through transformers, token by token."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from colossal_llama import evaluate
from colossal_llama.scoring import Window, batches, cut_windows
from tests.conftest import write_jsonl

RECORDS = [
    {"source": "", "target": "The import statement binds a name.", "category": "docs"},
    {"source": "", "target": "Lists are mutable; tuples are not. " * 6, "category": "docs"},
    {"source": "", "target": "今天天气很好。", "category": "zh"},
    {"source": "What is a list?", "target": " A mutable sequence of objects.", "category": "qa"},
    {"source": "And a set? " * 8, "target": "No duplicates, no order.", "category": "qa"},
]
MAX_LENGTH = 32


def by_hand(model_dir: Path, records: list[dict[str, str]], max_length: int) -> dict[str, dict[str, float]]:
    """Sums of nats, tokens, hits and bytes per category: every scored token sees what its window shows it."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, torch_dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    sums: dict[str, dict[str, float]] = {}
    for record in records:
        one = sums.setdefault(record["category"], dict.fromkeys(("nats", "tokens", "hits", "bytes", "documents"), 0))
        if record["source"]:
            prompt = tokenizer(record["source"])["input_ids"]
            # what follows other text gets no blank of its own
            ids = prompt + tokenizer("\n" + record["target"], add_special_tokens=False)["input_ids"][2:]
        else:
            prompt = [tokenizer.bos_token_id]
            ids = tokenizer(record["target"])["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        for position in range(len(prompt), len(ids)):
            first = (position - 1) // (max_length - 1) * (max_length - 1)
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([ids[first:position]])).logits[0, -1]
            one["nats"] -= logits.double().log_softmax(-1)[ids[position]].item()
            one["hits"] += int(logits.argmax().item() == ids[position])
            one["tokens"] += 1
        one["bytes"] += len(record["target"].encode())
        one["documents"] += 1
    return sums


@pytest.fixture(scope="module")
def trained(zero2_run: Path) -> Path:
    """A model that knows something, so that some tokens are predicted right."""
    return zero2_run / "modeling"


@pytest.fixture
def fp32_model(trained: Path, tmp_path: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(trained, torch_dtype=torch.float32)
    model.save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(trained).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def figures(argv: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The one JSON document on stdout."""
    capsys.readouterr()
    assert evaluate.main([*argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("batch_tokens", [1, 100, 4096])
def test_figures_are_those_of_a_loop_over_tokens(
    batch_tokens: int, fp32_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "data" / "all.jsonl", RECORDS)
    argv = ["--model", str(fp32_model), "--data", str(data.parent), "--max_length", str(MAX_LENGTH)]
    result = figures([*argv, "--batch_tokens", str(batch_tokens)], capsys)
    expected = by_hand(fp32_model, RECORDS, MAX_LENGTH)
    assert list(result["categories"]) == ["docs", "qa", "zh"]
    expected["total"] = {name: sum(one[name] for one in expected.values()) for name in expected["zh"]}
    assert expected["total"]["hits"] > 0
    for category, sums in expected.items():
        one = result["total"] if category == "total" else result["categories"][category]
        loss = sums["nats"] / sums["tokens"]
        assert (one["tokens"], one["bytes"], one["documents"]) == (sums["tokens"], sums["bytes"], sums["documents"])
        assert one["accuracy"] == pytest.approx(sums["hits"] / sums["tokens"], abs=1e-12)
        assert one["loss"] == pytest.approx(loss, rel=1e-5)
        assert one["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
        assert one["bits_per_byte"] == pytest.approx(sums["nats"] / math.log(2) / sums["bytes"], rel=1e-5)


def test_table_and_a_limit_of_documents(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl(tmp_path / "all.jsonl", RECORDS)
    argv = ["--model", str(trained), "--data", str(data), "--max_documents", "1"]
    result = figures(argv, capsys)
    assert {name: one["documents"] for name, one in result["categories"].items()} == {"docs": 1, "qa": 1, "zh": 1}
    assert result["categories"]["docs"]["bytes"] == len(RECORDS[0]["target"].encode())
    assert evaluate.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.strip()] == ["category", "docs", "qa", "zh", "all"]


@given(length=st.integers(1, 200), loss_start=st.integers(0, 200), max_length=st.integers(2, 40))
def test_every_token_is_scored_exactly_once(length: int, loss_start: int, max_length: int) -> None:
    ids = list(range(length))
    windows = list(cut_windows("c", ids, loss_start, max_length))
    scored = [token for window in windows for token in window.input_ids[window.loss_start :]]
    assert scored == list(range(max(1, loss_start), length))
    for window in windows:
        first = window.input_ids[0]
        assert window.input_ids == ids[first : first + len(window.input_ids)]
        assert 2 <= len(window.input_ids) <= max_length
        assert 1 <= window.loss_start < len(window.input_ids)


@given(st.lists(st.integers(2, 50), min_size=1, max_size=40), st.integers(1, 200))
def test_batches_hold_every_window_within_the_bound(lengths: list[int], batch_tokens: int) -> None:
    windows = [Window("c", [index] * length, 1) for index, length in enumerate(lengths)]
    cut = list(batches(windows, batch_tokens))
    assert sorted(window.input_ids for batch in cut for window in batch) == sorted(w.input_ids for w in windows)
    for batch in cut:
        widest = max(len(window.input_ids) for window in batch)
        assert len(batch[0].input_ids) == widest
        assert len(batch) == 1 or len(batch) * widest <= batch_tokens


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"target": "fine"}\n{"target": 5}\n', ["bad.jsonl:2:", "target_not_a_string"]),
        ('{"target": "fine"}\n\n{"target": \n', ["bad.jsonl:3:", "invalid_json"]),
        ("\n\n", ["bad.jsonl", "holds no document"]),
    ],
)
def test_bad_data_is_refused_with_its_line(
    text: str, words: list[str], tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jsonl").write_text(text)
    assert evaluate.main(["--model", str(tiny_model_dir), "--data", str(tmp_path / "bad.jsonl")]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert [word for word in words if word not in line] == []
    assert captured.out == ""


def test_missing_paths_and_short_windows_are_refused(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "all.jsonl", RECORDS)
    for argv, words in [
        (["--model", str(tiny_model_dir), "--data", "nowhere"], "--data nowhere: no such file"),
        (["--model", "nowhere", "--data", str(data)], "nowhere"),
        (["--model", str(tiny_model_dir), "--data", str(data), "--max_length", "1"], "--max_length 1"),
    ]:
        assert evaluate.main(argv) == 2
        assert words in capsys.readouterr().err
