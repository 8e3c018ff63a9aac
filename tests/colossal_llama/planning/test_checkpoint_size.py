"""Checkpoint sizes against the files of a finished run. Their plan for other plugins is in test_memory.py."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from colossal_llama.config import TrainConfig
from colossal_llama.planning.checkpoint_size import (
    METADATA,
    checkpoint_bytes,
    optimizer_bytes,
    safetensors_bytes,
    saved_tensors,
    weights_bytes,
)
from colossal_llama.planning.model_shape import Tensor, read_model_shape, shape_of
from colossal_llama.planning.trained import trained_set


def test_files_of_a_finished_run(zero2_run: Path) -> None:
    """bf16 on two ranks: the weights' file byte for byte, the optimizer's tensors without headers and step counts."""
    checkpoint = zero2_run / (zero2_run / "latest").read_text().strip()
    shape = read_model_shape(checkpoint / "modeling")
    config = TrainConfig(zero2_run / "modeling", [], plugin="zero2")
    trained = trained_set(shape, "all", config)
    (file,) = (checkpoint / "modeling").glob("*.safetensors")
    assert file.stat().st_size == safetensors_bytes(saved_tensors(shape, trained), 2)
    assert (zero2_run / "modeling" / file.name).stat().st_size == file.stat().st_size
    states = 0
    for path in (checkpoint / "optimizer").glob("rank-*.safetensors"):
        with safe_open(path, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (it is no mapping)
        states += sum(t.nbytes for name, t in tensors.items() if not name.endswith(".step"))
    assert states == optimizer_bytes(shape, trained) == 12 * shape.num_parameters
    written = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    assert written < checkpoint_bytes(shape, trained, config) < written + 2**24
    assert sorted(json.loads((checkpoint / "optimizer" / "parts.json").read_text())["shapes"]) == sorted(trained.names)


@settings(max_examples=30)
@given(st.dictionaries(st.text("abc.", min_size=1, max_size=20), st.lists(st.integers(1, 9), max_size=2), min_size=1))
def test_size_of_any_safetensors_file(shapes: dict[str, list[int]]) -> None:
    tensors = [Tensor(name, tuple(shape)) for name, shape in shapes.items()]
    for element, dtype in ((2, torch.bfloat16), (4, torch.float32)):
        data = save({name: torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}, metadata=METADATA)
        assert safetensors_bytes(tensors, element) == len(data)


def test_a_7b_as_its_files_are_known() -> None:
    """13.48 GB is what LLaMA-2 7B's 16-bit files take on the hub; AdamW's states are six times as much."""
    shape = shape_of({"model_type": "llama"}, "here")
    config = TrainConfig(Path(), [], plugin="zero2")
    trained = trained_set(shape, "all", config)
    assert weights_bytes(shape, trained, config) == 13_476_831_232
    assert checkpoint_bytes(shape, trained, config) == 13_476_831_232 * 7 + 2**24
    assert weights_bytes(shape, trained, TrainConfig(Path(), [], plugin="ddp")) == 2 * 13_476_831_232
    embeds = trained_set(shape, "embeds", config)
    assert optimizer_bytes(shape, embeds) == 12 * 2 * 32_000 * 4096
