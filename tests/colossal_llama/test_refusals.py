"""What cannot become a run is refused by all ranks together: one line, exit code 2, nothing touched."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_tools.manifest import MANIFEST_NAME
from tests.colossal_llama.runs import free_ports, outcomes, rows_of, weights_of
from tests.conftest import argv_of, read_metrics

Ranks = Callable[..., list[Any]]
Case = tuple[dict[str, Any], list[str]]
"""Flags beyond the usual ones, and the words that the error line must hold."""


def listing(directory: Path) -> list[tuple[str, int, int]]:
    """Every file with its size and its time of change."""
    files = [(path, path.stat()) for path in directory.rglob("*") if path.is_file()]
    return sorted((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in files)


def check_refused(ranks: Ranks, world_size: int, flags: dict[str, Any], cases: dict[str, Case]) -> None:
    """Run every case; the ranks end in the same way and rank 0 alone says why."""
    argvs = [argv_of(**{**flags, **more}) for more, _ in cases.values()]
    results = ranks(outcomes, world_size, argvs, free_ports(len(argvs)))
    assert [[code for code, _ in rank] for rank in results] == [[2] * len(cases)] * world_size
    assert all(line == "" for rank in results[1:] for _, line in rank)
    for (_, line), (name, (_, words)) in zip(results[0], cases.items(), strict=True):
        assert line.startswith("error: "), name
        assert "\n" not in line, name
        assert [word for word in words if word not in line] == [], f"{name}: {line}"


@pytest.fixture(scope="module")
def other_bins(tiny_bins_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows under the fingerprint of a tokenizer that nobody has."""
    directory = tmp_path_factory.mktemp("other") / "bins"
    shutil.copytree(tiny_bins_dir, directory)
    manifest = json.loads((directory / MANIFEST_NAME).read_text())
    (directory / MANIFEST_NAME).write_text(json.dumps({**manifest, "tokenizer_fingerprint": "f00d" * 16}))
    return directory


def test_data_model_and_settings_that_do_not_fit(
    ranks: Ranks, flags: dict[str, Any], other_bins: Path, tiny_bins_dir: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    own = json.loads((tiny_bins_dir / MANIFEST_NAME).read_text())["tokenizer_fingerprint"]
    steps = math.ceil(len(rows_of(tiny_bins_dir)) / 2)
    foreign, no_model, bare = tmp_path / "home", tmp_path / "no_model", tmp_path / "bare"
    for directory in (foreign, bare):
        directory.mkdir()
    (foreign / "thesis.txt").write_text("ten years of work")
    shutil.copytree(tiny_model_dir, no_model)
    (no_model / MANIFEST_NAME).unlink()  # it would tell already that the weights are others
    for weights in no_model.glob("*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-5000])
    cases: dict[str, Case] = {
        "tokenizer": ({"dataset": other_bins}, [str(other_bins), "f00df00d", own[:16], "the model's own tokenizer"]),
        "held-out": ({"eval_dataset": f"x={other_bins}"}, [str(other_bins), "f00df00d", own[:16]]),
        "max_length": ({"max_length": 63}, ["rows of up to 64", "--max_length 64"]),
        "warmup": ({"warmup_steps": steps + 1}, [f"--warmup_steps {steps + 1}", f"only {steps} steps"]),
        "fp16": ({"mixed_precision": "fp16"}, ["--mixed_precision fp16", "use bf16"]),
        "foreign": ({"save_dir": foreign}, [f"--save_dir {foreign}", "holds no run"]),
        "overwrite": ({"save_dir": foreign, "overwrite": True}, [f"--save_dir {foreign}", "holds no run"]),
        "weights": ({"pretrained": no_model}, [str(no_model), "not a readable model"]),
        "no tokenizer": ({"pretrained": bare}, [str(bare), "tokenizer"]),
        "no data": ({"dataset": bare}, [str(bare), MANIFEST_NAME]),
        "world": ({"plugin": "3d", "tp": 2, "pp": 2, "micro_batch_size": 2}, ["2 process", "multiple of 4"]),
        "world sp": ({"plugin": "3d", "sp": 4}, ["2 process", "multiple of 4"]),
    }

    check_refused(ranks, 2, {**flags, "save_dir": tmp_path / "run"}, cases)
    assert (foreign / "thesis.txt").read_text() == "ten years of work"
    assert not (tmp_path / "run").exists()


def test_shares_that_are_not_equal(ranks: Ranks, flags: dict[str, Any], tmp_path: Path) -> None:
    three = {**flags, "plugin": "3d", "save_dir": tmp_path / "run"}
    cases: dict[str, Case] = {
        "vocabulary": ({"tp": 3}, ["vocabulary of 512 pieces", "--tp 3", "--pad_vocab_to_multiple_of 3"]),
        "row length": ({"sp": 3}, ["rows of 64 tokens", "--sp 3", "multiple of 3"]),
    }
    check_refused(ranks, 3, three, cases)


def test_resuming_as_another_run_is_refused_and_touches_nothing(
    ranks: Ranks, zero2_flags: dict[str, Any], zero2_run: Path, tiny_bins_dir: Path, tmp_path: Path
) -> None:
    before = listing(zero2_run)
    checkpoint = zero2_run / "epoch-0_step-4"
    cases: dict[str, Case] = {
        "seed": ({"seed": 43}, ["another --seed (seed 42, now 43)", "keep the same --seed", "`modeling` folder"]),
        "data": ({"dataset": tiny_bins_dir / "part-00000"}, ["another --dataset", "keep the same --dataset"]),
        "freeze": (
            {"freeze_non_embeds_params": True},
            ["trained in stage 1 (all), the next one would be in stage 1 (embeds)"],
        ),
        "loaded": ({"seed": 43, "save_dir": tmp_path / "new", "load_checkpoint": checkpoint}, ["another --seed"]),
    }
    check_refused(ranks, 2, {**zero2_flags, "save_dir": zero2_run}, cases)
    assert listing(zero2_run) == before


def test_damaged_checkpoints_are_refused_in_words(
    ranks: Ranks, zero2_flags: dict[str, Any], zero2_run: Path, tmp_path: Path
) -> None:
    def damaged(name: str, damage: Callable[[Path], None]) -> Path:
        copy = tmp_path / name / "epoch-0_step-8"
        shutil.copytree(zero2_run / "epoch-0_step-8", copy)
        damage(copy)
        return copy

    def truncate(directory: Path) -> None:
        weights = next((directory / "modeling").glob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:-1])

    def other_version(directory: Path) -> None:
        manifest = json.loads((directory / "manifest.json").read_text())
        (directory / "manifest.json").write_text(json.dumps({**manifest, "version": 99}))

    def other_progress(directory: Path) -> None:
        states = json.loads((directory / "running_states.json").read_text())
        states["sTep"] = states.pop("step")  # the same length
        (directory / "running_states.json").write_text(json.dumps(states, indent=2, ensure_ascii=False) + "\n")

    def lose_optimizer(directory: Path) -> None:
        next((directory / "optimizer").glob("rank-*.safetensors")).unlink()

    cases: dict[str, Case] = {}
    for name, damage, words in [
        ("no-manifest", lambda directory: (directory / "manifest.json").unlink(), ["manifest.json", "no such file"]),
        ("truncated", truncate, [".safetensors", "not", "bytes long", "damaged"]),
        ("lost", lose_optimizer, ["optimizer", "missing"]),
        ("version", other_version, ["version 99"]),
        ("progress", other_progress, ["sTep", "another version?"]),
    ]:
        copy = damaged(name, damage)
        cases[f"{name}, given"] = ({"save_dir": tmp_path / "new", "load_checkpoint": copy}, words)
        shutil.copy(zero2_run / "train_config.json", copy.parent)
        (copy.parent / "latest").write_text(copy.name + "\n")
        cases[f"{name}, latest"] = ({"save_dir": copy.parent}, words)
    check_refused(ranks, 1, zero2_flags, cases)


def test_overwrite_starts_anew(
    ranks: Ranks,
    train: Callable[..., list[dict[str, Any]]],
    zero2_flags: dict[str, Any],
    zero2_run: Path,
    tmp_path: Path,
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(zero2_run, copy)
    anew = {**zero2_flags, "max_steps": 1, "seed": 43, "overwrite": True}
    before = listing(copy)
    check_refused(ranks, 1, {**anew, "save_dir": copy}, {"warmup": ({}, ["--warmup_steps 2", "only 1 steps"])})
    assert listing(copy) == before, "the old run goes only when the new one can begin"
    steps = train(1, copy, **{**anew, "warmup_steps": 1})
    assert [step["step"] for step in steps] == [1]
    assert steps[0]["loss"] != read_metrics(zero2_run)[0]["loss"]
    assert [path.name for path in copy.glob("epoch-*")] == ["epoch-0_step-1"]
    assert weights_of(copy / "modeling").keys() == weights_of(zero2_run / "modeling").keys()


def test_what_a_killed_save_left_is_ignored(
    train: Callable[..., list[dict[str, Any]]], zero2_flags: dict[str, Any], zero2_run: Path, tmp_path: Path
) -> None:
    """Written aside, renamed without a manifest, or complete and not yet `latest`: none is resumed from."""
    copy = tmp_path / "copy"
    shutil.copytree(zero2_run, copy)
    (copy / "latest").write_text("epoch-0_step-4\n")
    for name in (".epoch-0_step-8.partial", "epoch-0_step-90"):
        (copy / name / "modeling").mkdir(parents=True)
        (copy / name / "running_states.json").write_text("{}")
    shutil.copytree(copy / "epoch-0_step-8", copy / "epoch-0_step-99")
    steps = train(2, copy, **zero2_flags, keep_checkpoints=1)
    assert [step["loss"] for step in steps] == [step["loss"] for step in read_metrics(zero2_run)]
    assert (copy / "latest").read_text() == "epoch-0_step-8\n"
    assert (copy / "epoch-0_step-8" / "manifest.json").is_file()
    assert not (copy / "epoch-0_step-4").exists()
    assert not (copy / ".epoch-0_step-8.partial").exists()
