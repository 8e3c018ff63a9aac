"""Files of weights, against the safetensors library and torch themselves."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tokenizer_tools import weight_files
from tokenizer_tools.command import UserError
from tokenizer_tools.weight_files import TYPES, TensorInfo, WeightFile, open_weights, tensor_bytes, write_safetensors

DTYPES = [getattr(torch, name) for name in TYPES.values()]


def random_tensors(seed: int) -> dict[str, torch.Tensor]:
    """One tensor of every type, among them a single number, an empty one and one that lies transposed in memory."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(), (0, 3), (5,), (3, 4), (2, 1, 7)]
    tensors = {
        f"层.{k}": (100 * torch.rand(shapes[(k + seed) % 5], generator=generator)).to(dtype)
        for k, dtype in enumerate(DTYPES)
    }
    return tensors | {"transposed": torch.rand(4, 6, generator=generator).T}


def rewrite(file: WeightFile, path: Path) -> None:
    write_safetensors(path, file.infos, file.metadata, file.copy)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000),
    metadata=st.none() | st.dictionaries(st.text(max_size=4), st.text(max_size=4), min_size=1),
    block_bytes=st.sampled_from([3, 2**18]),
)
def test_safetensors_come_out_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, seed: int, metadata: dict[str, str] | None, block_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("files")
    tensors = {name: tensor.contiguous() for name, tensor in random_tensors(seed).items()}
    save_file(tensors, folder / "old.safetensors", metadata=metadata)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weight_files, "BLOCK_BYTES", block_bytes)
        rewrite(open_weights(folder / "old.safetensors"), folder / "new.safetensors")
    assert_same(load_file(folder / "new.safetensors"), tensors)
    with safe_open(folder / "new.safetensors", "pt") as file:
        assert (file.metadata() or None) == metadata
    header_bytes = int.from_bytes((folder / "new.safetensors").read_bytes()[:8], "little")
    assert header_bytes % 8 == 0


@pytest.mark.parametrize("kind", [dict, OrderedDict])
def test_bin_becomes_safetensors(tmp_path: Path, kind: type) -> None:
    tensors = random_tensors(1)
    tensors["shared"] = tensors["transposed"]
    torch.save(kind(tensors), tmp_path / "old.bin")
    rewrite(open_weights(tmp_path / "old.bin"), tmp_path / "new.safetensors")
    assert_same(load_file(tmp_path / "new.safetensors"), tensors)
    with safe_open(tmp_path / "new.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_first_rows(tmp_path: Path, suffix: str, dtype: torch.dtype) -> None:
    tensors = {"a": torch.rand(3, 4).to(dtype), "b": torch.rand(7, 5).to(dtype), "c": torch.rand(2).to(dtype)}
    path = tmp_path / f"model.{suffix}"
    if suffix == "bin":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    assert torch.equal(open_weights(path).rows("b", 6), tensors["b"][:6])


@pytest.mark.parametrize("by_the_system", [True, False])
def test_bytes_are_copied_to_their_place_by_the_system_or_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_the_system: bool
) -> None:
    tensor = torch.rand(100_000)
    save_file({"small": torch.rand(3), "big": tensor}, tmp_path / "old.safetensors")
    pread, sizes = os.pread, []

    def refuse(*args: Any) -> int:
        raise OSError(errno.EXDEV, "another disk")

    def count(descriptor: int, num_bytes: int, offset: int) -> bytes:
        sizes.append(num_bytes)
        return pread(descriptor, num_bytes, offset)

    monkeypatch.setattr(weight_files, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(os, "pread", count)
    if not by_the_system:
        monkeypatch.setattr(os, "copy_file_range", refuse)
    with (tmp_path / "target").open("wb") as target:
        target.write(b"before")
        assert open_weights(tmp_path / "old.safetensors").copy("big", target) == 400_000
        target.write(b"after")
    assert (tmp_path / "target").read_bytes() == b"before" + bytes(tensor_bytes(tensor)) + b"after"
    assert max(sizes, default=0) == (0 if by_the_system else 4096)


def test_an_error_of_the_disk_is_not_taken_for_another_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    save_file({"a": torch.rand(10)}, tmp_path / "old.safetensors")
    monkeypatch.setattr(os, "copy_file_range", fail)
    with (tmp_path / "target").open("wb") as target, pytest.raises(OSError, match="No space left"):
        open_weights(tmp_path / "old.safetensors").copy("a", target)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bytes_of_a_tensor(dtype: torch.dtype) -> None:
    tensor = (100 * torch.rand(3, 5)).to(dtype)
    buffer = io.BytesIO()
    assert buffer.write(tensor_bytes(tensor)) == tensor.nbytes
    assert torch.equal(torch.frombuffer(bytearray(buffer.getvalue()), dtype=dtype).view(3, 5), tensor)


def test_a_wrong_number_of_bytes_is_our_fault(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="a: 3 bytes written, 4 announced"):
        write_safetensors(
            tmp_path / "x.safetensors", {"a": TensorInfo("F32", (1,), 4)}, None, lambda name, file: file.write(b"abc")
        )


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:4],
        lambda whole: b"",
        lambda whole: whole + b"more",
        lambda whole: b"\xff" * 8 + whole[8:],
        lambda whole: whole[:8] + b"x" + whole[9:],
        lambda whole: whole.replace(b'"F32"', b'"F99"'),
        lambda whole: whole.replace(b"[0,400]", b"[0,396]"),
    ],
)
def test_a_broken_safetensors_file_is_refused(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.rand(100)}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"model.safetensors: not a whole safetensors file \(.+\); fetch it again"):
        open_weights(path)


def test_a_file_that_shrinks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.rand(100_000)}, path)
    file = open_weights(path)
    os.truncate(path, 300_000)
    with pytest.raises(UserError, match="has become shorter"), (tmp_path / "target").open("wb") as target:
        file.copy("a", target)


class Code:
    """What a hostile .bin would hold."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("hacked",)


def test_code_in_a_bin_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Code()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="holds pickled code, which is not run; fetch the model as safetensors"):
        open_weights(tmp_path / "pytorch_model.bin").infos  # noqa: B018  # reading them is the point
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.rand(2)], "holds a list, not tensors by name; save a state dict"),
        ({"a": torch.rand(2), "step": 3}, "step is a int, not a tensor of numbers; save plain weights"),
        ({"a": torch.rand(2).to(torch.complex64)}, "a is a complex64, not a tensor of numbers"),
    ],
)
def test_a_bin_of_other_things_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=message):
        open_weights(tmp_path / "pytorch_model.bin").infos  # noqa: B018


@pytest.mark.parametrize("kind", ["half", "empty", "text", "legacy", "pickle"])
def test_a_broken_bin_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.rand(1000)}, path, _use_new_zipfile_serialization=kind != "legacy")
    whole = path.read_bytes()
    contents = {
        "half": whole[: len(whole) // 2],
        "empty": b"",
        "text": json.dumps({"a": 1}).encode(),
        "legacy": whole,
        "pickle": pickle.dumps({"a": 1}),
    }
    path.write_bytes(contents[kind])
    with pytest.raises(UserError, match=r"no whole .bin file of torch \(.+\); fetch it again, or as safetensors"):
        open_weights(path).infos  # noqa: B018
