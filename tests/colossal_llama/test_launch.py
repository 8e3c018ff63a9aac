"""`colossalai run` as this project has it: flags, words, environment; jobs over the hosts of a lab."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from colossal_llama.hosts.hostfile import Host
from colossal_llama.launch import LaunchConfig, chosen_hosts, environment_of, split
from tests.colossal_llama.runs import free_ports
from tests.lab import LOGIN, Lab, lab_of
from tokenizer_tools.command import UserError

SCRIPT = """
import json, os, signal, sys, time
rank, what = int(os.environ["RANK"]), sys.argv[1]
def say(**words):
    print(json.dumps({"rank": rank, **words}), flush=True)
say(argv=sys.argv[1:], host=os.uname().nodename, pid=os.getpid(), note=os.environ.get("NOTE"), cwd=os.getcwd(),
    home=os.environ["HOME"],
    **{name: os.environ[name] for name in ("LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")})
def stop(number, frame):
    open(os.environ["HEARD"], "a").write(f"{rank}\\n")
    say(signal=number)
    sys.exit(75)
if what == "wait":
    signal.signal(signal.SIGTERM, stop)
if what == "deaf":
    signal.signal(signal.SIGTERM, lambda *_: None)
if what == "fail" and rank == 1:
    print("error: the disk of rank 1 is on fire", "it was hot", sep="\\n", file=sys.stderr)
    sys.exit(1)
if what == "children":
    os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "1234")
if what in ("wait", "deaf", "fail", "children"):
    for _ in range(300):
        time.sleep(1)
"""
ODD = ["a b", "", "$(touch evil)", ";touch evil", '{"lr": 1e-3}', "it's", "*", "你好\n--second line"]


def test_flags_are_those_before_the_script() -> None:
    words = ["--nproc_per_node", "2", "--hostfile=hosts.txt", "train.py", "--lr", "1", "--host", "x"]
    assert split(words) == (words[:3], words[3:])
    assert split(["--nproc_per_node", "1", "-m", "package.room", "-x"]) == (
        ["--nproc_per_node", "1"],
        ["-m", "package.room", "-x"],
    )
    assert split(["--help"]) == (["--help"], [])


def hosts_of(**flags: object) -> list[str]:
    """As the flags choose them."""
    return [str(host) for host in chosen_hosts(LaunchConfig(nproc_per_node=1, **flags))]  # type: ignore[arg-type]


def test_hosts_are_chosen_in_order() -> None:
    assert hosts_of() == ["localhost"]
    assert hosts_of(host="h0, h1,h2", include="h2,h0") == ["h0", "h2"]
    assert hosts_of(host="h0,h1,h2", exclude="h0") == ["h1", "h2"]
    assert hosts_of(host="h0,h1,h2", num_nodes=2) == ["h0", "h1"]
    config = LaunchConfig(nproc_per_node=1, host="me@h0:2022,h1", ssh_port=2200)
    assert chosen_hosts(config) == [Host("h0", "me", 2022), Host("h1", None, 2200)]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"host": "h0,h1", "include": "h9"}, "--include h9: h9 is none of the hosts; they are h0, h1"),
        ({"host": "h0", "exclude": "h0"}, "--exclude leaves no host"),
        ({"host": "h0,h1", "num_nodes": 3}, "--num_nodes 3: there are 2 hosts"),
        ({"host": "h0,h0"}, "h0 is named again"),
        ({"host": "localhost,h1"}, "localhost is another machine for each of the hosts"),
    ],
)
def test_hosts_that_cannot_be(flags: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words.replace(".", r"\.")):
        hosts_of(**flags)


def test_what_says_where_a_process_runs_stays_there() -> None:
    own = {"SSH_CONNECTION": "1", "PWD": "/x", "HOSTNAME": "login", "TORCHELASTIC_RUN_ID": "old"}
    assert environment_of({**own, "NCCL_DEBUG": "INFO", "HOME": "/h"}) == {"NCCL_DEBUG": "INFO", "HOME": "/h"}


def colossalai_run(words: Sequence[str]) -> tuple[int, str]:
    """`colossalai run` on this machine: (exit code, its error line)."""
    command = [str(Path(sys.executable).parent / "colossalai"), "run", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, "".join(line for line in done.stderr.splitlines() if line.startswith("error: "))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nproc_per_node", "1"], "error: no script: name train.py"),
        (["--nproc_per_node", "1", "gone.py"], "error: gone.py: no such file"),
        (["--nproc_per_node", "0", __file__], "error: --nproc_per_node 0: must be at least 1"),
        (["--nproc_per_node", "1", "--master_port", "0", __file__], "error: --master_port 0: must be a port"),
        (["--nproc_per_node", "1", "--hostfile", "gone", __file__], "error: --hostfile gone: No such file"),
        (["--nproc_per_node", "1", "--max_restarts", "-1", __file__], "error: --max_restarts -1: must be 0 or more"),
        (["--nproc_per_node", "1", "--host", "a", "--hostfile", "b", __file__], "error: --host and --hostfile"),
        (["--nproc_per_node", "1", "--extra_launch_args", "tee=3", __file__], "error: --extra_launch_args tee=3"),
        (["--nproc_per_nodes", "1", __file__], "error: "),
    ],
)
def test_faulty_flags_end_with_2_and_one_line(words: list[str], said: str) -> None:
    code, error = colossalai_run(words)
    assert code == 2
    assert error.startswith(said)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Two hosts, a hostfile and the script."""
    with lab_of(tmp_path_factory.mktemp("launch") / "lab", 2) as one:
        (one.directory / "hostfile").write_text("# two hosts\nh0\n\nh1  # the other\n")
        (one.directory / "script.py").write_text(SCRIPT)
        yield one


def run_words(lab: Lab, what: Sequence[str], *flags: str, ranks_per_host: int = 1) -> list[str]:
    """`colossalai run` of the script on both hosts."""
    own = ["colossalai", "run", "--nproc_per_node", str(ranks_per_host), "--hostfile", str(lab.directory / "hostfile")]
    return [*own, *flags, str(lab.directory / "script.py"), *what]


def said(stdout: str) -> list[dict[str, object]]:
    """What the ranks have printed, in the order of their ranks."""
    lines = [json.loads(line[line.index("{") :]) for line in stdout.splitlines() if "{" in line]
    return sorted(lines, key=lambda line: line["rank"])


@pytest.mark.parametrize("here", [LOGIN, "h0"], ids=["both over ssh", "one of them is this host"])
def test_words_and_environment_arrive_as_they_are(here: str, lab: Lab, tmp_path: Path) -> None:
    note = "a \"b\" $HOME $(touch evil) `touch evil`\nsecond line; 'x' \\ 你好"
    directory = tmp_path / "with blank and $dollar"
    directory.mkdir()
    words = run_words(lab, ["echo", *ODD], ranks_per_host=2)
    done = lab.run(here, *words, cwd=directory, environment={"NOTE": note, "A.B": "odd name"})
    assert done.returncode == 0, done.stderr
    heard = said(done.stdout)
    assert [line["argv"] for line in heard] == [["echo", *ODD]] * 4
    assert {line["note"] for line in heard} == {note}
    assert {line["home"] for line in heard} == {str(lab.directory / "home")}
    assert {line["cwd"] for line in heard} == {str(directory)}
    assert [(line["host"], line["LOCAL_RANK"]) for line in heard] == [
        ("h0", "0"),
        ("h0", "1"),
        ("h1", "0"),
        ("h1", "1"),
    ]
    assert {(line["WORLD_SIZE"], line["LOCAL_WORLD_SIZE"], line["MASTER_ADDR"]) for line in heard} == {("4", "2", "h0")}
    assert not list(directory.iterdir()), "a word was run as a command"
    assert note not in done.stderr and "odd name" not in done.stdout + done.stderr


def test_a_rank_that_fails_ends_the_job_everywhere_and_is_named(lab: Lab) -> None:
    done = lab.run(LOGIN, *run_words(lab, ["fail"]), environment={"SECRET_TOKEN": "s3cret"}, timeout_seconds=60)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "error: rank 1 on h1 failed first (exit code 1): the disk of rank 1 is on fire"
    assert "[h1 rank 1] error: the disk of rank 1 is on fire" in done.stderr.splitlines()
    assert "s3cret" not in done.stdout + done.stderr
    assert [lab.processes(host, "script.py") for host in lab.hosts] == [[], []]


def started(lab: Lab, what: str, *flags: str, directory: Path, host: str = LOGIN) -> subprocess.Popen[str]:
    """`colossalai run` once both ranks have spoken; its output goes to files in `directory`."""
    directory.mkdir(exist_ok=True)
    out, err = (directory / "out").open("w"), (directory / "err").open("w")
    environment = {"HEARD": str(directory / "heard")}
    process = lab.popen(host, *run_words(lab, [what], *flags), environment=environment, stdout=out, stderr=err)
    deadline = time.monotonic() + 30
    while (directory / "out").read_text().count("argv") < 2:
        assert process.poll() is None and time.monotonic() < deadline, (directory / "err").read_text()
        time.sleep(0.1)
    return process


def no_process_is_left(lab: Lab, seconds: float) -> bool:
    """Whether within so much time none of the script's processes is left on any host."""
    deadline = time.monotonic() + seconds
    while any(lab.processes(host, text) for host in lab.hosts for text in ("script.py", "sleep 1234")):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP], ids=lambda number: number.name)
def test_a_signal_reaches_every_rank(lab: Lab, tmp_path: Path, number: signal.Signals) -> None:
    what = "children" if number == signal.SIGINT else "wait"
    process = started(lab, what, directory=tmp_path)
    lab.send(process, number, to_group=True)
    code = process.wait(timeout=30)
    if what == "wait":
        assert code == 75
        assert [line["rank"] for line in said((tmp_path / "out").read_text()) if "signal" in line] == [0, 1]
    else:
        assert code == 130
        assert "error: interrupted by SIGINT; every process has ended" in (tmp_path / "err").read_text()
    assert no_process_is_left(lab, 0)


def alone(script: Path, *words: str) -> list[str]:
    """`colossalai run` of one process on this machine."""
    command = [str(Path(sys.executable).parent / "colossalai"), "run", "--nproc_per_node", "1"]
    return [*command, "--master_port", str(free_ports(1)[0]), str(script), *words]


@pytest.mark.parametrize(
    ("rank_code", "reader", "expected"),
    [(3, "2>&1 | sleep 2", 1), (3, "2> >(sleep 2) >/dev/null", 1), (0, ">/dev/full", 0), (0, "2>&1 | sleep 2", 0)],
)
def test_the_exit_code_is_the_jobs_whoever_reads_its_output(
    rank_code: int, reader: str, expected: int, tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, time\n"
        "for i in range(20):\n    time.sleep(0.2)\n    print('line', i, flush=True)\n    print(i, file=sys.stderr)\n"
        f"sys.exit({rank_code})\n"
    )
    line = f"{shlex.join(alone(script))} {reader}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, timeout=60, check=False)
    assert done.returncode == expected, done.stderr


def test_what_cannot_be_shown_ends_nothing(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys\nsys.stdout.buffer.write(b'\\xff' * 300_000 + '\U0001f600\\n'.encode())\n")
    environment = {**os.environ, "PYTHONIOENCODING": "gbk"}
    done = subprocess.run(alone(script), capture_output=True, env=environment, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.replace(b"\n", b"").endswith(b"?")


def test_nohup_means_what_it_says(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import time\nprint('up', flush=True)\ntime.sleep(3)\n")
    process = subprocess.Popen(["nohup", *alone(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=30) == 0


def test_a_second_signal_ends_the_deaf(lab: Lab, tmp_path: Path) -> None:
    process = started(lab, "deaf", directory=tmp_path)
    lab.send(process, signal.SIGTERM)
    time.sleep(1.5)
    assert process.poll() is None
    lab.send(process, signal.SIGTERM)
    assert process.wait(timeout=15) == 130
    assert no_process_is_left(lab, 0)


def test_a_launcher_that_is_killed_leaves_nobody_behind(lab: Lab, tmp_path: Path) -> None:
    process = started(lab, "wait", directory=tmp_path)
    lab.send(process, signal.SIGKILL)
    process.wait(timeout=10)
    assert no_process_is_left(lab, 20)
    assert sorted((tmp_path / "heard").read_text().split()) == ["0", "1"], "they could not save"


def test_a_port_that_is_taken_and_a_host_that_is_away_are_told_before_anything_starts(lab: Lab, tmp_path: Path) -> None:
    listener = lab.popen(
        "h0", "python", "-c", "import socket; s=socket.create_server(('',29533)); print(flush=True); s.accept()"
    )
    assert listener.stdout is not None
    listener.stdout.readline()
    done = lab.run(LOGIN, *run_words(lab, ["echo"], "--master_port", "29533"))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "error: h0: port 29533: Address already in use; choose another --master_port"
    )
    assert no_process_is_left(lab, 0)
    os.kill(listener.pid, signal.SIGKILL)

    (tmp_path / "hosts").write_text("h0\nh7\nh1\n")
    words = run_words(lab, ["echo"])
    words[words.index("--hostfile") + 1] = str(tmp_path / "hosts")
    done = lab.run(LOGIN, *words)
    assert done.returncode == 2 and not said(done.stdout)
    assert "h7: nobody here knows a machine of this name" in done.stderr
    assert "correct it in the hostfile" in done.stderr
    assert "Nothing was started on any host" in done.stderr


def lost_host(directory: Path, fault: Callable[[Lab], None], *flags: str) -> tuple[int, float, str, str]:
    """(exit code, seconds, output, errors) of a job in a lab of its own in which something happens to h1."""
    with lab_of(directory, 2) as lab:
        (lab.directory / "hostfile").write_text("h0\nh1\n")
        (lab.directory / "script.py").write_text(SCRIPT)
        process = started(lab, "wait", *flags, directory=directory / "said")
        began = time.monotonic()
        fault(lab)
        if flags:  # it begins anew on h0, and is asked to stop there
            while (directory / "said" / "out").read_text().count("argv") < 3:
                assert time.monotonic() < began + 100
                time.sleep(0.2)
            lab.send(process, signal.SIGTERM)
        code = process.wait(timeout=100)
        seconds = time.monotonic() - began
        assert not lab.processes("h0", "script.py")
        return code, seconds, (directory / "said" / "out").read_text(), (directory / "said" / "err").read_text()


def slow_and_fail(lab: Lab) -> None:
    """The network of h1 crawls, and its rank dies."""
    lab.slow("h1", "16kbit")
    lab.shell("h1", "pkill -KILL -f 'script[.]py'")


def test_a_host_that_dies_is_cut_off_or_stopped_ends_the_job_or_is_left_out(tmp_path: Path, lab: Lab) -> None:
    """All at once: most of it is waiting for what does not come."""
    faults: dict[str, tuple[Callable[[Lab], None], tuple[str, ...]]] = {
        "dies": (lambda one: one.kill("h1"), ()),
        "is cut off": (lambda one: one.cut("h1"), ()),
        "has its agent stopped": (lambda one: one.shell("h1", "pkill -STOP -f 'hosts[.]agent'"), ()),
        "slows down and fails for good": (slow_and_fail, ("--max_restarts", "1")),
        "dies for good": (lambda one: one.kill("h1"), ("--max_restarts", "1")),
        "is cut off for good": (lambda one: one.cut("h1"), ("--max_restarts", "1")),
    }
    with ThreadPoolExecutor(len(faults)) as pool:
        runs = {
            name: pool.submit(lost_host, tmp_path / name.replace(" ", "_"), fault, *flags)
            for name, (fault, flags) in faults.items()
        }
        results = {name: run.result() for name, run in runs.items()}
    for name, (code, seconds, out, err) in results.items():
        if name.endswith("for good"):
            assert code == 75, err
            assert "left out: h1: " in err
            assert [line["WORLD_SIZE"] for line in said(out) if "argv" in line and line["rank"] == 0] == ["2", "1"]
        else:
            assert code == 1, (name, err)
            assert "error: h1: " in err.splitlines()[-1]
            assert seconds < 60, name
