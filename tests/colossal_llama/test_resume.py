"""A run that was stopped goes on as if it had not been: the same command line again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.colossal_llama.runs import num_predicted, rows_of, stopped_copy, weights_of
from tests.conftest import read_metrics, run_train
from tokenizer_tools.lineage import TOKENIZER_FILES

Train = Callable[..., list[dict[str, Any]]]
MIDDLE, LAST = 3, 6

STEPS = {"micro_batch_size": 2, "max_steps": LAST, "save_interval": MIDDLE}


def values_of(steps: list[dict[str, Any]]) -> list[tuple[float, ...]]:
    """What must be bit-identical."""
    names = ("step", "loss", "lr", "grad_norm", "num_tokens", "num_tokens_seen", "num_rows_seen", "epoch")
    return [tuple(step[name] for name in names) for step in steps]


def test_resumed_run_is_bit_identical(train: Train, flags: dict[str, Any], tmp_path: Path) -> None:
    """Every layout: test_exact_resume.py."""
    run_flags = {**flags, **STEPS}
    whole = train(2, tmp_path / "whole", **run_flags)
    assert [step["step"] for step in whole] == list(range(1, LAST + 1))
    stopped = stopped_copy(tmp_path / "whole", tmp_path / "stopped", MIDDLE)
    resumed = train(2, stopped, **run_flags)
    assert values_of(resumed) == values_of(whole)
    loaded = AutoModelForCausalLM.from_pretrained(stopped / "modeling")
    assert loaded.config._attn_implementation == "sdpa", "the saved config asks for slow attention"
    # the finished models are the same files
    for path in (tmp_path / "whole" / "modeling").iterdir():
        assert path.read_bytes() == (stopped / "modeling" / path.name).read_bytes(), path.name
    assert len(list((stopped / "tensorboard").glob("events.out.tfevents.*"))) == 2


@pytest.mark.parametrize(
    ("before", "after", "precision", "tolerance"),
    [(2, 1, "fp32", 1e-5), (1, 2, "bf16", 1e-2)],
)
def test_run_goes_on_with_another_number_of_ranks(
    before: int, after: int, precision: str, tolerance: float, train: Train, flags: dict[str, Any], tmp_path: Path
) -> None:
    run_flags = {**flags, **STEPS, "mixed_precision": precision, "micro_batch_size": 4 // before}
    whole = train(before, tmp_path / "whole", **run_flags)
    stopped = stopped_copy(tmp_path / "whole", tmp_path / "stopped", MIDDLE)
    resumed = train(after, stopped, **{**run_flags, "micro_batch_size": 4 // after})
    exact = ("step", "lr", "num_tokens", "num_tokens_seen", "num_rows_seen")
    assert [[step[name] for name in exact] for step in resumed] == [[step[name] for name in exact] for step in whole]
    assert [step["loss"] for step in resumed] == pytest.approx([step["loss"] for step in whole], rel=tolerance)


def test_another_batch_size_still_sees_every_row_once(
    train: Train, flags: dict[str, Any], tiny_bins_dir: Path, tmp_path: Path
) -> None:
    whole_flags = {**flags, "micro_batch_size": 20, "save_interval": 2, "warmup_steps": 0}
    train(1, tmp_path / "whole", **whole_flags)
    stopped = stopped_copy(tmp_path / "whole", tmp_path / "stopped", 2)
    resumed = train(2, stopped, **{**whole_flags, "micro_batch_size": 16})
    rows = rows_of(tiny_bins_dir)
    assert [step["num_rows_seen"] for step in resumed] == [20, 40, *range(72, len(rows), 32), len(rows)]
    assert resumed[-1]["num_tokens_seen"] == num_predicted(rows)


def test_finished_run_started_again_changes_nothing(
    train: Train, zero2_flags: dict[str, Any], zero2_run: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "again"
    shutil.copytree(zero2_run, copy)
    assert train(2, copy, **zero2_flags) == read_metrics(zero2_run)
    names = sorted(str(path.relative_to(zero2_run)) for path in zero2_run.rglob("*.safetensors"))
    assert names == sorted(str(path.relative_to(copy)) for path in copy.rglob("*.safetensors"))
    assert [name for name in names if (zero2_run / name).read_bytes() != (copy / name).read_bytes()] == []
    assert (copy / "latest").read_text() == (zero2_run / "latest").read_text()


def test_whole_checkpoint_of_another_run_goes_on(
    train: Train, zero2_flags: dict[str, Any], zero2_run: Path, tmp_path: Path
) -> None:
    steps = train(2, tmp_path / "run", **zero2_flags, load_checkpoint=zero2_run / "epoch-0_step-4")
    assert values_of(steps) == values_of(read_metrics(zero2_run))[4:]


def test_modeling_folder_gives_its_weights_alone(
    train: Train, zero2_flags: dict[str, Any], zero2_run: Path, tmp_path: Path
) -> None:
    """Row 0 again, with trained weights: the same as training a model directory that holds them."""
    odd_place = tmp_path / "modeling" / "of modeling"
    shutil.copytree(zero2_run / "epoch-0_step-4", odd_place)
    loaded = train(2, tmp_path / "loaded", **{**zero2_flags, "max_steps": 2}, load_checkpoint=odd_place / "modeling")
    trained = {**zero2_flags, "max_steps": 2, "pretrained": odd_place / "modeling"}
    assert values_of(loaded) == values_of(train(2, tmp_path / "pretrained", **trained))
    assert [step["step"] for step in loaded] == [1, 2]
    assert loaded[0]["loss"] < read_metrics(zero2_run)[0]["loss"]


def test_resolved_config_is_written_and_runs_again(
    ranks: Callable[..., list[Any]], zero2_flags: dict[str, Any], zero2_run: Path, tmp_path: Path
) -> None:
    values = json.loads((zero2_run / "train_config.json").read_text())
    assert values["max_steps"] == 8
    assert values["dataset"] == [str(zero2_flags["dataset"])]
    copy = tmp_path / "run.json"
    extra = {"save_dir": str(tmp_path / "run"), "config_file": str(tmp_path / "resolved.json"), "keep_checkpoints": 1}
    tensorboard_dir = tmp_path / "events"
    copy.write_text(json.dumps({**values, **extra, "tensorboard_dir": str(tensorboard_dir)}))
    assert ranks(run_train, 2, [str(copy)]) == [0, 0]
    assert values_of(read_metrics(tmp_path / "run")) == values_of(read_metrics(zero2_run))
    assert json.loads((tmp_path / "resolved.json").read_text()) == json.loads(copy.read_text())
    assert [path.name for path in (tmp_path / "run").glob("epoch-*")] == ["epoch-0_step-8"]
    assert (tmp_path / "run" / "latest").read_text() == "epoch-0_step-8\n"
    assert list(tensorboard_dir.glob("events.out.tfevents.*"))


def test_the_tokenizer_stays_when_its_checkpoint_is_deleted(
    train: Train, zero2_flags: dict[str, Any], zero2_run: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """A resumed run has read it from a checkpoint that --keep_checkpoints then deletes."""
    stopped = stopped_copy(zero2_run, tmp_path / "stopped", 4)
    train(2, stopped, **{**zero2_flags, "save_interval": 1}, keep_checkpoints=1)
    assert [path.name for path in stopped.glob("epoch-*")] == ["epoch-0_step-8"]
    names = [name for name in TOKENIZER_FILES if (tiny_model_dir / name).is_file()]
    assert "tokenizer.model" in names
    for directory in (stopped / "modeling", stopped / "epoch-0_step-8" / "modeling"):
        assert all((directory / name).read_bytes() == (tiny_model_dir / name).read_bytes() for name in names)


def test_adapters_go_on_with_a_base_that_has_moved_and_not_with_what_lies_in_its_place(
    train: Train, flags: dict[str, Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_model_dir, tmp_path / "base")
    own = {**flags, "pretrained": base, "lora_rank": 4, "max_steps": 4, "save_interval": 2, "micro_batch_size": 2}
    whole = train(1, tmp_path / "whole", **own)
    stopped = stopped_copy(tmp_path / "whole", tmp_path / "stopped", 2)
    moved = base.rename(tmp_path / "moved")
    shutil.copytree(tiny_model_dir, base)
    (base / "manifest.json").unlink()
    weights = load_file(base / "model.safetensors")
    save_file({name: tensor + 0.01 for name, tensor in weights.items()}, base / "model.safetensors", {"format": "pt"})
    assert values_of(train(1, stopped, **{**own, "pretrained": moved})) == values_of(whole)


def test_fp32_weights_of_ddp_keep_their_low_bits_under_another_plugin(
    train: Train, flags: dict[str, Any], tmp_path: Path
) -> None:
    own = {**flags, "micro_batch_size": 2, "max_steps": 4, "save_interval": 2}
    train(2, tmp_path / "whole", **{**own, "plugin": "ddp"})
    stopped = stopped_copy(tmp_path / "whole", tmp_path / "stopped", 2)
    train(2, stopped, **{**own, "max_steps": 3, "lr": 1e-30, "weight_decay": 0.0, "plugin": "zero2"})
    before = weights_of(stopped / "epoch-0_step-2" / "modeling")
    names = [name for name in before if name.endswith("q_proj.weight")]
    directory = stopped / "epoch-0_step-3" / "optimizer"
    parts = [part for part in json.loads((directory / "parts.json").read_text())["parts"] if part[1] in names]
    assert len(parts) == 2 * len(names)
    for file, name, *_, begin, end in parts:
        found = load_file(directory / file)[f"{name}.master"]
        assert torch.equal(found, before[name].flatten()[begin:end])
        assert not torch.equal(found, found.bfloat16().float()), "the case needs low bits"
