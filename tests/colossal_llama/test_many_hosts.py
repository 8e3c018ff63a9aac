"""train.py over several hosts of a lab, by every launcher; what it computes is what it computes on one host."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.colossal_llama.parity import CONFIGURATIONS, Case, Configuration
from tests.colossal_llama.runs import weights_of
from tests.colossal_llama.soak_tables import record_row
from tests.conftest import argv_of, read_metrics
from tests.lab import LOGIN, Lab, lab_of, start_slurm

ROOT = Path(__file__).parent.parent.parent
TIMINGS = ("step_seconds", "tokens_per_second", "positions_per_second", "memory_bytes", "mfu")


STEPS = 6
DOCUMENT = ROOT / "docs" / "many_hosts.md"


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


CASES = [(one, precision) for one in CONFIGURATIONS for precision in one.precisions]


def compare_with_one_host(
    case: Case, train: Callable[..., list[dict[str, Any]]], model_dir: Path, bins_dir: Path, directory: Path
) -> list[dict[str, Any]]:
    """Train on as many hosts as the case has processes, and as processes of one host; the steps, if both are alike."""
    flags = {**case.flags(STEPS), "pretrained": model_dir, "dataset": bins_dir}
    world_size = case.configuration.world_size
    train(world_size, directory / "one", **flags)
    with lab_of(directory / "lab", world_size) as lab:
        (lab.directory / "hostfile").write_text("\n".join(lab.hosts) + "\n")
        done = lab.run(LOGIN, *colossalai_run(lab, directory / "many", flags))
    assert done.returncode == 0, done.stdout + done.stderr
    found, expected = figures(directory / "many"), figures(directory / "one")
    assert found == expected
    ours, theirs = (weights_of(directory / name / "modeling") for name in ("many", "one"))
    assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in theirs)
    return found


def test_four_hosts_compute_what_one_does(
    train: Callable[..., list[dict[str, Any]]], tiny_model_dir: Path, tiny_bins_dir: Path, tmp_path: Path
) -> None:
    [configuration] = [one for one in CONFIGURATIONS if one.name == "3d tp=2 pp=2"]
    compare_with_one_host(Case(configuration, "fp32", "accumulated"), train, tiny_model_dir, tiny_bins_dir, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize(
    ("configuration", "precision"),
    [pytest.param(one, precision, id=f"{one.name} {precision}") for one, precision in CASES],
)
def test_soak(
    configuration: Configuration,
    precision: str,
    train: Callable[..., list[dict[str, Any]]],
    tiny_model_dir: Path,
    tiny_bins_dir: Path,
    tmp_path: Path,
) -> None:
    """Every plugin of the parity table, into docs/many_hosts.md."""
    case = Case(configuration, precision, "accumulated")
    steps = compare_with_one_host(case, train, tiny_model_dir, tiny_bins_dir, tmp_path)
    losses = f"{steps[0]['loss']:.6f} | {steps[-1]['loss']:.6f}"
    keys = [f"{one.name} | {name}" for one, name in CASES]
    cells = f"{configuration.world_size} | {losses} | the same bits"
    record_row(DOCUMENT, HEAD, keys, f"{configuration.name} | {precision}", cells)


def test_ctrl_c_on_the_launcher_saves_and_the_same_command_goes_on(
    lab: Lab, zero2_run: Path, zero2_flags: dict[str, Any], tmp_path: Path
) -> None:
    words = colossalai_run(lab, tmp_path / "run", {**zero2_flags, "save_interval": 1000, "log_interval": 1})
    log = tmp_path / "run" / "metrics.jsonl"
    lab.slow("h1", "8mbit")  # a step then takes a second
    process = lab.popen(LOGIN, *words)
    while not log.exists() or not log.read_text():
        assert process.poll() is None
        time.sleep(0.02)
    lab.send(process, signal.SIGINT)
    lab.speed_up("h1")
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stdout + stderr
    assert "stopped by SIGINT after step" in stderr
    assert len(list((tmp_path / "run").glob("epoch-*"))) == 1
    assert [lab.processes(host, "train.py") for host in lab.hosts] == [[], []]
    done = lab.run(LOGIN, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    names = ("step", "loss", "grad_norm", "row_chain", "lr", "num_tokens_seen")
    found, expected = read_metrics(tmp_path / "run"), read_metrics(zero2_run)
    assert [[step[name] for name in names] for step in found] == [[step[name] for name in names] for step in expected]


def test_torchrun_on_every_host(lab: Lab, zero2_run: Path, zero2_flags: dict[str, Any], tmp_path: Path) -> None:
    """They meet by c10d; test_watch.py has the static way, on hosts with Debian's names."""
    meet = ["--rdzv_backend", "c10d", "--rdzv_endpoint", "h0:29401", "--rdzv_id", "run"]
    words = ["torchrun", "--nnodes", "2", "--nproc_per_node", "1", *meet, str(ROOT / "train.py")]
    flags = argv_of(save_dir=tmp_path / "run", **zero2_flags)
    processes = [lab.popen(host, *words, *flags) for host in lab.hosts]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert figures(tmp_path / "run") == figures(zero2_run)


def demo_in(directory: Path, model: Path, bins: Path) -> None:
    """What `make demo` leaves below a directory, for the examples."""
    shutil.copytree(model, directory / "runs" / "demo" / "init_model")
    shutil.copytree(bins, directory / "runs" / "demo" / "bins")


def test_the_example_script_is_the_way_in(lab: Lab, tiny_model_dir: Path, tiny_bins_dir: Path, tmp_path: Path) -> None:
    """A copy of it with two hosts in place of this machine: looked at, trained in two phases, and finished."""
    demo_in(tmp_path, tiny_model_dir, tiny_bins_dir)
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    text = (ROOT / "train.example.sh").read_text()
    for shipped, own in (
        ("HOSTFILE=$HERE/hostfile.example ", f"HOSTFILE={lab.directory / 'hostfile'} "),
        ("NPROC_PER_NODE=2 ", "NPROC_PER_NODE=1 "),
        ("--save_interval 1000 ", "--max_steps 3 "),
    ):
        assert text.count(shipped) == 1
        text = text.replace(shipped, own)
    (tmp_path / "train.my_run.sh").write_text(text)

    done = lab.run(LOGIN, "bash", "train.my_run.sh", cwd=tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "ready: 2 hosts" in done.stdout
    assert done.stderr.count("zero2, 2 process(es)") == 2
    assert done.stdout.splitlines()[-1] == "the finished model: runs/example/full/modeling"
    assert (tmp_path / "runs" / "example" / "full" / "modeling" / "config.json").is_file()


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


HEAD = f"""# Many hosts, the same run

Written by `make soak` (tests/colossal_llama/test_many_hosts.py). Each configuration of [parity.md](parity.md) trains
{STEPS} steps with accumulated micro-batches, by `colossalai run` over as many hosts as it has processes (network
namespaces with an sshd, an address and a process table each), and again as processes of one host. The same bits: every
figure of metrics.jsonl but times, and the weights of the finished model.

| configuration | precision | hosts | first loss | last loss | against one host |
|---|---|---|---|---|---|
"""
