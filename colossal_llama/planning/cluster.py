"""Which GPUs there will be: "64 x A800-80G" or a hostfile comes in, their number, memory and peak go out."""

from __future__ import annotations

import re
from dataclasses import dataclass

from colossal_llama.gpus import CATALOGUE, GIBI, datasheet_tflops, find_gpu
from colossal_llama.planning.plan_config import PlanConfig
from tokenizer_tools.command import UserError

FORM = 'such as "64 x A800-80G" or "8 x 8 x A800-80G" (hosts x GPUs)'
RESERVE_GIB, RESERVE_SHARE = 3.0, 0.05


@dataclass(frozen=True)
class PlannedCluster:
    """GPUs of one kind. `peak_tflops` is one GPU's dense peak in the run's number format."""

    num_gpus: int
    gpus_per_host: int
    gpu_name: str
    memory_bytes: int
    reserve_bytes: int
    peak_tflops: float
    peak_source: str

    @property
    def usable_bytes(self) -> int:
        """What a plan may fill."""
        return self.memory_bytes - self.reserve_bytes

    @property
    def num_hosts(self) -> int:
        """Hosts, the last of which may be filled in part."""
        return -(-self.num_gpus // self.gpus_per_host)


def planned_cluster(config: PlanConfig) -> PlannedCluster:
    """The cluster that the flags describe. Raises UserError if they do not, or its peak is not known."""
    num_gpus, gpus_per_host, gpu_name = _size(config)
    gpu = find_gpu(gpu_name)
    if gpu is None and (config.gpu_memory_gib is None or config.peak_tflops is None):
        raise UserError(
            f"GPU {gpu_name}: not one of {', '.join(known.name for known in CATALOGUE)}; "
            f"describe it with --gpu_memory_gib and --peak_tflops"
        )
    memory_gib = config.gpu_memory_gib or (gpu.memory_gib if gpu else 0.0)
    reserve_gib = RESERVE_GIB + RESERVE_SHARE * memory_gib if config.reserve_gib is None else config.reserve_gib
    name = gpu.name if gpu else gpu_name
    peak, source = _peak(config, name, gpu.device_name if gpu else "")
    return PlannedCluster(
        num_gpus=num_gpus,
        gpus_per_host=gpus_per_host,
        gpu_name=name,
        memory_bytes=round(memory_gib * GIBI),
        reserve_bytes=round(reserve_gib * GIBI),
        peak_tflops=peak,
        peak_source=source,
    )


def _peak(config: PlanConfig, name: str, device_name: str) -> tuple[float, str]:
    if config.peak_tflops is not None:
        return config.peak_tflops, f"{config.peak_tflops:g} TFLOP/s (--peak_tflops)"
    precision = config.mixed_precision
    known = datasheet_tflops(device_name)
    if precision not in known:
        formats = f"of {', '.join(known)} is known" if known else "is not known"
        raise UserError(
            f"--mixed_precision {precision} on {name}: only its peak {formats}; "
            f"use that format, or say what it does with --peak_tflops"
        )
    return known[precision], f"{known[precision]:g} TFLOP/s ({name}, dense {precision} of its datasheet)"


def _size(config: PlanConfig) -> tuple[int, int, str]:
    """(GPUs, GPUs of a host, name of the GPU)."""
    if (config.cluster is None) == (config.hostfile is None):
        raise UserError(f"say which GPUs: either --cluster, {FORM}, or --hostfile FILE with --gpu A800-80G")
    if config.hostfile is not None:
        from colossal_llama.hosts.hostfile import read_hostfile

        if config.gpu is None:
            raise UserError(f"--hostfile {config.hostfile}: does not say which GPUs its hosts have; add --gpu A800-80G")
        return len(read_hostfile(config.hostfile)) * config.gpus_per_host, config.gpus_per_host, config.gpu
    assert config.cluster is not None
    match = re.fullmatch(r"\s*(\d+)\s*[x×*]\s*(?:(\d+)\s*[x×*]\s*)?(\S.*?)\s*", config.cluster, re.IGNORECASE)
    if match is None or config.gpu is not None:
        wrong = "and --gpu say it twice; leave --gpu away" if match else f"must be {FORM}"
        raise UserError(f"--cluster {config.cluster!r}: {wrong}")
    first, second = int(match[1]), int(match[2] or 0)
    num_gpus, gpus_per_host = (first * second, second) if second else (first, min(first, config.gpus_per_host))
    if num_gpus < 1:
        raise UserError(f"--cluster {config.cluster!r}: has no GPU; it must be {FORM}")
    return num_gpus, gpus_per_host, match[3]
