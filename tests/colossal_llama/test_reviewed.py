"""Defects that a review of the training engine found, each held by a test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.colossal_llama.runs import ROW_LENGTH, stopped_copy
from tests.conftest import argv_of, read_metrics, run_train

Train = Callable[..., list[dict[str, Any]]]


def test_evaluation_does_not_count_as_training_time(
    train: Train, flags: dict[str, Any], tiny_bins_dir: Path, tmp_path: Path
) -> None:
    evaluation = {"eval_dataset": f"all={tiny_bins_dir}", "eval_interval": 1, "log_interval": 1}
    steps = train(1, tmp_path / "run", micro_batch_size=4, max_steps=3, **evaluation, **flags)
    assert all(step["step_seconds"] > 0 and step["tokens_per_second"] > 0 for step in steps)


def test_a_model_directory_is_not_taken_for_a_run(
    tiny_model_dir: Path, tiny_bins_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other_model = shutil.copytree(tiny_model_dir, tmp_path / "other")
    before = (other_model / "config.json").read_bytes()
    argv = argv_of(pretrained=tiny_model_dir, dataset=tiny_bins_dir, max_length=ROW_LENGTH, save_dir=other_model)
    for more in ([], ["--overwrite"]):
        assert run_train([*argv, *more]) == 2
        assert "holds no run; choose another directory" in capsys.readouterr().err
        assert (other_model / "config.json").read_bytes() == before


def test_a_run_goes_on_under_another_plugin(
    zero2_run: Path, zero2_flags: dict[str, Any], tmp_path: Path, train: Train
) -> None:
    """zero2's optimizer is torch's AdamW, gemini's is colossalai's: their groups have different options."""
    run = stopped_copy(zero2_run, tmp_path / "run", 4)
    resumed = train(2, run, **{**zero2_flags, "plugin": "gemini"})
    whole = read_metrics(zero2_run)
    assert [step["step"] for step in resumed] == list(range(1, 9))
    assert [step["loss"] for step in resumed] == pytest.approx([step["loss"] for step in whole], rel=1e-2)


def test_the_resolved_configuration_never_deletes(zero2_run: Path) -> None:
    assert "overwrite" not in json.loads((zero2_run / "train_config.json").read_text())
