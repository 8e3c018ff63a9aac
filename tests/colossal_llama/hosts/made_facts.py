"""Hosts that nothing is wrong with, to be spoilt by the tests one by one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from colossal_llama.hosts.facts import Facts, Gpu, Question
from colossal_llama.hosts.finding import Finding
from colossal_llama.hosts.host_findings import Own, Wanted
from colossal_llama.hosts.inputs import Seen
from colossal_llama.hosts.survey import Clock, Survey

GIBIBYTE = 2**30
MODEL_BYTES = 10**9
A800 = Gpu(name="NVIDIA A800", memory_bytes=80 * GIBIBYTE, free_bytes=79 * GIBIBYTE, driver="550.54")
MODEL, DATA = "--pretrained model", "--dataset bins"
SHARED = Seen(files={"config.json": "10 aa"}, size_bytes=MODEL_BYTES, place="one disk")
OWN = Own(
    python="3.11.7",
    code_dir="code",
    code={"train.py": "aa", "colossal_llama/loss.py": "bb"},
    packages={"torch": "2.5.1+cu124", "ruff": "0.1"},
    needed=frozenset({"torch"}),
)
QUESTION = Question(master="h0", save_dir="runs", inputs={MODEL: "m", DATA: "d"}, reads_all=False, temporary_dir=None)


def wanted(num_ranks: int = 2, num_hosts: int = 2, **environment: str) -> Wanted:
    """What a run asks of its hosts."""
    return Wanted(num_ranks, num_ranks * num_hosts, "runs", environment)


def facts_of_host(name: str, **changes: Any) -> Facts:
    """A host with two GPUs, like `OWN`, but for the `changes`."""
    disk = {"path": "runs", "type": "nfs4", "free_bytes": 100 * MODEL_BYTES, "is_writable": True}
    good = Facts(
        hostname=name,
        machine=f"machine {name}",
        python=OWN.python,
        python_path="python",
        code_dir=OWN.code_dir,
        code=dict(OWN.code),
        packages=dict(OWN.packages),
        num_cpus=64,
        free_memory_bytes=500 * GIBIBYTE,
        gpus=[A800, A800],
        gpu_fault=None,
        adapters=[{"name": "mlx5_0:1", "state": "ACTIVE", "rate": "200 Gb/sec"}],
        shm_bytes=16 * GIBIBYTE,
        save_dir=disk,  # type: ignore[arg-type]
        temporary_dir={"path": "t", "type": "ext4", "free_bytes": 10 * MODEL_BYTES, "is_writable": True},
        max_open_files=65536,
        max_locked_bytes=-1,
        interfaces={"lo": ["127.0.0.1"], "eth0": [f"10.0.0.1{name[1:]}"]},
        master_addresses=["10.0.0.10"],
        own_addresses=["127.0.1.1"],
        inputs={MODEL: SHARED, DATA: SHARED},
        earlier={},
    )
    return replace(good, **changes)


def good_survey(*names: str) -> Survey:
    """Hosts that have answered all that they were asked."""
    following = zip(names, [*names[1:], names[0]], strict=True)
    return Survey(
        hosts=list(names),
        arrival_seconds=dict.fromkeys(names, 0.5),
        clocks=dict.fromkeys(names, Clock(0.0, 0.001)),
        facts={name: facts_of_host(name) for name in names},
        interfaces=dict.fromkeys(names, "eth0"),
        addresses={name: f"10.0.0.1{name[1:]}" for name in names},
        marker={"path": "runs/.x", "content": "x"},
        sees_marker=dict.fromkeys(names, True),
        doors={name: {"latency_seconds": 1e-4, "bytes_per_second": 0.0} for name in names[1:]},
        lines={line: {"latency_seconds": 1e-4, "bytes_per_second": 1.25e9} for line in following},
        ranks=[
            {
                "host": name,
                "rank": rank,
                "backend": "nccl",
                "device": "0",
                "is_right": True,
                "seconds": 0.1,
                "num_bytes": 9,
            }
            for rank, name in enumerate(names)
        ],
    )


def said(findings: Iterable[Finding]) -> list[str]:
    """The findings as they are printed."""
    lines = [str(one) for one in findings]
    assert not any("\n" in line for line in lines)
    return lines
