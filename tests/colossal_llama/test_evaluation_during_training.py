"""--eval_dataset under every plugin: each token of the held-out rows is counted once, whatever the layout."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_from_disk
from transformers import AutoModelForCausalLM

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
def held_out_loss(tiny_model_dir: Path, tiny_bins_dir: Path) -> float:
    """Mean over all loss-bearing tokens, one row at a time, by transformers in fp32."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, torch_dtype=torch.float32)
    loss_sum, num_tokens = 0.0, 0
    for row in load_from_disk(tiny_bins_dir / "part-00001"):
        labels = torch.tensor([row["labels"]])
        count = int((labels[:, 1:] != -100).sum())
        if count:
            with torch.no_grad():
                loss_sum += count * model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss.item()
            num_tokens += count
    return loss_sum / num_tokens


@pytest.mark.parametrize("name", PLUGINS)
def test_the_held_out_loss_is_that_of_a_plain_loop(
    name: str,
    held_out_loss: float,
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
    evaluations = [line["eval"]["other"] for line in read_evaluations(tmp_path / "run")]
    assert len(evaluations) == 2
    for figures in evaluations:
        assert figures["loss"] == pytest.approx(held_out_loss, rel=2e-3)  # bf16 against fp32
        assert figures["perplexity"] == pytest.approx(math.exp(figures["loss"]))
