"""A checkpoint becomes a model directory that gives the trainer's scores, or nothing at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from colossal_llama import export, generate, lora, reread
from colossal_llama.model import load_model
from colossal_llama.probe import Probe, difference, model_probe, read_probe
from tests.colossal_llama.plain_llama import plain_logits
from tests.colossal_llama.runs import weights_of
from tokenizer_tools.command import UserError


@pytest.fixture
def checkpoint(zero2_run: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(zero2_run / "epoch-0_step-8", tmp_path / "epoch-0_step-8")


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the target here: a process of its own costs seconds, and is tested elsewhere."""

    def load_here(directory: Path, input_ids: torch.Tensor, positions: torch.Tensor) -> Probe:
        return model_probe(AutoModelForCausalLM.from_pretrained(directory, torch_dtype="auto"), input_ids, positions)

    monkeypatch.setattr(reread, "reread", load_here)


def run_export(checkpoint: Path, target: Path, *more: str) -> int:
    return export.main(["--checkpoint", str(checkpoint), "--target", str(target), *more])


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line


def seal(checkpoint: Path) -> None:
    """Make what lies in a checkpoint the files that its manifest names."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != "manifest.json"]
    names = {str(path.relative_to(checkpoint)): path for path in files}
    manifest["sizes_bytes"] = {name: path.stat().st_size for name, path in names.items()}
    manifest["sha256"] = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in names.items()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def change_probe(checkpoint: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Let the trainer have said something else."""
    tensors = load_file(checkpoint / "probe.safetensors")
    change(tensors)
    save_file(tensors, checkpoint / "probe.safetensors")
    seal(checkpoint)


def test_export_is_the_checkpoint_and_what_the_trainer_said(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a process of its own; what is in the target is read by plain means."""
    target = tmp_path / "exported"
    assert run_export(checkpoint, target) == 0
    assert "differs from the trainer by" in capsys.readouterr().out
    before, after = weights_of(checkpoint / "modeling"), weights_of(target)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    told = read_probe(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(target, torch_dtype="auto").eval()
    assert difference(told, model_probe(model, told.input_ids, told.positions)).relative < 1e-2
    assert model.config.use_cache
    assert model.generation_config.eos_token_id == model.config.eos_token_id == 2
    text = "The import statement, 你好"
    tokenizers = [AutoTokenizer.from_pretrained(path) for path in (target, checkpoint / "modeling")]
    assert tokenizers[0](text) == tokenizers[1](text)
    assert {oct(path.stat().st_mode & 0o777) for path in target.rglob("*")} == {"0o644"}
    assert oct(target.stat().st_mode & 0o777) == "0o755"
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoint.name, "exported"]


@pytest.mark.usefixtures("in_this_process")
def test_manifest_names_every_file_and_where_it_comes_from(checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "exported"
    assert run_export(checkpoint, target) == 0
    manifest = json.loads((target / "manifest.json").read_text())
    files = {path.name: path for path in target.iterdir() if path.name != "manifest.json"}
    assert manifest["sha256"] == {n: hashlib.sha256(path.read_bytes()).hexdigest() for n, path in files.items()}
    assert manifest["sizes_bytes"] == {name: path.stat().st_size for name, path in files.items()}
    assert {"README.md", "generation_config.json", "tokenizer.json", "model.safetensors"} <= files.keys()
    assert manifest["made_from"] == {"run": json.loads((checkpoint / "lineage.json").read_text())}
    assert set(manifest["made_from"]["run"]["made_from"]) >= {"model", "tokenizer", "data"}
    assert (
        manifest["checkpoint"]["manifest_sha256"]
        == hashlib.sha256((checkpoint / "manifest.json").read_bytes()).hexdigest()
    )
    assert manifest["proof"]["from_trainer"]["relative"] < manifest["proof"]["tolerance"]
    assert str(tmp_path) not in "".join(files[name].read_text() for name in files if name.endswith((".md", ".json")))


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(("name", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16)])
def test_number_format_can_change(name: str, dtype: torch.dtype, checkpoint: Path, tmp_path: Path) -> None:
    target = tmp_path / "exported"
    assert run_export(checkpoint, target, "--dtype", name) == 0
    before = weights_of(checkpoint / "modeling")
    assert {tensor.dtype for tensor in before.values()} == {torch.bfloat16}
    assert {name: tensor.dtype for name, tensor in weights_of(target).items()} == dict.fromkeys(before, dtype)
    assert all(torch.equal(tensor, before[name].to(dtype)) for name, tensor in weights_of(target).items())
    told = read_probe(checkpoint)
    ours = plain_logits(target, told.input_ids)
    nats = -ours.log_softmax(-1)[:-1].gather(1, told.input_ids[1:, None]).squeeze(1)
    plain = Probe(told.input_ids, nats, told.positions, ours[told.positions])
    assert difference(told, plain).relative < export.TOLERANCE["bf16"] / 5, "a reader from the paper agrees too"
    in_fp32 = AutoModelForCausalLM.from_pretrained(target, torch_dtype=torch.float32)
    assert difference(model_probe(in_fp32, told.input_ids, told.positions), plain).relative < 1e-5


@pytest.mark.usefixtures("in_this_process")
def test_run_exports_its_newest_checkpoint_whatever_its_name(
    zero2_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = shutil.copytree(zero2_run, tmp_path / "modeling")
    assert run_export(run, tmp_path / "exported") == 0
    assert "its newest checkpoint is epoch-0_step-8" in caplog.text
    assert json.loads((tmp_path / "exported" / "manifest.json").read_text())["checkpoint"]["step"] == 8


@pytest.mark.parametrize(
    "pattern",
    [
        *("modeling/*.safetensors", "modeling/tokenizer.model", "modeling/config.json", "optimizer/*.safetensors"),
        *("probe.safetensors", "lineage.json", "train_config.json"),
    ],
)
def test_checkpoint_with_a_flipped_bit_is_refused(
    pattern: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next(checkpoint.glob(pattern))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert run_export(checkpoint, tmp_path / "exported") == 2
    assert f"{path}: not the file that was saved" in error_line(capsys)
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("epoch-0_step-8/modeling", "holds a model, without the scores to prove it by; name {run}/epoch-0_step-8"),
        ("modeling", "holds a model, without the scores to prove it by; name {run}"),
        ("tensorboard", "holds neither a checkpoint nor a run; name {run}"),
        ("gone", "no such directory"),
    ],
)
def test_what_is_no_checkpoint_is_refused(
    place: str, said: str, zero2_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_export(zero2_run / place, tmp_path / "exported") == 2
    line = error_line(capsys)
    assert f"--checkpoint {zero2_run / place}: " in line
    assert said.format(run=zero2_run) in line
    assert list(tmp_path.iterdir()) == []


def test_run_without_a_checkpoint_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "train_config.json").write_text("{}")
    assert run_export(tmp_path / "run", tmp_path / "exported") == 2
    assert "a run without a complete checkpoint yet; wait for its first save" in error_line(capsys)


def test_checkpoint_with_a_cut_file_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.truncate(checkpoint / "modeling" / "model.safetensors", 1000)
    assert run_export(checkpoint, tmp_path / "exported") == 2
    assert "model.safetensors: missing or not" in error_line(capsys)


@pytest.mark.usefixtures("in_this_process")
def test_existing_target_is_kept_unless_given_away(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "exported"
    target.mkdir()
    (target / "thesis.txt").write_text("ten years of work")
    assert run_export(checkpoint, target) == 2
    assert "--overwrite" in error_line(capsys)
    assert (target / "thesis.txt").read_text() == "ten years of work"
    assert run_export(checkpoint, target, "--overwrite") == 0
    assert not (target / "thesis.txt").exists()
    assert (target / "manifest.json").is_file()


def test_files_that_give_something_else_are_not_delivered(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proof itself: the process that loads the target finds one weight changed."""
    real = reread.reread

    def spoil_and_reread(directory: Path, *others: Any) -> Probe:
        tensors = load_file(directory / "model.safetensors")
        tensors["lm_head.weight"][7] += 0.01
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return real(directory, *others)

    monkeypatch.setattr(reread, "reread", spoil_and_reread)
    with pytest.raises(RuntimeError, match="the reloaded model differs from what was written by"):
        run_export(checkpoint, tmp_path / "exported")
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]


def test_weights_that_were_not_written_as_saved_are_not_delivered(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change so rare that no short text meets it."""
    from colossal_llama import model

    unseen = next(row for row in range(512) if row not in read_probe(checkpoint).input_ids)
    load = model.load_model

    def load_and_spoil(*args: Any, **kwargs: Any) -> torch.nn.Module:
        loaded = load(*args, **kwargs)
        loaded.model.embed_tokens.weight.data[unseen] *= 2
        return loaded

    monkeypatch.setattr(model, "load_model", load_and_spoil)
    with pytest.raises(RuntimeError, match="model.embed_tokens.weight: not written as the checkpoint has it"):
        run_export(checkpoint, tmp_path / "exported")
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]


@pytest.mark.usefixtures("in_this_process")
def test_another_model_than_the_trainers_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights, hashes and all are in order, but they are not what was trained."""
    path = checkpoint / "modeling" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["lm_head.weight"].flip(0)
    save_file(tensors, path, metadata={"format": "pt"})
    seal(checkpoint)
    assert run_export(checkpoint, tmp_path / "exported") == 2
    line = error_line(capsys)
    assert "differs from the trainer by" in line
    assert "more than the 0.1 that rounding in bf16 and bf16 explains" in line
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]


@pytest.mark.usefixtures("in_this_process")
def test_one_wrong_score_among_many_is_seen(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_probe(checkpoint, lambda tensors: tensors["nats"][40].add_(1))
    assert run_export(checkpoint, tmp_path / "exported") == 2
    assert "differs from the trainer by" in error_line(capsys)


@pytest.mark.usefixtures("in_this_process")
def test_diverged_run_is_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_probe(checkpoint, lambda tensors: tensors["nats"][40].fill_(float("nan")))
    assert run_export(checkpoint, tmp_path / "exported") == 2
    assert "the run has diverged; export an older checkpoint" in error_line(capsys)


@pytest.mark.usefixtures("in_this_process")
def test_number_format_that_is_too_small_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = checkpoint / "modeling" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] *= 1e8
    save_file(tensors, path, metadata={"format": "pt"})
    seal(checkpoint)
    assert run_export(checkpoint, tmp_path / "exported", "--dtype", "fp16") == 2
    assert "try --dtype as_saved" in error_line(capsys)


@pytest.mark.usefixtures("in_this_process")
def test_more_pieces_than_rows_are_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint / "modeling")
    tokenizer.add_tokens(["<one more>"])
    tokenizer.save_pretrained(checkpoint / "modeling")
    seal(checkpoint)
    assert run_export(checkpoint, tmp_path / "exported") == 2
    assert "512 embedding rows, but the tokenizer has 513 pieces" in error_line(capsys)


def test_process_that_cannot_load_the_files_says_why(checkpoint: Path) -> None:
    told = read_probe(checkpoint)
    (checkpoint / "modeling" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(RuntimeError, match="a new process could not load what was written: .*header too small"):
        reread.reread(checkpoint / "modeling", told.input_ids, told.positions)


def test_process_that_the_system_kills_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed = subprocess.CompletedProcess([], -signal.SIGKILL, b"", b"")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: killed)
    told = read_probe(checkpoint)
    with pytest.raises(UserError, match="was killed, for want of memory most likely"):
        reread.reread(checkpoint / "modeling", told.input_ids, told.positions)


def test_ctrl_c_leaves_nothing_and_nobody(checkpoint: Path, tmp_path: Path) -> None:
    """In the middle of the new process's work."""
    words = ["-m", "colossal_llama.export", "--checkpoint", str(checkpoint), "--target", str(tmp_path / "exported")]
    process = subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, start_new_session=True)
    assert process.stderr is not None
    assert any(b"in a process that knows nothing" in line for line in process.stderr)
    children: list[int] = []
    while process.poll() is None and not children:
        time.sleep(0.01)
        children = children_of(process.pid)
    assert children
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 130
    assert said.splitlines()[-1] == "error: interrupted; nothing half-written was left behind"
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.usefixtures("in_this_process")
def test_adapter_is_exported_merged(
    train: Callable[..., Any],
    flags: dict[str, Any],
    tiny_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The trainer adds the adapter's product to the activations, the export to the weights."""
    target = tmp_path / "exported"
    settings = {**flags, "plugin": "ddp", "mixed_precision": "fp32", "lora_rank": 4, "lr": 2e-2, "max_steps": 3}
    train(1, tmp_path / "run", **settings | {"lora_targets": ["q_proj", "down_proj"]})
    modeling = tmp_path / "run" / "epoch-0_step-3" / "modeling"
    assert lora.is_adapter(modeling)
    assert run_export(tmp_path / "run", target) == 0
    assert not lora.is_adapter(target)
    merged = load_model(modeling, "auto", "sdpa", use_grad_checkpoint=False).state_dict()
    exported, base = weights_of(target), weights_of(tiny_model_dir)
    assert exported.keys() == merged.keys()
    assert all(torch.equal(exported[name], merged[name]) for name in exported)
    changed = {name for name in base if not torch.equal(base[name], exported[name])}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "down_proj", "embed_tokens", "lm_head"}
    said = []
    for directory in (target, modeling):
        capsys.readouterr()
        assert generate.main(["--model", str(directory), "--prompt", "The licence", "--max_new_tokens", "6"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]


@pytest.mark.usefixtures("in_this_process")
def test_adapter_that_is_left_out_is_noticed(
    train: Callable[..., Any],
    flags: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the trainer's scores alone: nothing else knows what the merged weights should be."""
    settings = {**flags, "plugin": "ddp", "lora_rank": 4, "lr": 5e-2, "max_steps": 4}
    train(1, tmp_path / "run", **settings | {"lora_modules_to_save": [], "mixed_precision": "fp32"})
    monkeypatch.setattr(lora, "merge", lambda model, _: model)
    assert run_export(tmp_path / "run", tmp_path / "exported") == 2
    assert "differs from the trainer by" in error_line(capsys)
