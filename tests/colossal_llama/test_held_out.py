"""Figures of held-out rows during training, against `evaluate` on the same documents; and when a watched set warns."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from colossal_llama import evaluate, held_out
from colossal_llama.held_out import bounds_of, figures_of, first_bits_per_byte, warnings
from colossal_llama.journal import Journal
from data_tools import prepare_pretrain_dataset
from data_tools.bins import open_bins
from tests.conftest import argv_of, read_evaluations, write_jsonl
from tokenizer_tools.tokenizer import TextEncoder, load_tokenizer

ROW_LENGTH = 64
CATEGORIES = ("licence", "more")


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path, english_texts: list[str]) -> Path:
    """A jsonl file and, beside it, bins of the same documents: each fills more than half a row, so none share one."""
    encoder = TextEncoder(load_tokenizer(tiny_tokenizer_dir))
    directory = tmp_path_factory.mktemp("documents")
    records = []
    for index, text in enumerate(english_texts[:12]):
        words = text.split(" ")
        ends = [end for end in range(len(words)) if len(encoder.encode_batch([" ".join(words[:end])])[0]) < 50]
        target = " ".join(words[: max(ends)])
        source = "Question: " if index % 3 == 0 else ""
        records.append({"source": source, "target": target, "category": CATEGORIES[index % 2]})
    write_jsonl(directory / "text" / "all.jsonl", records)
    flags = {
        "data_input_dirs": directory / "text",
        "tokenizer_dir": tiny_tokenizer_dir,
        "data_cache_dir": directory / "cache",
        "data_arrow_output_dir": directory / "arrow",
        "max_length": ROW_LENGTH,
        "num_spliced_dataset_bins": 1,
    }
    assert prepare_pretrain_dataset.main(argv_of(**flags)) == 0
    bins = open_bins([directory / "arrow"])
    rows = [one.row(index) for one in bins.bins for index in range(one.num_rows)]
    assert [len(row.document_lengths) for row in rows] == [1] * 12
    return directory


def test_figures_are_those_of_evaluate(
    documents: Path,
    train: Callable[..., list[dict[str, Any]]],
    tiny_model_dir: Path,
    tiny_bins_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Control tokens cost no bits a byte in either; the loss here counts them too, so it is another one."""
    train(
        2,
        tmp_path / "run",
        pretrained=tiny_model_dir,
        dataset=tiny_bins_dir,
        eval_dataset=f"one={documents / 'arrow'}",
        plugin="zero2",
        mixed_precision="fp32",
        max_steps=1,
        micro_batch_size=4,
        max_length=ROW_LENGTH,
        lr=1e-30,
    )
    ours = read_evaluations(tmp_path / "run")[-1]["eval"]["one"]
    assert evaluate.main(argv_of(model=tiny_model_dir, data=documents / "text", json=True)) == 0
    theirs = json.loads(capsys.readouterr().out)
    assert set(ours["categories"]) == set(theirs["categories"]) == set(CATEGORIES)
    for own, other in [
        (ours, theirs["total"]),
        *((ours["categories"][name], theirs["categories"][name]) for name in CATEGORIES),
    ]:
        assert own["bytes"] == other["bytes"]
        assert own["bits_per_byte"] == pytest.approx(other["bits_per_byte"], rel=1e-5)
        assert own["tokens"] > other["tokens"], "the end of a document is learnt"


def test_figures_are_ratios_of_the_sums() -> None:
    sums = torch.tensor([[4.0, 6.0, 1.0, 5.0, 10.0], [0.0] * 5, [6.0, 2.0, 5.0, 1.0, 6.0]], dtype=torch.float64)
    figures = figures_of(sums, ["a", "b", "c"])
    assert figures["categories"]["a"] == pytest.approx(
        {
            "loss": 1.5,
            "perplexity": math.exp(1.5),
            "accuracy": 0.25,
            "bits_per_byte": 0.5 / math.log(2),
            "tokens": 4,
            "bytes": 10,
        }
    )
    assert list(figures.pop("categories")) == ["a", "c"]
    assert figures == pytest.approx(
        {
            "loss": 0.8,
            "perplexity": math.exp(0.8),
            "accuracy": 0.6,
            "bits_per_byte": 6 / 16 / math.log(2),
            "tokens": 10,
            "bytes": 16,
        }
    )


def test_a_loss_beyond_all_bounds_has_a_perplexity() -> None:
    figures = figures_of(torch.tensor([[1.0, 1e6, 0.0, 1e6, 1.0]], dtype=torch.float64), ["a"])
    assert math.isfinite(figures["perplexity"])
    assert figures_of(torch.zeros(1, 5, dtype=torch.float64), ["a"]) == {
        **dict.fromkeys(("loss", "accuracy", "bits_per_byte", "tokens", "bytes"), 0),
        "perplexity": 1.0,
        "categories": {},
    }


@pytest.mark.parametrize(
    ("after", "warns"), [(1.0, False), (1.0499, False), (1.0501, True), (0.2, False), (math.nan, True)]
)
def test_a_watched_set_warns_beyond_its_bound(after: float, warns: bool) -> None:
    bounds = bounds_of(["en=0.05", "later=0"])
    results = {"en": {"bits_per_byte": after}, "later": {"bits_per_byte": 9.0}, "zh": {"bits_per_byte": 9.0}}
    said = list(warnings(bounds, {"en": 1.0, "zh": 1.0}, results))
    assert len(said) == warns
    if warns:
        assert f"--watch en=0.05: {after:.4f} bits a byte, {after - 1:+.4f} since the first evaluation" in said[0]
        assert "lower --lr" in said[0] and "\n" not in said[0]


def test_each_evaluation_warns_against_the_first_one(
    tmp_path: Path, tiny_tokenizer_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A stepper that costs a bit a byte more each time, two steps a set, and a resumed run's file."""
    journal = Journal(tmp_path / "evaluations.jsonl", 0)
    left_out: list[float] = []
    metrics = SimpleNamespace(
        flush=lambda: None,
        record_evaluation=lambda step, results: journal.append([{"step": step, "eval": results}]),
        leave_out_time_since=left_out.append,
    )
    run = SimpleNamespace(
        tokenizer=load_tokenizer(tiny_tokenizer_dir),
        cluster=SimpleNamespace(device=torch.device("cpu"), is_main=True),
        eval_bins={"en": SimpleNamespace(categories=["a", "b"])},
        config=SimpleNamespace(watch=["en=1.5"], save_dir=tmp_path),
    )
    for number in range(4):
        sums = torch.tensor([[1.0, 9.0, 0.0, (1 + number) * math.log(2), 1.0], [0.0] * 5], dtype=torch.float64)
        stepper = SimpleNamespace(evaluate=lambda micro_batches, num_categories, text, sums=sums: sums)
        reader = SimpleNamespace(steps_from=lambda first: iter([[], []]))
        caplog.clear()
        engine = SimpleNamespace(stepper=stepper, eval_readers={"en": reader})
        held_out.evaluate(run, engine, metrics, number)  # type: ignore[arg-type]
        assert len([line for line in caplog.messages if "--watch en=1.5" in line]) == (number >= 2)
    lines = [json.loads(line)["eval"]["en"] for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert [line["bits_per_byte"] for line in lines] == pytest.approx([1, 2, 3, 4])
    assert [line["tokens"] for line in lines] == [2] * 4 and len(left_out) == 4


def test_the_first_evaluation_is_read_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.jsonl"
    assert first_bits_per_byte(path) == {}
    lines = [
        {"step": 0, "eval": {"en": {"bits_per_byte": 1.5}, "zh": {"bits_per_byte": None}}},
        {"step": 5, "eval": {"en": {"bits_per_byte": 1.0}, "zh": {"bits_per_byte": 2.5}, "new": {"bits_per_byte": 3}}},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert first_bits_per_byte(path) == {"en": 1.5, "zh": 2.5, "new": 3}
