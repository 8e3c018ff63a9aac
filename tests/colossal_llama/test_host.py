"""The CPU accelerator: installed only where there is none, loud when colossalai changes, right in its arithmetic."""

from __future__ import annotations

import mmap
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from colossal_llama import host
from colossal_llama.host_kernels import HostAdam

Ranks = Callable[..., list[Any]]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("accelerator", [True, False])
def test_patched_only_without_an_accelerator(accelerator: bool) -> None:
    code = f"""
import sys, torch
import torch.distributed as dist
torch.cuda.is_available = lambda: {accelerator}
all_to_all, reduce_scatter = dist.all_to_all, dist.reduce_scatter
from colossal_llama import host
installed = host.install_if_needed()
untouched = 'colossalai' not in sys.modules and (dist.all_to_all, dist.reduce_scatter) == (all_to_all, reduce_scatter)
print(installed, untouched, host.install_if_needed())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ("False True False" if accelerator else "True False True")


def what_the_patches_say_of_another_colossalai() -> dict[str, str]:
    """Each patch when the lines it leans on are gone; install_if_needed under another version."""
    import inspect
    from unittest import mock

    import colossalai

    from colossal_llama import host, mends, upstream

    said = {}
    with mock.patch.object(inspect, "getsource", lambda code: "def something_else(): ..."):
        for patch in (*host.PATCHES, mends.mend_ring_gather):
            try:
                patch()
                said[patch.__name__] = "nothing"
            except RuntimeError as error:
                said[patch.__name__] = str(error)
    with mock.patch.object(colossalai, "__version__", "0.6.0"), mock.patch.object(host, "_installed", False):
        for name, check in {"install": host.install_if_needed, "version": upstream.require_version}.items():
            try:
                check()
            except RuntimeError as error:
                said[name] = str(error)
    upstream.require_version()
    upstream.require_line(upstream.require_line, "inspect.getsource(code)")
    return said


def test_every_patch_is_loud_when_its_line_is_gone(ranks: Ranks) -> None:
    (said,) = ranks(what_the_patches_say_of_another_colossalai, 1)
    assert len(said) == 9
    assert {said.pop("install"), said.pop("version")} == {
        "colossalai 0.6.0: the patches of host.py and mends.py were made for 0.5.0; "
        "install that version, or go over each of them"
    }
    for name, text in said.items():
        assert "has changed, `" in text, name
        assert "` is gone: review its patch" in text, name


@pytest.mark.parametrize("div_scale", [-1.0, 1.0, 8.0])
def test_host_adam_is_adamw(div_scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    own = torch.randn(50, generator=generator)
    theirs = own.clone().requires_grad_()
    reference = torch.optim.AdamW([theirs], lr=1.0, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1)
    adam = HostAdam(1.0, 0.8, 0.95, 1e-6, 0.1, True)
    exp_avg, exp_avg_sq = torch.zeros(50), torch.zeros(50)
    for step, lr in enumerate([1e-2, 3e-2, 2e-2, 1e-3], start=1):
        gradient = torch.randn(50, generator=generator)
        given = gradient * div_scale if div_scale > 0 else gradient.clone()
        kept = given.clone()
        adam.step(step, lr, 0.8, 0.95, 1e-6, 0.1, True, own, given, exp_avg, exp_avg_sq, div_scale)
        assert torch.equal(given, kept)
        reference.param_groups[0]["lr"] = lr
        theirs.grad = gradient
        reference.step()
        torch.testing.assert_close(own, theirs.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(exp_avg_sq, reference.state[theirs]["exp_avg_sq"])


def lists_over_gloo(dtype: torch.dtype) -> list[np.ndarray]:
    """What was given and what the two collectives made of it, gathered plainly."""
    from colossal_llama import host

    host.install_if_needed()
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(rank)
    # integers: their sums are exact in bf16 too; the parts are no contiguous blocks of memory
    given = list(torch.randint(-9, 9, (4, size, 3), generator=generator).to(dtype).permute(1, 2, 0).unbind(0))
    exchanged = [torch.empty(3, 4, dtype=dtype) for _ in range(size)]
    dist.all_to_all(exchanged, given)
    reduced = torch.empty(3, 4, dtype=dtype)
    dist.reduce_scatter(reduced, given)
    assert reduced.dtype == exchanged[0].dtype == dtype
    return [torch.stack(given).float().numpy(), torch.stack(exchanged).float().numpy(), reduced.float().numpy()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("world_size", [2, 3])
def test_lists_go_over_gloo(ranks: Ranks, dtype: torch.dtype, world_size: int) -> None:
    results = ranks(lists_over_gloo, world_size, dtype)
    given = np.stack([one[0] for one in results])  # [sender, receiver, 3, 4]
    assert len(np.unique(given)) > 2
    for rank, (_, exchanged, reduced) in enumerate(results):
        np.testing.assert_array_equal(exchanged, given[:, rank])
        np.testing.assert_array_equal(reduced, given[:, rank].sum(0))


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100 80GB PCIe", "fp16", 312),
        ("NVIDIA A800-SXM4-80GB", "bf16", 312),
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H100 NVL", "bf16", 835),
        ("NVIDIA H800", "bf16", 989),
        ("NVIDIA H200", "bf16", 989),
        ("NVIDIA L40S", "bf16", 362),
        ("NVIDIA GeForce RTX 4090", "bf16", 165),
        ("NVIDIA A10", "bf16", 125),
        ("Tesla V100-SXM2-32GB", "fp16", 125),
        ("Tesla V100-PCIE-16GB", "fp16", 112),
        ("Tesla V100-SXM2-32GB", "bf16", None),  # it has no bf16
        ("NVIDIA A100-SXM4-80GB", "fp32", None),  # depends on whether TF32 is allowed
        ("NVIDIA A10G", "bf16", None),
        ("NVIDIA L40", "bf16", None),
        ("NVIDIA GeForce RTX 4090 D", "bf16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("Ascend910B", "bf16", None),
        (None, "bf16", None),  # a CPU
    ],
)
def test_peak_by_name(monkeypatch: pytest.MonkeyPatch, name: str | None, precision: str, tflops: int | None) -> None:
    monkeypatch.setattr(host, "device_name", lambda: name)
    found = host.peak(precision, 8, None)
    assert (found and found.flops_per_second) == (tflops and 8 * tflops * 1e12)
    assert found is None or found.source.startswith(f"8 x {tflops} TFLOP/s ({name}")


def test_peak_by_flag_wins_over_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "device_name", lambda: "NVIDIA A100-SXM4-80GB")
    found = host.peak("fp32", 2, 19.5)
    assert found is not None
    assert (found.flops_per_second, found.source) == (39e12, "2 x 19.5 TFLOP/s (--peak_tflops)")


def test_memory_of_an_accelerator_is_its_peak_since_the_last_call(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = [500]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: peaks[-1])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: peaks.append(20))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L40S")
    assert [host.memory_bytes(), host.memory_bytes()] == [500, 20]
    assert host.device_name() == "NVIDIA L40S"


def test_memory_of_a_cpu_is_that_of_the_process() -> None:
    new = mmap.mmap(-1, 2**28)  # and not what tests before have freed, which stays with the process
    before = host.memory_bytes()
    kept = torch.frombuffer(new, dtype=torch.uint8).fill_(1)
    assert host.memory_bytes() - before > 0.9 * kept.nbytes
    assert host.device_name() is None
