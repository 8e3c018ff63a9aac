"""Runs that go on with other flags than they began with: what may change takes effect, and is said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.colossal_llama.killing import Launcher, latest_step
from tests.colossal_llama.runs import rows_of, weights_of
from tests.conftest import read_metrics

SAVED, BATCH = 3, 16


@pytest.fixture(scope="module")
def own_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """fp32, so that a step can be checked to the last digits; a rate that stays, so that only the flags decide."""
    still = {"lr_schedule": "constant", "warmup_steps": 0, "mixed_precision": "fp32", "log_interval": 1}
    return {**flags, **still, "micro_batch_size": BATCH, "max_steps": SAVED}


@pytest.fixture(scope="module")
def begun(launcher: Launcher, own_flags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three steps; look, do not touch."""
    save_dir = tmp_path_factory.mktemp("begun") / "run"
    codes, job = launcher.run(1, save_dir, **own_flags)
    assert codes == [0], job.said
    return save_dir


def go_on(launcher: Launcher, begun: Path, copy: Path, **flags: Any) -> tuple[int, str]:
    """Exit code and words of a copy of `begun` that goes on with other flags."""
    if not copy.exists():
        shutil.copytree(begun, copy)
    codes, job = launcher.run(1, copy, **flags)
    return codes[0], job.said


def weights_after(launcher: Launcher, begun: Path, copy: Path, **flags: Any) -> tuple[dict[str, torch.Tensor], str]:
    code, said = go_on(launcher, begun, copy, **flags)
    assert code == 0, said
    return weights_of(copy / "modeling"), said


def test_learning_rate_and_decay_reach_the_optimizer(
    launcher: Launcher, begun: Path, own_flags: dict[str, Any], tmp_path: Path
) -> None:
    """AdamW subtracts lr * update and lr * decay * weight: of the same step the first goes with lr, the second too."""
    before = weights_of(begun / "modeling")
    one = {**own_flags, "max_steps": SAVED + 1}
    plain, said = weights_after(launcher, begun, tmp_path / "plain", **one, weight_decay=0.0)
    assert "changed: --weight_decay 0.1 -> 0" in said.splitlines()
    faster, said = weights_after(launcher, begun, tmp_path / "faster", **{**one, "lr": 6e-3}, weight_decay=0.0)
    assert "changed: --lr 0.002 -> 0.006" in said.splitlines()
    assert "changed: learning rate of the next step 0.002 -> 0.006" in said.splitlines()
    decayed, _ = weights_after(launcher, begun, tmp_path / "decayed", **one, weight_decay=0.5)
    assert [line["lr"] for line in read_metrics(tmp_path / "faster")] == [2e-3] * SAVED + [6e-3]
    for name, weight in before.items():
        update = plain[name] - weight
        assert update.abs().max() > 1e-4, name
        torch.testing.assert_close(faster[name] - weight, 3 * update, atol=1e-6, rtol=1e-3)
        shrinking = 2e-3 * 0.5 * weight if weight.dim() > 1 else torch.zeros_like(weight)
        torch.testing.assert_close(plain[name] - decayed[name], shrinking, atol=1e-6, rtol=1e-3)


def test_a_finished_run_goes_on_with_more_epochs_another_batch_and_plugin(
    launcher: Launcher, own_flags: dict[str, Any], tiny_bins_dir: Path, tmp_path: Path
) -> None:
    """The chain over the rows that were consumed ends where it does in a run that was so from the beginning."""
    num_rows = len(rows_of(tiny_bins_dir))
    bf16 = {name: value for name, value in own_flags.items() if name != "max_steps"} | {"mixed_precision": "bf16"}
    whole = {**bf16, "num_epochs": 2, "plugin": "ddp", "micro_batch_size": 60}
    codes, job = launcher.run(1, tmp_path / "whole", **whole)
    assert codes == [0], job.said
    codes, job = launcher.run(1, tmp_path / "run", **{**bf16, "micro_batch_size": 50})
    assert codes == [0], job.said
    codes, job = launcher.run(1, tmp_path / "run", **whole)
    assert codes == [0], job.said
    lines = job.said.splitlines()
    for change in ("--plugin zero2 -> ddp", "--num_epochs 1 -> 2", "--micro_batch_size 50 -> 60"):
        assert f"changed: {change}" in lines
    seen = [line["num_rows_seen"] for line in read_metrics(tmp_path / "run")]
    assert seen == [*range(50, num_rows, 50), num_rows, *range(num_rows + 60, 2 * num_rows, 60), 2 * num_rows]
    assert last_position(tmp_path / "run")["row_chain"] == last_position(tmp_path / "whole")["row_chain"]


def last_position(save_dir: Path) -> dict[str, Any]:
    """running_states.json of the newest checkpoint."""
    return json.loads((save_dir / (save_dir / "latest").read_text().strip() / "running_states.json").read_text())


def test_a_run_behind_its_end_says_so_and_keeps_its_model(
    launcher: Launcher, begun: Path, own_flags: dict[str, Any], tmp_path: Path
) -> None:
    weights, said = weights_after(launcher, begun, tmp_path / "run", **{**own_flags, "max_steps": 2})
    assert f"nothing is left to train: step {SAVED} is done, --max_steps is 2" in said
    before = weights_of(begun / "modeling")
    assert all(torch.equal(weights[name], weight) for name, weight in before.items())
    assert read_metrics(tmp_path / "run") == read_metrics(begun)
    assert latest_step(tmp_path / "run") == SAVED


def test_another_seed_needs_leave_and_then_reads_from_its_first_row_once(
    launcher: Launcher, begun: Path, own_flags: dict[str, Any], tiny_bins_dir: Path, tmp_path: Path
) -> None:
    other = {**own_flags, "seed": 7, "max_steps": SAVED + 2}
    rest = {name: value for name, value in other.items() if name != "max_steps"}
    codes, job = launcher.run(1, tmp_path / "fresh", **other)
    assert codes == [0], job.said
    code, said = go_on(launcher, begun, tmp_path / "run", **other)
    assert code == 2
    assert "another --seed (seed 42, now 7); keep the same --seed, add --restart_data to go on with it" in said
    code, said = go_on(launcher, begun, tmp_path / "run", **other, restart_data=True)
    assert code == 0, said
    assert f"seed 42 -> 7; rows are read from the first one on, {SAVED * BATCH} of the old order were" in said
    code, said = go_on(launcher, begun, tmp_path / "run", **{**rest, "restart_data": True})
    assert code == 0, said
    assert "rows are read from the first one on" not in said, "given again it does nothing"
    lines, fresh = read_metrics(tmp_path / "run"), read_metrics(tmp_path / "fresh")
    num_rows = len(rows_of(tiny_bins_dir))
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    rows = [line["num_rows_seen"] for line in lines]
    assert rows == [*range(BATCH, SAVED * BATCH + 1, BATCH), *range(BATCH, num_rows, BATCH), num_rows]
    read = [line["num_tokens"] for line in fresh]
    assert [line["num_tokens"] for line in lines][SAVED : SAVED + len(read)] == read
    assert lines[-1]["num_tokens_seen"] == sum(line["num_tokens"] for line in lines)
