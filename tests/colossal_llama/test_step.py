"""Properties of whole runs that hold whatever the plugin: the split of a batch, the last step, what stays frozen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from colossal_llama.batches import BatchReader, Shape
from data_tools.bins import open_bins
from tests.colossal_llama.runs import ROW_LENGTH, num_predicted, rows_of, summed_loss, weights_of
from tests.conftest import read_evaluations

Train = Callable[..., list[dict[str, Any]]]
STEPS = 3
ZERO2_FP32 = {"plugin": "zero2", "mixed_precision": "fp32"}
TP2_FP32 = {"plugin": "3d", "tp": 2, "zero": 0, "mixed_precision": "fp32"}


@pytest.fixture(scope="module")
def whole_batch(train: Train, flags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Steps of four rows at once on one rank."""
    return train(1, tmp_path_factory.mktemp("whole") / "run", **flags | ZERO2_FP32, micro_batch_size=4, max_steps=STEPS)


@pytest.mark.parametrize(
    ("world_size", "micro_batch_size", "accumulation_steps", "more"),
    [
        (1, 2, 2, ZERO2_FP32),
        (1, 1, 4, ZERO2_FP32),
        (2, 2, 1, ZERO2_FP32),
        (2, 1, 2, ZERO2_FP32),
        (2, 2, 1, {**ZERO2_FP32, "use_grad_checkpoint": True}),
        (2, 4, 1, TP2_FP32),
        (2, 4, 1, {**TP2_FP32, "use_grad_checkpoint": True}),
        (2, 2, 2, {**TP2_FP32, "use_flash_attn": True}),
        (2, 2, 2, {**TP2_FP32, "tp": 1, "pp": 2}),
        (2, 1, 4, {**TP2_FP32, "tp": 1, "pp": 2, "use_grad_checkpoint": True}),
    ],
)
def test_losses_do_not_depend_on_how_a_batch_is_shared_or_computed(
    world_size: int,
    micro_batch_size: int,
    accumulation_steps: int,
    more: dict[str, Any],
    train: Train,
    flags: dict[str, Any],
    whole_batch: list[dict[str, Any]],
    tmp_path: Path,
) -> None:
    split = {"micro_batch_size": micro_batch_size, "accumulation_steps": accumulation_steps, "max_steps": STEPS}
    steps = train(world_size, tmp_path / "run", **{**flags, **more, **split})
    assert [step["loss"] for step in steps] == pytest.approx([step["loss"] for step in whole_batch], rel=1e-6)
    # Adam's steps hardly show the scale of a gradient; its norm does
    norms = [step["grad_norm"] for step in whole_batch]
    assert [step["grad_norm"] for step in steps] == pytest.approx(norms, rel=1e-5)


def test_last_step_is_filled_with_blank_rows_and_every_token_counts_once_an_epoch(
    train: Train, flags: dict[str, Any], tiny_bins_dir: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    bucket = tiny_bins_dir / "part-00001"
    rows = rows_of(bucket)
    rows_per_step, epochs = 2 * 5 * 2, 2
    assert epochs * len(rows) % rows_per_step, "the case needs a step that is not full"
    still = {"lr": 1e-30, "weight_decay": 0, "dataset": bucket, "eval_dataset": f"all={tiny_bins_dir}"}
    steps = train(
        2,
        tmp_path / "run",
        **{**flags, **ZERO2_FP32, **still},
        micro_batch_size=5,
        accumulation_steps=2,
        num_epochs=epochs,
    )
    num_steps = -(-epochs * len(rows) // rows_per_step)
    assert [step["num_rows_seen"] for step in steps] == [
        min((index + 1) * rows_per_step, epochs * len(rows)) for index in range(num_steps)
    ]
    assert steps[-1]["epoch"] == epochs
    assert steps[-1]["num_tokens_seen"] == sum(step["num_tokens"] for step in steps) == epochs * num_predicted(rows)
    # the weights stand still: loss and tokens of the steps add up to what transformers says of the rows
    assert sum(step["loss"] * step["num_tokens"] for step in steps) == pytest.approx(
        epochs * summed_loss(tiny_model_dir, rows), rel=1e-6
    )


@pytest.mark.parametrize(
    "more",
    [
        {"plugin": "zero2"},
        {"plugin": "gemini"},
        {"plugin": "3d", "tp": 2, "zero": 0},
        {"plugin": "3d", "pp": 2, "zero": 0, "accumulation_steps": 2},
    ],
    ids=["zero2", "gemini", "tp2", "pp2"],
)
def test_frozen_run_changes_the_embeddings_alone(
    more: dict[str, Any], train: Train, flags: dict[str, Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    train(2, tmp_path / "run", **{**flags, **more}, freeze_non_embeds_params=True, max_steps=2, weight_decay=0.5)
    before, after = weights_of(tiny_model_dir), weights_of(tmp_path / "run" / "modeling")
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name].to(after[name].dtype), after[name])}
    assert changed == {"model.embed_tokens.weight", "lm_head.weight"}


def test_clipping_off_is_unclipped_and_still_logs_the_norm(
    train: Train, flags: dict[str, Any], tiny_model_dir: Path, tiny_bins_dir: Path, tmp_path: Path
) -> None:
    unclipped = {"gradient_clipping": 0, "weight_decay": 0, "warmup_steps": 0, "max_steps": 4, "micro_batch_size": 2}
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, torch_dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0)
    reader = BatchReader(open_bins([tiny_bins_dir]), Shape(4, 1, 1, 0), 42, ROW_LENGTH, 0, 10**6)
    expected = []
    steps = train(2, tmp_path / "run", **{**flags, **ZERO2_FP32, **unclipped})
    for step, (batch,) in zip(steps, reader.steps_from(0), strict=False):
        optimizer.param_groups[0]["lr"] = step["lr"]
        loss = model(input_ids=batch.input_ids, labels=batch.labels).loss
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
        expected.append((loss.item(), norm.item()))
        optimizer.step()
        optimizer.zero_grad()
    assert min(norm for _, norm in expected) > 1, "the default would have clipped"
    assert [step["loss"] for step in steps] == pytest.approx([loss for loss, _ in expected], rel=1e-5)
    assert [step["grad_norm"] for step in steps] == pytest.approx([norm for _, norm in expected], rel=1e-4)


@pytest.mark.parametrize(
    ("world_size", "more"),
    [(2, ZERO2_FP32), (2, {**TP2_FP32, "tp": 1, "pp": 2, "accumulation_steps": 2}), (1, {"plugin": "ddp"})],
    ids=["zero2", "pp2", "ddp"],
)
def test_held_out_loss_is_that_of_transformers(
    world_size: int, more: dict[str, Any], train: Train, flags: dict[str, Any], tiny_bins_dir: Path, tmp_path: Path
) -> None:
    held_out = tiny_bins_dir / "part-00000"
    run = {**flags, **more, "mixed_precision": "fp32", "micro_batch_size": 3, "max_steps": 2, "eval_interval": 1}
    train(world_size, tmp_path / "run", **run, eval_dataset=[f"first={held_out}", f"all={tiny_bins_dir}"])
    evaluations = [(line["step"], line["eval"]) for line in read_evaluations(tmp_path / "run")]
    assert [step for step, _ in evaluations] == [0, 1, 2]
    assert evaluations[0][1] != evaluations[1][1] != evaluations[2][1]
    rows = {"first": rows_of(held_out), "all": rows_of(tiny_bins_dir)}
    for name, figures in evaluations[-1][1].items():
        expected = summed_loss(tmp_path / "run" / "modeling", rows[name]) / num_predicted(rows[name])
        assert figures["loss"] == pytest.approx(expected, rel=1e-5)
        assert figures["perplexity"] == pytest.approx(torch.tensor(expected).exp().item(), rel=1e-4)
