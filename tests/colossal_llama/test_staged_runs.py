"""Who trains when: whole runs against plain PyTorch loops that freeze, mask and carry on by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from colossal_llama.batches import BatchReader, Shape
from data_tools.bins import open_bins
from tests.colossal_llama.runs import ROW_LENGTH, stopped_copy, weights_of
from tests.conftest import read_metrics

Train = Callable[..., list[dict[str, Any]]]
OLD_ROWS, VOCABULARY = 300, 512
INPUT, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
DECAY, CLIP, SEED = 0.5, 0.5, 42
COMMON = {"weight_decay": DECAY, "gradient_clipping": CLIP, "seed": SEED, "lr_schedule": "constant", "warmup_steps": 0}


@pytest.fixture(scope="module")
def grown_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a manifest that calls its rows from OLD_ROWS on new."""
    directory = tmp_path_factory.mktemp("grown") / "model"
    shutil.copytree(tiny_model_dir, directory)
    manifest = json.loads((directory / "manifest.json").read_text())
    sizes = {"vocab_size": {"before": OLD_ROWS, "after": VOCABULARY}}
    (directory / "manifest.json").write_text(json.dumps({**manifest, **sizes}))
    return directory


def plain_steps(model_dir: Path, bins_dir: Path) -> Iterator[tuple[Any, torch.Tensor]]:
    """(model, loss after backward) of each step of four rows, in fp32."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, torch_dtype=torch.float32)
    reader = BatchReader(open_bins([bins_dir]), Shape(4, 1, 1, 0), SEED, ROW_LENGTH, 0, 10**6)
    for (batch,) in reader.steps_from(0):
        model.zero_grad()
        loss = model(input_ids=batch.input_ids, labels=batch.labels).loss
        loss.backward()
        yield model, loss.detach()


LAYOUTS = {
    "zero2": {"plugin": "zero2", "mixed_precision": "fp32"},
    "gemini": {"plugin": "gemini"},
    "tp2": {"plugin": "3d", "tp": 2, "zero": 0, "mixed_precision": "fp32", "micro_batch_size": 4},
    "pp2": {"plugin": "3d", "pp": 2, "zero": 1, "micro_batch_size": 2, "accumulation_steps": 2},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_new_rows_alone_train_and_old_rows_keep_every_bit(
    layout: str, train: Train, flags: dict[str, Any], grown_dir: Path, tiny_bins_dir: Path, tmp_path: Path
) -> None:
    own = {**flags, **COMMON, "micro_batch_size": 2, **LAYOUTS[layout], "pretrained": grown_dir}
    steps = train(2, tmp_path / "run", **own, train="new_rows", max_steps=3)

    losses, optimizer = [], None
    for _, (model, loss) in zip(range(3), plain_steps(grown_dir, tiny_bins_dir), strict=False):
        matrices = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
        optimizer = optimizer or torch.optim.AdamW(matrices, lr=flags["lr"], betas=(0.9, 0.95), weight_decay=0.0)
        for matrix in matrices:
            matrix.grad[:OLD_ROWS] = 0
        torch.nn.utils.clip_grad_norm_(matrices, CLIP)
        optimizer.step()
        losses.append(loss.item())
    tolerance = 1e-5 if "mixed_precision" in LAYOUTS[layout] else 1e-2
    assert [step["loss"] for step in steps] == pytest.approx(losses, rel=tolerance)

    before, after = weights_of(grown_dir), weights_of(tmp_path / "run" / "modeling")
    for name, tensor in after.items():
        start = before[name].to(tensor.dtype)
        same = (tensor == start).flatten(1).all(1) if name in (INPUT, OUTPUT) else (tensor == start).all()[None]
        assert same[:OLD_ROWS].all(), name
        if name == OUTPUT:
            assert not same[OLD_ROWS:].any(), "softmax gives every new row a gradient"
        if name == INPUT:
            assert 0 < same[OLD_ROWS:].sum() < VOCABULARY - OLD_ROWS, "those that were read have moved"


STAGES = ["new_rows,steps=2,lr=2e-3", "embeds,steps=2,lr=1e-3", "all,lr=5e-4"]


def test_stages_are_those_of_a_plain_loop_that_keeps_the_moments(
    train: Train, flags: dict[str, Any], grown_dir: Path, tiny_bins_dir: Path, tmp_path: Path
) -> None:
    own = {**flags, **COMMON, "mixed_precision": "fp32", "pretrained": grown_dir, "stages": STAGES}
    steps = train(2, tmp_path / "run", **own, micro_batch_size=2, max_steps=6)
    assert [step["stage"] for step in steps] == [1, 1, 2, 2, 3, 3]
    assert [step["lr"] for step in steps] == [2e-3, 2e-3, 1e-3, 1e-3, 5e-4, 5e-4]

    losses, norms, optimizer = [], [], None
    for number, (model, loss) in zip(range(6), plain_steps(grown_dir, tiny_bins_dir), strict=False):
        matrices = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
        rest = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
        if optimizer is None:
            optimizer = torch.optim.AdamW([{"params": matrices}], betas=(0.9, 0.95), weight_decay=0.0)
        if number == 4:  # they join with moments of their own, beginning now
            optimizer.add_param_group({"params": [p for p in rest if p.dim() > 1], "weight_decay": DECAY})
            optimizer.add_param_group({"params": [p for p in rest if p.dim() == 1]})
        if number == 2:
            optimizer.param_groups[0]["weight_decay"] = DECAY
        if number < 2:
            for matrix in matrices:
                matrix.grad[:OLD_ROWS] = 0
        trained = matrices if number < 4 else [*matrices, *rest]
        for group in optimizer.param_groups:
            group["lr"] = (2e-3, 1e-3, 5e-4)[number // 2]
        norms.append(torch.nn.utils.clip_grad_norm_(trained, CLIP).item())
        optimizer.step()
        losses.append(loss.item())
    assert [step["loss"] for step in steps] == pytest.approx(losses, rel=1e-5)
    assert [step["grad_norm"] for step in steps] == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize("killed_after", [1, 4, 5], ids=["inside the first", "between two", "inside the last"])
def test_a_staged_run_goes_on_inside_any_stage(
    killed_after: int, train: Train, staged_run: Path, staged_flags: dict[str, Any], tmp_path: Path
) -> None:
    stopped = stopped_copy(staged_run, tmp_path / "stopped", killed_after)
    resumed = train(2, stopped, **staged_flags)
    names = ("step", "stage", "loss", "lr", "grad_norm", "num_tokens_seen")
    whole = read_metrics(staged_run)
    assert [[step[name] for name in names] for step in resumed] == [[step[name] for name in names] for step in whole]
    for path in (staged_run / "modeling").glob("*.safetensors"):
        assert path.read_bytes() == (stopped / "modeling" / path.name).read_bytes()


@pytest.fixture(scope="module")
def staged_flags(flags: dict[str, Any], grown_dir: Path) -> dict[str, Any]:
    """Six steps in three stages, a checkpoint after each step, in bf16."""
    return {
        **{**flags, "warmup_steps": 1, "pretrained": grown_dir},
        **{"stages": STAGES, "micro_batch_size": 2, "max_steps": 6, "save_interval": 1},
    }


@pytest.fixture(scope="module")
def staged_run(train: Train, staged_flags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The save_dir of that run, uninterrupted."""
    save_dir = tmp_path_factory.mktemp("staged") / "run"
    train(2, save_dir, **staged_flags)
    return save_dir


def test_stages_that_end_before_the_steps_do_end_the_run(train: Train, flags: dict[str, Any], tmp_path: Path) -> None:
    own = {**flags, "micro_batch_size": 2, "stages": ["embeds,steps=2", "all,steps=2"], "warmup_steps": 0}
    steps = train(1, tmp_path / "run", **own, max_steps=8)
    assert [step["stage"] for step in steps] == [1, 1, 2, 2]
    assert (tmp_path / "run" / "modeling" / "config.json").is_file()
    assert train(1, tmp_path / "run", **own, max_steps=8) == steps, "started again it has nothing to do"
