"""The pre-flight over the hosts of a lab: once with nothing wrong, then with one thing after another."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.hosts.software import CODE_DIR
from colossal_llama.preflight import main
from tests.lab import LOGIN, Lab, lab_of

PREFLIGHT = "colossal_llama.preflight"
PORT = 29500


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """h0 to h3, each of which takes its own name for 127.0.1.1, as Debian's installer writes it."""
    with lab_of(tmp_path_factory.mktemp("preflight") / "lab", 4, debian_names=True) as one:
        yield one


@pytest.fixture(scope="module")
def run(lab: Lab, tiny_model_dir: Path, tiny_bins_dir: Path) -> dict[str, Path]:
    """What a run would use, by its flags, all in one folder that all hosts share."""
    directory = lab.directory.parent
    shutil.copytree(tiny_model_dir, directory / "model")
    shutil.copytree(tiny_bins_dir, directory / "bins")
    (directory / "runs").mkdir()
    return {"pretrained": directory / "model", "dataset": directory / "bins", "save_dir": directory / "runs" / "first"}


@pytest.fixture
def preflight(lab: Lab, run: dict[str, Path]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`preflight("h0\\nh1", where, **how)`: of these hosts, from `where`. Nothing may be left on any host."""

    def check(hostfile: str, where: str = LOGIN, *words: str, **how: Any) -> subprocess.CompletedProcess[str]:
        how = {"cwd": lab.directory.parent, **how}
        done = lab.run(where, *words_of(lab, run, hostfile), *words, **how)
        for host in (*lab.hosts, LOGIN):
            wait_until(lambda host=host: not lab.processes(host, "colossal_llama"))
        assert not list(run["save_dir"].parent.iterdir()), "a marker was left behind"
        return done

    return check


def words_of(lab: Lab, run: dict[str, Path], hostfile: str) -> list[str]:
    path = lab.directory.parent / "hostfile"
    path.write_text(hostfile)
    flags = {"hostfile": path, "master_port": PORT, **run}
    return [
        sys.executable,
        "-m",
        PREFLIGHT,
        *(part for key, value in flags.items() for part in (f"--{key}", str(value))),
    ]


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.1)


@contextmanager
def in_place(lab: Lab, host: str, source: Path, target: Path) -> Iterator[None]:
    """On this host alone, `source` is seen at `target`."""
    lab.shell(host, f"mount --bind {source} {target}")
    try:
        yield
    finally:
        lab.shell(host, f"umount {target}")


def faults(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The fault lines; each has a cure behind a semicolon."""
    found = [line for line in done.stdout.splitlines() if line.startswith("fault: ")]
    assert all("; " in line for line in found)
    assert (done.returncode, bool(found)) in ((0, False), (2, True)), done.stdout + done.stderr
    assert bool(found) == ("error: not ready: " in done.stderr)
    return found


def test_good_hosts_are_ready(preflight: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = preflight("# two of them\nh0\n\nroot@h1:22\n")
    assert not faults(done), done.stdout
    assert done.returncode == 0
    assert done.stderr == ""
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["software", "the", "same", "as", "here"] in rows
    assert ["model", "and", "data", "shared"] in rows
    assert ["save_dir", "shared"] in rows
    assert ["interface", "eth0"] in rows
    assert {"h0", "h1"} <= {row[0] for row in rows}
    assert "all-reduce: gloo, 2 ranks of 2 hosts, " in done.stdout
    assert done.stdout.splitlines()[-1].startswith("ready: 2 hosts")


def test_from_a_host_of_the_run_as_one_document(preflight: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = preflight("h0\nh1", "h0", "--json")
    document = json.loads(done.stdout)
    assert document["ready"], document["findings"]
    assert [rank["is_right"] for rank in document["all_reduce"]] == [True, True]
    assert [(line["from"], line["to"]) for line in document["lines"]] == [("h0", "h1"), ("h1", "h0")]
    assert document["hosts"]["h1"]["address"] == "10.77.0.11"


def test_hosts_that_differ(
    lab: Lab, run: dict[str, Path], preflight: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """h1 has other data and code and a disk of its own; h2 an equal copy of the data; the port is taken."""
    shutil.copytree(run["dataset"], tmp_path / "other")
    (tmp_path / "other" / "part-00000" / "state.json").write_text("{}")
    shutil.copytree(run["dataset"], tmp_path / "copy")
    shutil.copytree(CODE_DIR / "colossal_llama", tmp_path / "code", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "code" / "loss.py").write_text("")
    (tmp_path / "empty").mkdir()
    with (
        in_place(lab, "h1", tmp_path / "other", run["dataset"]),
        in_place(lab, "h1", tmp_path / "code", CODE_DIR / "colossal_llama"),
        in_place(lab, "h1", tmp_path / "empty", run["save_dir"].parent),
        in_place(lab, "h2", tmp_path / "copy", run["dataset"]),
        listener(lab, "h0"),
    ):
        done = preflight("h0\nh1\nh2")
    code, data, disk, port = faults(done)
    assert code.startswith("fault: h1: other code than here in colossal_llama/loss.py; ")
    assert data.startswith(f"fault: h1: --dataset {run['dataset']}: not the files of h0: part-00000/state.json; ")
    assert disk.startswith(
        f"fault: h1: --save_dir {run['save_dir']}: a disk of its own, what h0 writes there is not seen"
    )
    assert port.startswith(f"fault: h0: --master_port {PORT}: Address already in use by process ")
    assert "equal copy" in next(line for line in done.stdout.splitlines() if line.startswith("h2 "))
    assert "all-reduce: not run" in done.stdout


@contextmanager
def listener(lab: Lab, host: str) -> Iterator[None]:
    """Another program has the run's port."""
    script = f"import socket, sys; s = socket.create_server(('', {PORT})); print(flush=True); sys.stdin.read()"
    other = lab.popen(host, sys.executable, "-c", script, stdin=subprocess.PIPE)
    assert other.stdout is not None
    other.stdout.readline()
    try:
        yield
    finally:
        other.communicate()


def test_hosts_that_cannot_be_entered(
    preflight: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """Each for its own reason, all at once; the address is in the lab's network, but nobody has it."""
    began = time.monotonic()
    done = preflight("h0\nnobody@h1\nh2:2222\nh9\n10.77.0.99\n")
    assert time.monotonic() - began < 30
    assert [line.partition("; ")[0] for line in faults(done)] == [
        "fault: h1: ssh does not get in without a password",
        "fault: h2: it is there, but nothing listens on its ssh port",
        "fault: h9: nobody here knows a machine of this name",
        "fault: 10.77.0.99: no answer to ssh within 10 s",
    ]


def test_hosts_without_what_is_started_there(
    lab: Lab, run: dict[str, Path], preflight: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """No Python at this path, no project, no such directory; and h0 under two names."""
    here = lab.directory.parent / "projects" / "mine"
    here.mkdir(parents=True)
    with (
        in_place(lab, "h1", tmp_path, Path(sys.executable).parent),
        in_place(lab, "h2", tmp_path, CODE_DIR / "colossal_llama"),
        in_place(lab, "h3", tmp_path, here.parent),
    ):
        done = preflight(f"h0\n{lab.address('h0')}\nh1\nh2\nh3\n", cwd=here)
    found = faults(done)
    assert [line.partition(": ")[2].partition(" ")[0] for line in found] == [
        "h1:",
        "h2:",
        "h3:",
        f"{lab.address('h0')}:",
    ]
    assert f"no python at {sys.executable}; " in found[0]
    assert "its python has not this project (No module named " in found[1]
    assert f"{here}: No such file or directory; " in found[2]
    assert "is the same machine as h0; " in found[3]


def test_a_host_that_does_not_know_the_first_and_a_slow_line(
    lab: Lab, preflight: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    names = lab.directory / "hosts.h2"
    before = names.read_text()
    names.write_text("127.0.0.1 localhost\n")  # it is bound to this host's /etc/hosts
    lab.slow("h1", "4mbit")
    try:
        done = preflight("h0\nh1\nh2\n")
    finally:
        names.write_text(before)
        lab.slow("h1", "10gbit")
    unknown, slow = faults(done)
    assert unknown.startswith("fault: h2: does not know the name of the first host, h0; ")
    assert slow.startswith("fault: h0 -> h1: ")
    assert " Mbit/s, less than " in slow


def test_nothing_is_left_by_a_preflight_that_is_killed(lab: Lab, run: dict[str, Path]) -> None:
    """In the middle of the all-reduce: ranks, guests and the marker go with it."""
    process = lab.popen(LOGIN, *words_of(lab, run, "h0\nh1\n"), cwd=lab.directory.parent)
    wait_until(lambda: bool(lab.processes("h1", "all_reduce")), 30)
    assert list(run["save_dir"].parent.iterdir())
    number = lab.shell(LOGIN, f"pgrep -f {PREFLIGHT} | grep -v $$ | head -1").strip()
    lab.shell(LOGIN, f"kill -9 {number}")
    process.communicate()
    for host in ("h0", "h1"):
        wait_until(lambda host=host: not lab.processes(host, "colossal_llama"))
    assert not list(run["save_dir"].parent.iterdir())


def test_this_machine_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As train.example.sh calls it: a hostfile with `localhost`; no sshd is needed."""
    (tmp_path / "hostfile").write_text("localhost\n")
    flags = ["--hostfile", str(tmp_path / "hostfile"), "--save_dir", str(tmp_path), "--nproc_per_node", "2"]
    assert main([*flags, "--master_port", "29517"]) == 0
    assert "ready: 1 host" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--hostfile", "a", "--host", "b"], "--host and --hostfile: both name hosts"),
        (["--hostfile", "none"], "--hostfile none: No such file or directory"),
        (["--host", "a,a"], "--host: a is named again"),
        (["--nproc_per_node", "0"], "--nproc_per_node 0: "),
        (["--master_port", "70000"], "--master_port 70000: "),
    ],
)
def test_wrong_flags_are_refused_before_anybody_is_asked(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags) == 2
    assert f"error: {words}" in capsys.readouterr().err
