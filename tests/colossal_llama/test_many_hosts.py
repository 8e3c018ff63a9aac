"""train.py over several hosts of a lab, by every launcher; what it computes is what it computes on one host."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.colossal_llama.runs import weights_of
from tests.conftest import argv_of, read_metrics
from tests.lab import LOGIN, Lab, lab_of, start_slurm

ROOT = Path(__file__).parent.parent.parent
TIMINGS = ("step_seconds", "tokens_per_second", "positions_per_second", "memory_bytes", "mfu")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two hosts and their hostfile."""
    with lab_of(tmp_path_factory.mktemp("hosts") / "lab", 2) as one:
        (one.directory / "hostfile").write_text("h0\nh1\n")
        yield one


def figures(save_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without times."""
    return [{key: value for key, value in line.items() if key not in TIMINGS} for line in read_metrics(save_dir)]


def colossalai_run(lab: Lab, save_dir: Path, flags: dict[str, Any], *own: str) -> list[str]:
    """One process on each host."""
    words = ["colossalai", "run", "--nproc_per_node", "1", "--hostfile", str(lab.directory / "hostfile"), *own]
    return [*words, str(ROOT / "train.py"), *argv_of(save_dir=save_dir, **flags)]


def test_two_hosts_train_as_two_processes_of_one(
    lab: Lab, zero2_run: Path, zero2_flags: dict[str, Any], tmp_path: Path
) -> None:
    done = lab.run(LOGIN, *colossalai_run(lab, tmp_path / "run", zero2_flags))
    assert done.returncode == 0, done.stdout + done.stderr
    assert figures(tmp_path / "run") == figures(zero2_run)
    ours, theirs = weights_of(tmp_path / "run" / "modeling"), weights_of(zero2_run / "modeling")
    assert all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.parametrize("rendezvous", ["static", "c10d"])
def test_torchrun_on_every_host(
    rendezvous: str, lab: Lab, zero2_run: Path, zero2_flags: dict[str, Any], tmp_path: Path
) -> None:
    meet = {
        "static": ["--master_addr", "h0", "--master_port", "29501"],
        "c10d": ["--rdzv_backend", "c10d", "--rdzv_endpoint", "h0:29401", "--rdzv_id", "run"],
    }[rendezvous]
    own = ["torchrun", "--nnodes", "2", "--nproc_per_node", "1", *meet]
    flags = argv_of(save_dir=tmp_path / "run", **zero2_flags)
    processes = [
        lab.popen(host, *own, "--node_rank", str(index), str(ROOT / "train.py"), *flags)
        for index, host in enumerate(lab.hosts)
    ]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert figures(tmp_path / "run") == figures(zero2_run)


def demo_in(directory: Path, model: Path, bins: Path) -> None:
    """What `make demo` leaves below a directory, for the examples."""
    shutil.copytree(model, directory / "runs" / "demo" / "init_model")
    shutil.copytree(bins, directory / "runs" / "demo" / "bins")


def test_the_sbatch_example_runs_as_shipped(
    lab: Lab, tiny_model_dir: Path, tiny_bins_dir: Path, tmp_path: Path
) -> None:
    demo_in(tmp_path, tiny_model_dir, tiny_bins_dir)
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    environment = start_slurm(lab)
    lab.run("h0", "sbatch", str(ROOT / "examples" / "slurm" / "train.sbatch"), cwd=tmp_path, environment=environment)
    while lab.run("h0", "squeue", "--noheader", environment=environment).stdout:
        time.sleep(0.5)
    log = "".join(path.read_text() for path in tmp_path.glob("slurm-*.log"))
    assert "zero2, 2 process(es)" in log
    assert (tmp_path / "runs" / "slurm" / "modeling" / "config.json").is_file(), log
