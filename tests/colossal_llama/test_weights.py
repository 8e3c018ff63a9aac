"""Which rank writes which file of a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from colossal_llama import export
from colossal_llama.weights import Held, plan_files

LARGEST = 100
SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=30)


@given(SIZES, st.integers(1, 8))
def test_ranks_that_hold_everything_share_the_files_out(sizes: list[int], num_ranks: int) -> None:
    tensors = [Held(f"layer.{number}", size) for number, size in enumerate(sizes)]
    files = plan_files([tensors] * num_ranks, LARGEST)
    assert [tensor for file in files for tensor in file.tensors] == tensors, "the model's order, nothing twice"
    assert all(sum(tensor.num_bytes for tensor in file.tensors) <= LARGEST for file in files)
    ranks = [file.rank for file in files]
    assert ranks == sorted(ranks) and set(ranks) <= set(range(num_ranks))
    assert len(set(ranks)) == min(len(files), num_ranks)
    if len(files) == 1:
        assert files[0].name == "model.safetensors"
    else:
        assert [file.name for file in files] == [
            f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)
        ]


@given(st.lists(SIZES, min_size=2, max_size=4), st.integers(1, 3))
def test_a_pipeline_s_stages_write_their_own_layers(stages: list[list[int]], copies: int) -> None:
    held = [
        [Held(f"stage.{stage}.{number}", size) for number, size in enumerate(sizes)]
        for stage, sizes in enumerate(stages)
        for _ in range(copies)
    ]
    files = plan_files(held, LARGEST)
    for file in files:
        assert set(file.tensors) <= set(held[file.rank]), "a rank is to write what it does not hold"
    names = [tensor.name for file in files for tensor in file.tensors]
    assert len(names) == len(set(names)) == sum(len(sizes) for sizes in stages)


def test_a_tensor_larger_than_a_file_has_one_of_its_own() -> None:
    files = plan_files([[Held("a", 10), Held("b", 500), Held("c", 10)]], LARGEST)
    assert [[tensor.name for tensor in file.tensors] for file in files] == [["a"], ["b"], ["c"]]


def test_a_generation_config_that_transformers_refuses_to_save_is_no_end_of_a_run(
    train: Any, flags: dict[str, Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    """A temperature without sampling, as LLaMA-2 came with it, ended a run at its first save."""
    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    (model / "manifest.json").unlink()
    (model / "generation_config.json").write_text(json.dumps({"temperature": 0.9, "top_p": 0.6, "bos_token_id": 1}))
    train(1, tmp_path / "run", **{**flags, "pretrained": model, "max_steps": 1, "warmup_steps": 0})
    assert export.main(["--checkpoint", str(tmp_path / "run"), "--target", str(tmp_path / "exported")]) == 0
    run = tmp_path / "run"
    for directory in (run / "modeling", run / "epoch-0_step-1" / "modeling", tmp_path / "exported"):
        saved = json.loads((directory / "generation_config.json").read_text())
        assert (saved["temperature"], saved["top_p"], saved["bos_token_id"]) == (0.9, 0.6, 1)
