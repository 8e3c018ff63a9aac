"""Which files make up a model, and each way in which they can fail to."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from tokenizer_tools.command import UserError
from tokenizer_tools.shards import check_space, make_plan, read_weights, write_weights

FILES = {
    "model-00001-of-00002.safetensors": {"a": torch.ones(4, 2), "b": torch.zeros(3)},
    "model-00002-of-00002.safetensors": {"c": torch.full((2,), 7, dtype=torch.bfloat16)},
}


def write_model(directory: Path, **index: object) -> Path:
    """Two shards and their index, whose parts may be replaced."""
    for name, tensors in FILES.items():
        save_file(tensors, directory / name)
    weight_map = {tensor: name for name, tensors in FILES.items() for tensor in tensors}
    default = {"metadata": {"total_size": 48, "total_parameters": 13, "more": "kept"}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(default | index))
    return directory


def test_a_matrix_grows_and_a_tensor_is_dropped(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    weights = read_weights(write_model(source))
    plan = make_plan(weights, {"a": 6, "not there": 9}, ["b"])
    new = torch.rand(2, 2)
    write_weights(plan, target, lambda name, file: [file.rows(name, 4), new], weights.index)
    first, second = (load_file(target / name) for name in FILES)
    assert first.keys() == {"a"}
    assert torch.equal(first["a"], torch.cat([torch.ones(4, 2), new]))
    assert torch.equal(second["c"], FILES["model-00002-of-00002.safetensors"]["c"])
    assert (target / list(FILES)[1]).read_bytes() == (source / list(FILES)[1]).read_bytes()
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 6 * 2 * 4 + 4, "total_parameters": 14, "more": "kept"}
    assert index["weight_map"] == {"a": list(FILES)[0], "c": list(FILES)[1]}


def test_what_transformers_reads_first_is_read(tmp_path: Path) -> None:
    """A single file wins over an index, safetensors over .bin."""
    write_model(tmp_path)
    torch.save({"d": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert read_weights(tmp_path).file_of.keys() == {"a", "b", "c"}
    save_file({"e": torch.ones(1)}, tmp_path / "model.safetensors")
    assert read_weights(tmp_path).file_of.keys() == {"e"}


def test_room_is_reckoned_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(read_weights(write_model(tmp_path)), {"a": 10**9})
    assert plan.num_bytes == 8 * 10**9 + 12 + 4
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=3_100_000_000))
    with pytest.raises(UserError, match="no space left for the model: it needs 8 GB, 3.1 GB are free; free some or"):
        check_space(plan, tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=plan.num_bytes))
    check_space(plan, tmp_path)


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "consolidated.00.pth").write_text("")
    with pytest.raises(UserError, match=r"holds none of model.safetensors, .*; name a complete model directory"):
        read_weights(tmp_path)


@pytest.mark.parametrize("weight_map", [None, {}, [], "model.safetensors"])
def test_an_index_without_files_is_refused(tmp_path: Path, weight_map: object) -> None:
    write_model(tmp_path, weight_map=weight_map)
    with pytest.raises(UserError, match="names no file in its weight_map; fetch the model again"):
        read_weights(tmp_path)


@pytest.mark.parametrize("name", ["../model.safetensors", "/model.safetensors", "sub/x.safetensors", 7])
def test_an_index_that_leads_elsewhere_is_refused(tmp_path: Path, name: object) -> None:
    write_model(tmp_path, weight_map={"a": name})
    with pytest.raises(UserError, match="which is no file beside it; fetch the model again"):
        read_weights(tmp_path)


def test_an_index_that_names_absent_files_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path)
    (tmp_path / list(FILES)[0]).unlink()
    message = (
        r"model-00001-of-00002.safetensors: no such file, but model.safetensors.index.json names it \(1 of 2 files"
    )
    with pytest.raises(UserError, match=message):
        read_weights(tmp_path)


@pytest.mark.parametrize("tensor", ["a", "z"])
def test_an_index_that_names_absent_tensors_is_refused(tmp_path: Path, tensor: str) -> None:
    write_model(tmp_path, weight_map={"c": list(FILES)[1], "b": list(FILES)[0], tensor: list(FILES)[1]})
    with pytest.raises(UserError, match=f"{tensor} is not in model-00002-of-00002.safetensors; fetch the model again"):
        read_weights(tmp_path)


def test_half_a_shard_is_refused(tmp_path: Path) -> None:
    path = write_model(tmp_path) / list(FILES)[1]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors: not a whole safetensors file"):
        read_weights(tmp_path)
