"""The CPU accelerator: what Booster needs to run each of its plugins, unchanged, over gloo.

Installed only where torch finds no accelerator. Each patch names the line of colossalai 0.5.0 that makes it necessary;
`require_line` looks for that very line and stops with a RuntimeError if it is gone. Paths are relative to the installed
`colossalai/`.

What a CPU cannot do right is refused in words: fp16 here (its loss scaling is made for a GPU's kernels, and bf16 costs
no more), --sp_mode ring_attn in config.py (it calls flash-attn's CUDA backward, shardformer/layer/attn.py:363).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, cast

import psutil
import torch
import torch.distributed as dist

from colossal_llama import host_kernels
from colossal_llama.flops import Peak
from colossal_llama.gpus import datasheet_tflops
from colossal_llama.upstream import require_line, require_version
from tokenizer_tools.command import UserError
from tokenizer_tools.freed_memory import keep_freed_memory

FREED_AHEAD_BYTES = 2**28
TERA = 10**12

WITHOUT_ACCELERATORS = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": "", "ASCEND_RT_VISIBLE_DEVICES": ""}
"""The environment of a process that is to find none, whatever the machine has."""

_installed = False


def has_accelerator() -> bool:
    """Whether this machine has an accelerator that colossalai can use (CUDA or Ascend)."""
    npu = getattr(torch, "npu", None)
    return torch.cuda.is_available() or (npu is not None and npu.is_available())


def refuse_on_host(mixed_precision: str) -> None:
    """Raise UserError for what cannot be right without an accelerator."""
    if mixed_precision == "fp16" and not has_accelerator():
        raise UserError("--mixed_precision fp16: no accelerator here, and fp16 cannot be right on a CPU; use bf16")


def install_if_needed() -> bool:
    """Make this process ready for Booster on a CPU and return True; with an accelerator present nothing is touched.

    Call it before colossalai.launch*. Raises RuntimeError if colossalai is not the version these patches were made for.
    """
    global _installed
    if has_accelerator():
        return False
    if not _installed:
        require_version()
        for patch in PATCHES:
            patch()
        keep_freed_memory(FREED_AHEAD_BYTES)
        _installed = True
    return True


class HostDevice(str):
    """`cpu` to torch, `cuda` to colossalai.

    zero/gemini/chunk/chunk.py:334 moves a chunk only between devices whose `.type` is "cuda" or "cpu", and takes "cpu"
    for the place where parameters are offloaded to; a sharded chunk must lie on the "cuda" side to be used.
    """

    index: Any = None
    type = "cuda"
    __class__: Any = torch.device  # isinstance(device, torch.device) is asked here and there


class _HostStream(nullcontext):
    """A stream on which everything is already done (zero/low_level/bookkeeping/bucket_store.py:22 and others)."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def wait_stream(self, _: Any) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """Nothing to wait for."""


def _set_accelerator() -> None:
    from colossalai.accelerator import CpuAccelerator, set_accelerator
    from colossalai.accelerator.base_accelerator import BaseAccelerator
    from colossalai.zero.low_level.low_level_optim import LowLevelZeroOptimizer

    # zero/low_level/low_level_optim.py:254 lets only these names pass.
    require_line(LowLevelZeroOptimizer._sanity_checks, 'get_accelerator().name in ["cuda", "npu"]')

    class HostAccelerator(CpuAccelerator):
        """The CPU under the name `cuda`; collectives by gloo."""

        def __init__(self) -> None:
            BaseAccelerator.__init__(self, "cuda", "gloo", True)

        def get_current_device(self) -> torch.device:
            return cast(torch.device, HostDevice("cpu"))

        def is_available(self) -> bool:
            return False  # shardformer/layer/normalization.py:333: no apex kernels

        def synchronize(self, device: Any = None) -> None:
            """Nothing runs in the background (zero/low_level/low_level_optim.py:470)."""

        def device_count(self) -> int:
            return 1  # amp/naive_amp/grad_scaler/dynamic_grad_scaler.py:41

        def get_rng_state(self, device: Any = None) -> torch.Tensor:
            return torch.get_rng_state()  # accelerator/cpu_accelerator.py passes an argument that torch does not take

        def set_rng_state(self, new_state: torch.Tensor, device: Any = None) -> None:
            torch.set_rng_state(new_state)

        def manual_seed(self, seed: int) -> None:
            torch.manual_seed(seed)

        def empty_cache(self) -> None:
            """There is no cache (booster/plugin/gemini_plugin.py, after loading)."""

        Stream = current_stream = stream = _HostStream

    set_accelerator(HostAccelerator())


def _patch_p2p() -> None:
    from colossalai.pipeline import p2p

    # pipeline/p2p.py:159 reads `Backend.HCCL`, which torch does not have. gloo is neither NCCL nor HCCL.
    require_line(p2p._check_for_nccl_hccl_backend, "c10d.Backend.HCCL")
    p2p._check_for_nccl_hccl_backend = lambda group: False


def _patch_gemini() -> None:
    from colossalai.legacy.utils import memory
    from colossalai.zero.gemini.memory_tracer import memory_monitor, memstats_collector

    # zero/gemini/memory_tracer/memory_monitor.py:135 asks torch.cuda for the peak; gemini_auto plans with it.
    require_line(memory_monitor.SyncCudaMemoryMonitor.start, "torch.cuda.reset_peak_memory_stats()")

    class HostMemoryMonitor(memory_monitor.MemoryMonitor):
        """Resident memory of this process in bytes."""

        def start(self) -> None:
            """A process has no peak counter to reset."""

        def finish(self) -> int:
            used_bytes = psutil.Process().memory_info().rss
            self.time_stamps.append(0.0)
            self.mem_stats.append(used_bytes)
            return used_bytes

    memstats_collector.SyncCudaMemoryMonitor = HostMemoryMonitor

    # legacy/utils/memory.py:113 insists on a torch.device and divides by a count that is -1 without the legacy launch.
    require_line(memory.colo_device_memory_capacity, "gpc.num_processes_on_current_node")
    memory.colo_device_memory_capacity = lambda device: psutil.virtual_memory().total // dist.get_world_size()


def _patch_gloo() -> None:
    """gloo of torch 2.5 has these two collectives for one tensor, not for lists (newer torch has both)."""
    from colossalai.shardformer.layer import _operation

    # shardformer/layer/_operation.py:751 (split_gather, ring) and :1259 (all_to_all)
    require_line(_operation._reduce_scatter, "dist.reduce_scatter(output, input_")
    require_line(_operation._all_to_all, "dist.all_to_all(output_list, input_list")
    reduce_scatter, all_to_all = dist.reduce_scatter, dist.all_to_all

    def reduce_scatter_of_list(
        output: torch.Tensor, input_list: list[torch.Tensor], group: Any = None, async_op: bool = False
    ) -> Any:
        if dist.get_backend(group) != "gloo":
            return reduce_scatter(output, input_list, group=group, async_op=async_op)
        joined = torch.cat([tensor.reshape(-1) for tensor in input_list])
        return dist.reduce_scatter_tensor(output.view(-1), joined, group=group, async_op=async_op)

    def all_to_all_of_list(
        output_list: list[torch.Tensor], input_list: list[torch.Tensor], group: Any = None, async_op: bool = False
    ) -> Any:
        if dist.get_backend(group) != "gloo" or async_op:
            return all_to_all(output_list, input_list, group=group, async_op=async_op)
        joined = torch.cat([tensor.reshape(-1) for tensor in input_list])
        received = torch.empty_like(joined)
        dist.all_to_all_single(received, joined, group=group)
        for output, part in zip(output_list, received.split(input_list[0].numel()), strict=True):
            output.copy_(part.view_as(output))
        return None

    dist.reduce_scatter = reduce_scatter_of_list  # type: ignore[assignment]
    dist.all_to_all = all_to_all_of_list  # type: ignore[assignment]


PATCHES = (
    _set_accelerator,
    host_kernels.register_adam,
    host_kernels.register_sdpa,
    _patch_p2p,
    _patch_gemini,
    _patch_gloo,
)


def inference_device() -> torch.device:
    """Where a single process evaluates and generates."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def backend_and_device(local_rank: int) -> tuple[str, torch.device]:
    """What ranks talk by, and where the tensors of this host's rank `local_rank` lie, without colossalai."""
    if not has_accelerator():
        return "gloo", torch.device("cpu")
    kind, backend = ("cuda", "nccl") if torch.cuda.is_available() else ("npu", "hccl")
    _accelerator().set_device(local_rank)
    return backend, torch.device(kind, local_rank)


def device_name() -> str | None:
    """The name of this process's accelerator, as its driver has it; None on a CPU."""
    return _accelerator().get_device_name() if has_accelerator() else None


def peak(mixed_precision: str, num_devices: int, peak_tflops: float | None) -> Peak | None:
    """What `num_devices` devices like this one can do: by --peak_tflops of one, or by the datasheet of its name.

    None on a CPU and for a device that is not in the table. A slice of a device (MIG) is not the device.
    """
    if peak_tflops is not None:
        return Peak(num_devices * peak_tflops * TERA, f"{num_devices} x {peak_tflops:g} TFLOP/s (--peak_tflops)")
    name = device_name()
    tflops = {} if name is None else datasheet_tflops(name)
    if mixed_precision not in tflops:
        return None
    source = f"{num_devices} x {tflops[mixed_precision]} TFLOP/s ({name}, dense {mixed_precision} of its datasheet)"
    return Peak(num_devices * tflops[mixed_precision] * TERA, source)


def memory_bytes() -> int:
    """The most that tensors took on this accelerator since the last call; on a CPU this process's memory now."""
    if not has_accelerator():
        return psutil.Process().memory_info().rss
    device = _accelerator()
    most = device.max_memory_allocated()
    device.reset_peak_memory_stats()
    return most


def _accelerator() -> Any:
    """torch's module of the accelerator at hand."""
    return torch.cuda if torch.cuda.is_available() else cast(Any, torch).npu
