"""Every plugin's loss, gradient norm and learning rate against a plain PyTorch loop over the same rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from colossal_llama.batches import BatchReader, Shape
from data_tools.bins import open_bins

STEPS, ROWS_PER_STEP, ROW_LENGTH, SEED = 20, 4, 64, 42
LR, WARMUP, DECAY, CLIP = 2e-3, 4, 0.1, 0.5  # the clip is active on every step
FP32_TOLERANCE, BF16_TOLERANCE = 1e-5, 1e-2  # relative; bf16 has 8 bits of mantissa, and each step feeds the next

TP_SPLIT = {"tp": 2, "sp": 2, "sp_mode": "split_gather"}


@dataclass(frozen=True)
class Case:
    """One way to share a step of four rows."""

    name: str
    world_size: int
    rows: tuple[int, int]
    """micro_batch_size, accumulation_steps"""
    precisions: tuple[str, ...]
    flags: dict[str, Any] = field(default_factory=dict)


BOTH, BF16 = ("fp32", "bf16"), ("bf16",)
CASES = [
    Case("ddp", 2, (2, 1), BOTH, {"plugin": "ddp"}),
    Case("ddp-accumulated", 2, (1, 2), ("fp32",), {"plugin": "ddp"}),
    Case("zero2", 2, (2, 1), BOTH, {"plugin": "zero2"}),
    Case("zero2-accumulated", 2, (1, 2), ("fp32",), {"plugin": "zero2"}),
    Case("zero2_cpu", 2, (2, 1), BOTH, {"plugin": "zero2_cpu"}),
    Case("gemini", 2, (2, 1), BF16, {"plugin": "gemini"}),
    Case("gemini-accumulated", 2, (1, 2), BF16, {"plugin": "gemini"}),
    Case("gemini_auto", 2, (2, 1), BF16, {"plugin": "gemini_auto"}),
    Case("3d-dp2-zero0", 2, (1, 2), BOTH, {"plugin": "3d", "zero": 0}),
    Case("3d-dp2-zero1", 2, (1, 2), BF16, {"plugin": "3d", "zero": 1}),
    Case("3d-dp2-zero2", 2, (1, 2), BF16, {"plugin": "3d", "zero": 2}),
    Case("3d-tp2-zero2-accumulated", 2, (2, 2), BF16, {"plugin": "3d", "tp": 2, "zero": 2}),
    Case("3d-tp2", 2, (2, 2), BOTH, {"plugin": "3d", "tp": 2, "zero": 0}),
    Case("3d-pp2", 2, (1, 4), BOTH, {"plugin": "3d", "pp": 2, "zero": 0}),
    Case("3d-tp2-pp2", 4, (1, 4), BOTH, {"plugin": "3d", "tp": 2, "pp": 2, "zero": 0}),
    Case("3d-pp2-dp2-zero1", 4, (1, 2), BF16, {"plugin": "3d", "pp": 2, "zero": 1}),
    Case("3d-sp2-split_gather", 2, (4, 1), BOTH, {"plugin": "3d", "zero": 0, **TP_SPLIT}),
    Case("3d-sp2-ring", 2, (4, 1), BOTH, {"plugin": "3d", "zero": 0, **TP_SPLIT, "sp_mode": "ring"}),
    Case("3d-sp2-all_to_all", 2, (4, 1), BOTH, {"plugin": "3d", "zero": 0, "sp": 2}),
    Case("3d-sp2-all_to_all-single-rows", 2, (1, 4), ("fp32",), {"plugin": "3d", "zero": 0, "sp": 2}),
]
RUNS = [pytest.param(case, precision, id=f"{case.name}-{precision}") for case in CASES for precision in case.precisions]


@dataclass(frozen=True)
class Curve:
    """Values of every step."""

    loss: list[float]
    grad_norm: list[float]
    lr: list[float]


@pytest.fixture(scope="module")
def reference(tiny_model_dir: Path, tiny_bins_dir: Path) -> Curve:
    """transformers' own loss on one big batch, torch's AdamW and clipping, and the schedule written out; fp32."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, torch_dtype=torch.float32)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95))
    shape = Shape(ROWS_PER_STEP, 1, dp_size=1, dp_rank=0)
    steps = BatchReader(open_bins([tiny_bins_dir]), shape, SEED, ROW_LENGTH, 0, 10**6).steps_from(0)
    curve = Curve([], [], [])
    for step, (batch,) in zip(range(STEPS), steps, strict=False):
        cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - WARMUP) / (STEPS - 1 - WARMUP)))
        lr = LR * ((step + 1) / WARMUP if step < WARMUP else 0.1 + 0.9 * cosine)
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = model(input_ids=batch.input_ids, labels=batch.labels).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        curve.loss.append(loss.item())
        curve.grad_norm.append(norm.item())
        curve.lr.append(lr)
    assert min(curve.grad_norm) > CLIP, "the clip must be active for the comparison to cover it"
    return curve


@pytest.mark.parametrize(("case", "precision"), RUNS)
def test_curve_is_that_of_a_plain_loop(
    case: Case,
    precision: str,
    reference: Curve,
    train: Callable[..., list[dict[str, Any]]],
    tiny_model_dir: Path,
    tiny_bins_dir: Path,
    tmp_path: Path,
) -> None:
    steps = train(
        case.world_size,
        tmp_path / "run",
        pretrained=tiny_model_dir,
        dataset=tiny_bins_dir,
        max_length=ROW_LENGTH,
        max_steps=STEPS,
        micro_batch_size=case.rows[0],
        accumulation_steps=case.rows[1],
        lr=LR,
        warmup_steps=WARMUP,
        weight_decay=DECAY,
        gradient_clipping=CLIP,
        seed=SEED,
        mixed_precision=precision,
        **case.flags,
    )
    tolerance = FP32_TOLERANCE if precision == "fp32" else BF16_TOLERANCE
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    assert [step["lr"] for step in steps] == pytest.approx(reference.lr, rel=1e-12)
    assert [step["loss"] for step in steps] == pytest.approx(reference.loss, rel=tolerance)
    # the norm of a rounded gradient differs more than the loss: squares of many small errors add up
    assert [step["grad_norm"] for step in steps] == pytest.approx(reference.grad_norm, rel=10 * tolerance)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "modeling")
    assert model.config.vocab_size == 512
