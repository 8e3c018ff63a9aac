"""--eval_dataset under every plugin: each token of the held-out rows is counted once, whatever the layout."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_from_disk
from transformers import AutoModelForCausalLM, LlamaTokenizer

from tests.colossal_llama.runs import stopped_copy
from tests.conftest import read_evaluations

ROW_LENGTH = 64
PLUGINS = {
    "ddp": (2, {"plugin": "ddp"}),
    "zero2": (2, {"plugin": "zero2"}),
    "gemini": (2, {"plugin": "gemini"}),
    "gemini_auto": (2, {"plugin": "gemini_auto"}),
    "3d-tp2": (2, {"plugin": "3d", "zero": 0, "tp": 2}),
    "3d-pp2": (2, {"plugin": "3d", "zero": 0, "pp": 2, "accumulation_steps": 2}),
    "3d-pp2-dp2-zero1": (4, {"plugin": "3d", "zero": 1, "pp": 2, "accumulation_steps": 2}),
    "3d-sp2-split_gather": (2, {"plugin": "3d", "zero": 0, "tp": 2, "sp": 2, "sp_mode": "split_gather"}),
    "3d-sp2-all_to_all": (2, {"plugin": "3d", "zero": 0, "sp": 2}),
}


@pytest.fixture(scope="module")
def plain_figures(tiny_model_dir: Path, tiny_tokenizer_dir: Path, tiny_bins_dir: Path) -> dict[str, float]:
    """Over all loss-bearing tokens, one row at a time, by transformers in fp32."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, torch_dtype=torch.float32)
    tokenizer = LlamaTokenizer.from_pretrained(tiny_tokenizer_dir)
    nats = text_nats = 0.0
    tokens = correct = num_bytes = 0
    for row in load_from_disk(tiny_bins_dir / "part-00001"):
        ids = row["input_ids"]
        with torch.no_grad():
            logarithms = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for place in range(1, len(ids)):
            if row["labels"][place] != -100:
                cost = -logarithms[place - 1, ids[place]].item()
                piece = tokenizer.convert_ids_to_tokens(ids[place])
                nats, tokens = nats + cost, tokens + 1
                correct += logarithms[place - 1].argmax().item() == ids[place]
                if piece not in ("<s>", "</s>", "<unk>"):
                    text_nats += cost
                    num_bytes += 1 if piece.startswith("<0x") else len(piece.replace("▁", " ").encode())
                    num_bytes -= piece[0] == "▁" and ids[place - 1] == tokenizer.bos_token_id
    return {
        "loss": nats / tokens,
        "accuracy": correct / tokens,
        "bits_per_byte": text_nats / math.log(2) / num_bytes,
        "tokens": tokens,
        "bytes": num_bytes,
    }


@pytest.mark.parametrize("name", PLUGINS)
def test_held_out_figures_are_those_of_a_plain_loop(
    name: str,
    plain_figures: dict[str, float],
    train: Callable[..., list[dict[str, Any]]],
    tiny_model_dir: Path,
    tiny_bins_dir: Path,
    tmp_path: Path,
) -> None:
    world_size, flags = PLUGINS[name]
    train(
        world_size,
        tmp_path / "run",
        pretrained=tiny_model_dir,
        dataset=tiny_bins_dir / "part-00000",
        eval_dataset=f"other={tiny_bins_dir / 'part-00001'}",
        eval_interval=1,
        max_steps=2,
        max_length=ROW_LENGTH,
        micro_batch_size=4,
        lr=1e-12,  # so that the weights stay what the plain loop has
        **flags,
    )
    evaluations = {line["step"]: line["eval"]["other"] for line in read_evaluations(tmp_path / "run")}
    assert list(evaluations) == ([1, 2] if name == "gemini_auto" else [0, 1, 2])  # it must have trained to evaluate
    for figures in evaluations.values():
        for figure in ("tokens", "bytes"):
            assert figures[figure] == plain_figures[figure] == sum(c[figure] for c in figures["categories"].values())
        for figure in ("loss", "bits_per_byte"):
            assert figures[figure] == pytest.approx(plain_figures[figure], rel=2e-3)  # bf16 against fp32
        assert figures["accuracy"] == pytest.approx(plain_figures["accuracy"], abs=0.01)
        assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))


def test_an_evaluation_that_a_stop_has_left_out_is_made_after_the_resume(
    train: Callable[..., Any], flags: dict[str, Any], tiny_bins_dir: Path, tmp_path: Path
) -> None:
    own = {**flags, "micro_batch_size": 4, "max_steps": 4, "save_interval": 2, "eval_interval": 2}
    own |= {"eval_dataset": f"held={tiny_bins_dir / 'part-00001'}", "max_eval_samples": 4}
    train(2, tmp_path / "whole", **own)
    expected = read_evaluations(tmp_path / "whole")
    assert [line["step"] for line in expected] == [0, 2, 4]
    for name, num_kept in (("left-out", 1), ("made", 2)):
        stopped = stopped_copy(tmp_path / "whole", tmp_path / name, 2)
        lines = (stopped / "evaluations.jsonl").read_text().splitlines(keepends=True)
        (stopped / "evaluations.jsonl").write_text("".join(lines[:num_kept]))
        train(2, stopped, **own)
        assert read_evaluations(stopped) == expected
