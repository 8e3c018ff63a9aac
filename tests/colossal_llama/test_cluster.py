"""The ranks: launched by whom it may be, raising together."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from colossal_llama.cluster import all_reduce_sum, launch, on_main, together
from tests.colossal_llama.runs import free_ports
from tokenizer_tools.command import UserError

Ranks = Callable[..., list[Any]]


def raised(action: Callable[[], Any]) -> str:
    """What `action` gives, or raises."""
    try:
        return f"{action()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def what_each_rank_hears() -> dict[str, str]:
    """Every way in which one rank of three can fail, and what comes of it on this rank."""

    def fail_on(rank: int, error: Exception) -> Callable[[], int]:
        def action() -> int:
            if dist.get_rank() == rank:
                raise error
            return 10 * dist.get_rank()

        return action

    with launch(0) as cluster:
        assert (cluster.rank, cluster.world_size) == (dist.get_rank(), 3)
        assert cluster.is_main == (dist.get_rank() == 0)
        return {
            "well": raised(lambda: together(lambda: 10 * dist.get_rank())),
            "user": raised(lambda: together(fail_on(1, UserError("no such bin")))),
            "disk": raised(lambda: together(fail_on(2, FileNotFoundError(2, "gone", "x.arrow")))),
            "ours": raised(lambda: together(fail_on(1, KeyError("k")))),
            "main": raised(lambda: on_main(lambda: f"from {dist.get_rank()}")),
            "main fails": raised(lambda: on_main(fail_on(0, UserError("no checkpoint")))),
            "main breaks": raised(lambda: on_main(fail_on(0, ZeroDivisionError("oh")))),
            "sum": raised(lambda: all_reduce_sum(torch.tensor(cluster.rank + 1.0)).item()),
        }


def test_all_ranks_raise_together(ranks: Ranks) -> None:
    heard = ranks(what_each_rank_hears, 3)
    assert [rank["well"] for rank in heard] == ["0", "10", "20"]
    assert {rank["user"] for rank in heard} == {"UserError: no such bin"}
    assert {rank["disk"].partition(":")[0] for rank in heard} == {"UserError"}
    assert all("x.arrow" in rank["disk"] for rank in heard)
    assert [rank["ours"] for rank in heard] == [
        "RuntimeError: rank 1 failed: 'k'",
        "KeyError: 'k'",
        "RuntimeError: rank 1 failed: 'k'",
    ]
    assert {rank["main"] for rank in heard} == {"from 0"}
    assert {rank["main fails"] for rank in heard} == {"UserError: no checkpoint"}
    assert [rank["main breaks"].partition(":")[0] for rank in heard] == ["ZeroDivisionError", *["RuntimeError"] * 2]
    assert {rank["sum"] for rank in heard} == {"6.0"}


def what_two_hosts_hear(directory: Path) -> tuple[str, str, str, str]:
    """A user's fault on one host and on both; a broken disk behind one; what is noted down of it."""
    note = directory / f"{os.environ['RANK']}.json"
    os.environ.update(LOCAL_WORLD_SIZE="1", TORCHELASTIC_ERROR_FILE=str(note))

    def fail(ranks: Sequence[int], error: Exception, cause: Exception | None = None) -> str:
        def action() -> None:
            if dist.get_rank() in ranks:
                raise error from cause

        return raised(lambda: together(action)).replace(socket.gethostname(), "THIS")

    with launch(0):
        one, both = fail([1], UserError("no such bin")), fail([0, 1], UserError("no such bin"))
        assert not note.exists()
        full = UserError("/data: no space left on this disk")
        disk = fail([1], full, OSError(errno.ENOSPC, "No space left on device", "/data/x"))
    return one, both, disk, note.read_text() if note.exists() else ""


def test_on_several_hosts_the_one_at_fault_is_named_and_its_broken_disk_noted_down(
    ranks: Ranks, tmp_path: Path
) -> None:
    for rank, (one, both, disk, note) in enumerate(ranks(what_two_hosts_hear, 2, tmp_path)):
        assert one == "UserError: THIS (rank 1): no such bin"
        assert both == "UserError: no such bin"
        assert disk == "UserError: THIS (rank 1): /data: no space left on this disk"
        assert note == "" if rank == 0 else "OSError: [Errno 28] No space left on device: '/data/x'" in note


def launched_by_srun(port: int, master_addr: str | None) -> tuple[str, str]:
    """Join under Slurm's variables instead of torchrun's."""
    rank = os.environ["RANK"]
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    os.environ.update(SLURM_STEP_NUM_TASKS="2", SLURM_PROCID=rank, SLURM_LOCALID=rank, MASTER_PORT=str(port))
    if master_addr is not None:
        os.environ["MASTER_ADDR"] = master_addr

    def join() -> str:
        with launch(0) as cluster:
            return f"{cluster.rank} of {cluster.world_size}"

    return rank, raised(join)


def test_srun_needs_no_torchrun(ranks: Ranks) -> None:
    (port,) = free_ports(1)
    assert ranks(launched_by_srun, 2, port, "127.0.0.1") == [("0", "0 of 2"), ("1", "1 of 2")]
    for _, message in ranks(launched_by_srun, 2, port, None):
        assert message.startswith("UserError: MASTER_ADDR is not set")


def alone() -> tuple[int, int, str]:
    """Join with no launcher at all."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_STEP_NUM_TASKS"):
        os.environ.pop(name, None)
    with launch(0) as cluster:
        result = cluster.rank, cluster.world_size, dist.get_backend()
    with pytest.raises(ValueError, match="process group"):
        dist.get_rank()
    return result


def test_one_process_needs_no_launcher(ranks: Ranks) -> None:
    assert ranks(alone, 1) == [(0, 1, "gloo")]


ONE_RANK_FAILS = """
import sys
from dataclasses import dataclass
import torch
import torch.distributed as dist
from colossal_llama.cluster import launch
from tokenizer_tools.command import command

@dataclass
class NoConfig:
    pass

@command(NoConfig)
def main(config):
    with launch(0) as cluster:
        for step in range(3):
            if (cluster.rank, step) == (1, 2):
                raise OSError(5, "Input/output error", "part-00003")
            dist.all_reduce(torch.ones(1))

sys.exit(main())
"""


def test_an_error_of_one_rank_reaches_the_terminal_and_ends_the_others(tmp_path: Path) -> None:
    script = tmp_path / "steps.py"
    script.write_text(ONE_RANK_FAILS)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(torchrun, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    heard, report = done.stderr.split("steps.py FAILED")
    assert "rank 1: [Errno 5] Input/output error: 'part-00003'" in heard.splitlines()
    assert "OSError: [Errno 5] Input/output error: 'part-00003'" in report  # the traceback, not <N/A>
