"""Each host spoilt in one way, and the line that says so."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from colossal_llama.hosts.host_findings import Wanted, host_findings, nccl_finds
from tests.colossal_llama.hosts.made_facts import A800, GIBIBYTE, MODEL_BYTES, OWN, facts_of_host, said, wanted


def findings_of(asked: Wanted | None = None, **changes: Any) -> list[str]:
    """Of three hosts, of which h1 is another than the rest."""
    facts = {name: facts_of_host(name) for name in ("h0", "h1", "h2")}
    facts["h1"] = facts_of_host("h1", **changes)
    return said(host_findings(facts, OWN, asked or wanted()))


def test_of_good_hosts_nothing_is_said() -> None:
    assert findings_of() == []


FULL = {"path": "runs", "type": "nfs4", "free_bytes": MODEL_BYTES - 1, "is_writable": True}
BUSY = {**A800, "free_bytes": 5 * GIBIBYTE}
SMALL = {**A800, "memory_bytes": 40 * GIBIBYTE, "free_bytes": 40 * GIBIBYTE}
NO_PORT = [{"name": "mlx5_0:1", "state": "DOWN", "rate": ""}]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"python": "3.10.2"}, "fault: h1: Python 3.10.2, here it is 3.11.7; "),
        (
            {"code_dir": "other"},
            "fault: h1: its colossal_llama is that of other, and the launcher starts code/train.py; ",
        ),
        ({"code": {"train.py": "xx"}}, "fault: h1: other code than here in colossal_llama/loss.py, train.py; "),
        (
            {"packages": {"torch": "2.5.1+cu118", "ruff": "0.1"}},
            "fault: h1: other packages: torch 2.5.1+cu118 (here 2.5.1+cu124); ",
        ),
        ({"packages": {"torch": "2.5.1+cu124"}}, "warning: h1: other packages: ruff none (here 0.1); "),
        ({"earlier": {"17": "python train.py"}}, "warning: h1: process 17 of an earlier start still trains into runs "),
        ({"free_memory_bytes": 5 * 10**8}, "warning: h1: 0.5 GB of memory free, the model alone has 1.0 GB; "),
        ({"shm_bytes": 64 * 2**20}, "warning: h1: /dev/shm has 67.1 MB, NCCL may need 1 GiB "),
        ({"max_open_files": 100}, "warning: h1: at most 100 open files a process, 4 ranks may need 272; "),
        ({"max_locked_bytes": 2**16}, "warning: h1: at most 0.1 MB of locked memory, RDMA locks its buffers; "),
        ({"save_dir": FULL}, "fault: h1: --save_dir runs: 1.0 GB free, the model alone has 1.0 GB; "),
        (
            {"save_dir": {**FULL, "free_bytes": 2 * MODEL_BYTES}},
            "warning: h1: --save_dir runs: 2.0 GB free, a checkpoint with its optimizer may take 7.0 GB; ",
        ),
        (
            {"save_dir": {**FULL, "free_bytes": 10**12, "is_writable": False}},
            "fault: h1: --save_dir runs: runs cannot be written; ",
        ),
        ({"temporary_dir": {**FULL, "path": "t"}}, "warning: h1: 1.0 GB free in t for temporary files, 1 GB may be "),
        ({"gpu_fault": "no driver", "gpus": []}, "fault: h1: its GPU driver does not answer: no driver; "),
        ({"gpus": []}, "fault: h1: no GPU, others have some: "),
        ({"gpus": [A800]}, "fault: h1: 1 GPUs for --nproc_per_node 2; "),
        ({"gpus": [SMALL, SMALL]}, "warning: h1: 2 x NVIDIA A800 40 GiB, most hosts have 2 x NVIDIA A800 80 GiB; "),
        ({"gpus": [A800, BUSY]}, "warning: h1: GPU 1: 5.4 GB of 85.9 GB free; "),
        ({"adapters": NO_PORT}, "warning: h1: mlx5_0:1 DOWN, on most hosts it is ACTIVE; "),
        ({"adapters": []}, "warning: h1: mlx5_0:1 is not there, on most hosts it is ACTIVE; "),
        ({"machine": "machine h0"}, "fault: h1: is the same machine as h0; "),
    ],
)
def test_what_is_wrong_with_one_host_is_one_line(changes: dict[str, Any], line: str) -> None:
    (found,) = findings_of(**changes)
    assert found.startswith(line), found
    assert len(found) > len(line), "no cure"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"GLOO_SOCKET_IFNAME": "eth9"}, "GLOO_SOCKET_IFNAME=eth9: no such interface; it has eth0, lo"),
        ({"NCCL_SOCKET_IFNAME": "ib"}, "NCCL_SOCKET_IFNAME=ib: no such device; it has eth0, lo"),
        ({"NCCL_IB_HCA": "mlx4"}, "NCCL_IB_HCA=mlx4: no such device; it has mlx5_0"),
        ({"CUDA_VISIBLE_DEVICES": "0"}, "1 GPUs for --nproc_per_node 2, with CUDA_VISIBLE_DEVICES=0; "),
        ({"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "eth", "NCCL_IB_HCA": "=mlx5_0:1"}, None),
    ],
)
def test_what_the_environment_names_has_to_be_there(environment: dict[str, str], words: str | None) -> None:
    lines = findings_of(wanted(**environment))
    assert len(lines) == (0 if words is None else 3)
    assert words is None or words in lines[0]


@pytest.mark.parametrize(
    ("value", "known", "is_found"),
    [
        ("eth", ["lo", "eth0"], True),
        ("=eth", ["lo", "eth0"], False),
        ("=eth0", ["lo", "eth0"], True),
        ("^lo,docker", ["lo", "eth0"], True),
        ("^lo,eth", ["lo", "eth0"], False),
        ("^=eth", ["eth0"], True),
        ("mlx5_1:1,mlx5_2:1", ["mlx5_2"], True),
        ("mlx5", [], False),
    ],
)
def test_variables_are_read_as_nccl_reads_them(value: str, known: list[str], is_found: bool) -> None:
    assert nccl_finds(value, known) == is_found


def test_hosts_without_gpus_are_held_to_their_cpus() -> None:
    facts = {name: facts_of_host(name, gpus=[], num_cpus=2, adapters=[], shm_bytes=0) for name in ("h0", "h1")}
    assert said(host_findings(facts, OWN, wanted(num_ranks=2))) == []
    lines = said(host_findings(facts, OWN, wanted(num_ranks=4)))
    assert lines == [
        f"warning: h{i}: 2 CPUs for --nproc_per_node 4; it will be slow; start fewer ranks" for i in (0, 1)
    ]


def test_what_a_host_has_more_than_this_machine_differs_too() -> None:
    facts = {"h0": facts_of_host("h0", code={**OWN.code, "new.py": "x"})}
    assert said(host_findings(facts, OWN, wanted()))[0].startswith("fault: h0: other code than here in new.py; ")
    own = replace(OWN, packages={**OWN.packages, "peft": "1"}, needed=frozenset({"torch", "peft"}))
    assert (
        "fault: h0: other packages: peft none (here 1)"
        in said(host_findings({"h0": facts_of_host("h0")}, own, wanted()))[0]
    )
