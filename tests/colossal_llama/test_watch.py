"""Ranks that are lost, stopped or stuck are named by the others, which end soon; those that only look so are let be."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from colossal_llama import watch
from colossal_llama.cluster import launch
from colossal_llama.hosts.board import GOES_ON, Limits
from colossal_llama.watch import AGREEING, COMPUTING, READING, watched
from tests.colossal_llama.killing import Launcher, latest_step, until
from tests.conftest import argv_of, read_metrics
from tests.lab import Lab, lab_of

Ranks = Callable[..., list[Any]]
Act = Callable[[int, watch.Pulse], None]
KILLED = -9
NOT_HEARD_OF = f" not been heard of for N s: the host, its network or the process has stopped; {GOES_ON}"


def join(act: Act, directory: Path, limits: Limits) -> float:
    """One of two ranks, that says what it has to say in a file of its own; how many seconds it took to say goodbye."""
    said = os.open(directory / f"said.{os.environ['RANK']}", os.O_WRONLY | os.O_CREAT)
    os.dup2(said, 2)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    with launch(0) as cluster:
        with watched(cluster, limits) as pulse:
            (directory / f"began.{cluster.rank}").touch()
            act(cluster.rank, pulse)
            done = time.monotonic()
        return time.monotonic() - done


def said_by(directory: Path) -> list[str]:
    """Of each rank."""
    return [(directory / f"said.{rank}").read_text() for rank in range(2)]


def ended_by_the_watch(ranks: Ranks, act: Act, directory: Path, limits: Limits) -> float:
    """Run two ranks until rank 0 is gone without a word to us; how many seconds that took from its start on."""
    with pytest.raises(EOFError):
        ranks(join, 2, act, directory, limits)
    return time.time() - (directory / "began.0").stat().st_mtime


def hang_in_a_reader(rank: int, pulse: watch.Pulse) -> None:
    """The first step may take its time; in the second one rank 1 never gets its rows."""
    for step in range(2):
        pulse.at(READING)
        if rank == 1:
            time.sleep(60 if step else 3)
        pulse.at(COMPUTING)
        dist.all_reduce(torch.ones(1))
        pulse.at(AGREEING, step + 1)


def test_a_rank_that_hangs_is_named_with_what_it_was_doing(ranks: Ranks, tmp_path: Path) -> None:
    seconds = ended_by_the_watch(ranks, hang_in_a_reader, tmp_path, Limits(lost_seconds=3, stall_seconds=2))
    assert seconds < 13
    for rank, said in enumerate(said_by(tmp_path)):
        (line,) = [line for line in said.splitlines() if line.startswith(f"rank {rank}: no step has ended for 2 s: ")]
        assert line.endswith(f" is reading rows after step 1, the others are further on; {GOES_ON}")
        assert "2 s: rank 1 on " in line


def end_alone(rank: int, _: watch.Pulse) -> None:
    """No connection tells of it: nobody is talking."""
    if rank == 1:
        os._exit(3)
    time.sleep(60)


def test_a_rank_that_ends_is_missed_though_nobody_talks_to_it(ranks: Ranks, tmp_path: Path) -> None:
    assert ended_by_the_watch(ranks, end_alone, tmp_path, Limits(lost_seconds=30, stall_seconds=600)) < 15
    assert f"ended before the run did; what ended it is said where it ran; {GOES_ON}" in said_by(tmp_path)[0]


def look_dead(rank: int, _: watch.Pulse) -> None:
    """Rank 1 holds Python's lock for longer than a rank may be silent, and outlives rank 0, which keeps the board."""
    if rank == 1:
        ctypes.PyDLL(None).sleep(3)
    dist.barrier()


def outlive(rank: int, _: watch.Pulse) -> None:
    """One of them leaves much later."""
    if rank == 1:
        time.sleep(3)


@pytest.mark.parametrize("act", [look_dead, outlive])
def test_a_busy_rank_and_one_that_has_left_are_not_lost(act: Act, ranks: Ranks, tmp_path: Path) -> None:
    seconds = ranks(join, 2, act, tmp_path, Limits(lost_seconds=1.5, stall_seconds=600))
    assert max(seconds) < watch.GOODBYE_SECONDS / 2, "nobody heard the goodbye"
    assert GOES_ON not in "".join(said_by(tmp_path))


def without_a_helper(directory: Path) -> None:
    """Rank 1's does not come up."""
    if os.environ["RANK"] == "1":
        watch._helper = lambda: subprocess.Popen(["true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    join(lambda *_: None, directory, Limits(lost_seconds=30, stall_seconds=600))


def test_without_all_helpers_there_is_a_warning_and_no_watch(ranks: Ranks, tmp_path: Path) -> None:
    ranks(without_a_helper, 2, tmp_path)
    assert "the ranks cannot watch each other" in said_by(tmp_path)[0]
    assert "no helper process" in said_by(tmp_path)[0]


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_rank_that_is_stopped_ends_the_run_and_does_not_outlive_it(
    stopped: int, launcher: Launcher, flags: dict[str, Any], tmp_path: Path
) -> None:
    save_dir = tmp_path / "run"
    long_flags = {**flags, "max_steps": 10**4, "num_epochs": 10**4, "save_interval": 1, "keep_checkpoints": 2}
    job = launcher.start(2, save_dir, **long_flags, lost_after="3s")

    def has_come_to(step: int) -> Callable[[], bool]:
        return lambda: latest_step(save_dir) >= step

    for _ in until(has_come_to(2), 60):
        pass
    os.kill(job._pids[stopped], signal.SIGSTOP)
    time.sleep(1)
    os.kill(job._pids[stopped], signal.SIGCONT)  # not for long enough
    for _ in until(has_come_to(latest_step(save_dir) + 3), 60):
        pass
    os.kill(job._pids[stopped], signal.SIGSTOP)
    begin = time.monotonic()
    codes = job.wait()
    assert time.monotonic() - begin < 10
    assert codes[stopped] == KILLED and codes[1 - stopped] == 1, job.said
    lines = [line for line in job.said.splitlines() if "has been stopped (SIGSTOP) for" in line]
    assert sorted(line[:7] for line in lines) == ["rank 0:", "rank 1:"]
    assert all(f": rank {stopped} on " in line and line.endswith(GOES_ON) for line in lines), lines


# --- on several hosts -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """h0 and h1, each of which takes its own name for 127.0.1.1."""
    with lab_of(tmp_path_factory.mktemp("lab") / "lab", 2, debian_names=True) as lab:
        yield lab


class Run:
    """A long run of train.py with one rank on each host."""

    def __init__(self, lab: Lab, flags: dict[str, Any], save_dir: Path, **more: Any) -> None:
        self._save_dir = save_dir
        words = ["train.py", *argv_of(save_dir=save_dir, **{**flags, "max_steps": 10**4, "num_epochs": 10**4, **more})]
        torchrun = ["python", "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
        torchrun += ["--master_addr", "h0", "--master_port", "29500"]
        self._logs = [save_dir.with_name(f"{name}.log") for name in lab.hosts]
        self._processes = [
            lab.popen(name, *torchrun, "--node_rank", str(number), *words, stdout=log.open("w"), stderr=log.open("a"))
            for number, (name, log) in enumerate(zip(lab.hosts, self._logs, strict=True))
        ]

    def train_on(self, steps: int) -> None:
        """Wait for so many steps more."""
        goal = self._steps() + steps
        for _ in until(lambda: self._steps() >= goal, 60):
            assert all(process.poll() is None for process in self._processes), self.said

    def codes(self) -> list[int]:
        """Of both launchers, which end within 30 seconds."""
        return [process.wait(30) for process in self._processes]

    def lines(self, text: str) -> list[str]:
        """Of the ranks on h0 and on h1 the one line with such a text."""
        return [line for log in self._logs for line in log.read_text().splitlines() if text in line]

    @property
    def said(self) -> str:
        """All of it."""
        return "\n".join(log.read_text()[-5000:] for log in self._logs)

    def _steps(self) -> int:
        return len(read_metrics(self._save_dir)) if (self._save_dir / "metrics.jsonl").is_file() else 0


def test_a_short_cut_of_the_network_is_outlived_and_a_long_one_is_said_on_both_sides(
    lab: Lab, flags: dict[str, Any], tmp_path: Path
) -> None:
    run = Run(lab, flags, tmp_path / "run", lost_after="4s")
    run.train_on(3)
    lab.cut("h1")
    time.sleep(1.5)
    lab.mend("h1")
    run.train_on(3)
    lab.cut("h1")
    try:
        assert run.codes() == [1, 1]
    finally:
        lab.mend("h1")
    lost = run.lines(" not been heard of for ")
    assert [re.sub(r"for [4-9] s", "for N s", line) for line in lost] == [
        f"rank 0: rank 1 on h1 has{NOT_HEARD_OF}",
        f"rank 1: rank 0 on h0, which keeps the ranks together, has{NOT_HEARD_OF}",
    ], run.said
    assert [lab.processes(name, "train.py") for name in lab.hosts] == [[], []]


def test_a_network_that_crawls_is_named(lab: Lab, flags: dict[str, Any], tmp_path: Path) -> None:
    run = Run(lab, flags, tmp_path / "run", lost_after="10s", stall_limit="5s")
    run.train_on(3)
    lab.slow("h1", "64kbit")
    try:
        assert run.codes() == [1, 1]
    finally:
        lab.slow("h1", "10gbit")
    lines = run.lines(": no step has ended for ")
    assert len(lines) == 2, run.said
    assert all("; the network is slow: 16 kB to h0 and back take " in line and " s from h1; " in line for line in lines)


WRITES_TOGETHER = """
import os, sys
from pathlib import Path
from colossal_llama import shared_dir
from colossal_llama.cluster import launch
shared_dir.PATIENCE_SECONDS = 1.0
with launch(0):
    for save_dir in map(Path, sys.argv[1:]):
        try:
            print(shared_dir.refuse_separate_disks(save_dir), flush=True)
        except ValueError as error:
            print(error, flush=True)
"""


def test_a_save_dir_on_disks_of_their_own_is_refused(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    lab.own_disk("h1", tmp_path / "own")
    save_dirs = [tmp_path / "shared" / "not" / "yet", tmp_path / "own" / "run"]
    processes = [
        lab.popen(
            name,
            *("python", "-c", WRITES_TOGETHER, *map(str, save_dirs)),
            environment={"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
            | {"MASTER_ADDR": "h0", "MASTER_PORT": "29501"},
        )
        for rank, name in enumerate(lab.hosts)
    ]
    for process in processes:
        said, more = process.communicate(timeout=60)
        assert said.splitlines() == [
            "None",
            f"--save_dir {save_dirs[1]}: what h0 writes there is not to be seen from h1; the hosts write a checkpoint "
            f"together: name a directory on a file system that all of them share, such as NFS",
        ], more
    assert not list(tmp_path.rglob("*.partial"))
