"""Training processes that die, or run out of disk, at a chosen moment; and what a dead run must have left on the disk.

A server imports all that train.py imports, once, and forks the ranks of every trial, so that a start costs no import.
It runs under disk_shim.c (LD_PRELOAD), which numbers the writing calls of a rank below --save_dir and strikes at one of
them. Where no C compiler is found, Python's audit hook numbers those of Python itself: no writes, no fsync, no Rust.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import gc
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from tests.conftest import argv_of, read_metrics

SHIM_SOURCE = Path(__file__).with_name("disk_shim.c")
ROOT = Path(__file__).parent.parent.parent
RUN_TIMEOUT_SECONDS = 120
SAID_CHARACTERS = 5000
TIMINGS = ("step_seconds", "tokens_per_second", "positions_per_second", "memory_bytes", "mfu")

Effect = Literal["trace", "kill group", "kill process", "full disk", "read-only"]
EFFECTS = ("trace", "kill group", "kill process", "full disk", "read-only")  # in the order of disk_shim.c


@dataclass(frozen=True)
class Strike:
    """What befalls rank `rank` at its `call`th writing call below --save_dir (1 is the first; 0: it is only traced).

    Calls are counted whose text, as in "rename /run/latest", holds `text`. From that call on the disk stays full or
    read-only.
    """

    effect: Effect = "trace"
    call: int = 0
    text: str = ""
    rank: int = 0
    clock_jump_seconds: int = 0
    """The wall clock jumps forth and back by so much all the time."""
    has_little_space: bool = False
    """Once there is a checkpoint, the disk says that no more is free."""


NOTHING = Strike()


class Job:
    """Forked ranks of one train.py, and what they have said."""

    def __init__(self, server: subprocess.Popen[str], pids: list[int], log: Path) -> None:
        self._server, self._pids, self._log = server, pids, log

    def kill(self) -> list[int]:
        """SIGKILL to all ranks at once. Returns their exit codes; those that had ended before keep theirs."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._pids[0], signal.SIGKILL)
        return self.wait()

    def wait(self) -> list[int]:
        """Exit codes of all ranks, by rank; that of a killed one is -9."""
        assert self._server.stdout is not None
        return json.loads(self._server.stdout.readline())

    def calls(self, rank: int = 0) -> list[list[str]]:
        """Counted calls of one rank in their order: [name, path]."""
        lines = trace_of(self._log, rank).read_text(encoding="utf-8").splitlines()
        return [line.split(" ", 1) for line in lines]

    @property
    def said(self) -> str:
        """All that the ranks have printed, their ends where it is long."""
        logs = sorted(self._log.parent.glob(f"{self._log.name}.rank*"))
        return "".join(path.read_text(errors="replace")[-SAID_CHARACTERS:] for path in logs)

    @property
    def errors(self) -> list[str]:
        """The lines that end a run which could not go on."""
        return [line for line in self.said.splitlines() if line.startswith("error: ")]


def trace_of(log: Path, rank: int) -> Path:
    """Where the calls of a rank are noted."""
    return log.with_name(f"{log.name}.calls{rank}")


class Launcher:
    """Starts train.py's ranks without their imports. One job at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._num_jobs = 0
        self.shim = build_shim(directory)
        preload = {} if self.shim is None else {"LD_PRELOAD": str(self.shim)}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.colossal_llama.killing"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(directory / "server.log").open("w"),
            text=True,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | preload,
        )
        self._answer()  # it is ready

    def start(self, world_size: int, save_dir: Path, strike: Strike = NOTHING, **flags: Any) -> Job:
        """Start `world_size` ranks of `train.py --save_dir save_dir ...` in a process group of their own."""
        self._num_jobs += 1
        log = self._directory / f"job-{self._num_jobs}"
        order = {
            "argv": argv_of(save_dir=save_dir, **flags),
            "world_size": world_size,
            "save_dir": str(save_dir),
            "log": str(log),
            "strike": asdict(strike),
        }
        assert self._server.stdin is not None
        print(json.dumps(order), file=self._server.stdin, flush=True)
        return Job(self._server, self._answer(), log)

    def run(self, world_size: int, save_dir: Path, strike: Strike = NOTHING, **flags: Any) -> tuple[list[int], Job]:
        """Start and wait: (exit codes, the job)."""
        job = self.start(world_size, save_dir, strike, **flags)
        return job.wait(), job

    def _answer(self) -> Any:
        assert self._server.stdout is not None
        answer = self._server.stdout.readline()
        assert answer, (self._directory / "server.log").read_text()
        return json.loads(answer)

    def close(self) -> None:
        """End the server."""
        self._server.kill()
        self._server.communicate()


def build_shim(directory: Path) -> Path | None:
    """The compiled disk_shim.c, or None where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    shim = directory / "disk_shim.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(shim), str(SHIM_SOURCE), "-ldl"], check=True)
    return shim


# --- in the server ----------------------------------------------------------------------------------------------------


def serve() -> None:
    """Read orders from stdin, a JSON line each; answer with the ranks' pids, and with their exit codes at their end."""
    import tests.preload  # noqa: F401  the slow imports

    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)
        gc.freeze()
        print("[]", file=answers)
        for line in sys.stdin:
            order = json.loads(line)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            pids: list[int] = []
            for rank in range(order["world_size"]):
                pid = os.fork()
                group = pids[0] if pids else pid
                if pid == 0:
                    os.setpgid(0, group)
                    os._exit(_train(order, rank, port))
                with contextlib.suppress(OSError):  # it may have done so itself, and even have ended
                    os.setpgid(pid, group)
                pids.append(pid)
            print(json.dumps(pids), file=answers)
            print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]), file=answers)


def _train(order: dict[str, Any], rank: int, port: int) -> int:
    import torch

    import train

    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": order["world_size"], "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    said = os.open(f"{order['log']}.rank{rank}", os.O_WRONLY | os.O_CREAT, 0o644)
    os.dup2(said, 1)
    os.dup2(said, 2)
    signal.alarm(RUN_TIMEOUT_SECONDS)  # a hang is a failure, not a wait
    faulthandler.dump_traceback_later(RUN_TIMEOUT_SECONDS - 5)
    strike = Strike(**order["strike"])
    _arm(strike if strike.rank == rank else NOTHING, Path(order["save_dir"]), trace_of(Path(order["log"]), rank))
    return train.main(order["argv"])


def _arm(strike: Strike, directory: Path, trace: Path) -> None:
    if strike.has_little_space:
        _report_little_space(directory)
    process = ctypes.CDLL(None)
    if not hasattr(process, "shim_arm"):
        _arm_audit_hook(strike, directory, trace)
        return
    process.shim_jump_clock(ctypes.c_long(strike.clock_jump_seconds))
    process.shim_arm(
        str(directory).encode(),
        strike.text.encode(),
        ctypes.c_long(strike.call),
        EFFECTS.index(strike.effect),
        str(trace).encode(),
    )


def _report_little_space(directory: Path) -> None:
    ask = os.statvfs

    def answer(path: Any) -> os.statvfs_result:
        values = list(ask(path))
        if (directory / "latest").exists():
            values[3] = values[4] = 0  # f_bfree, f_bavail
        return os.statvfs_result(values)

    os.statvfs = answer


AUDITED = {  # event -> (call, place of the path among its arguments, whether it takes space)
    "open": ("open", 0, True),
    "os.mkdir": ("mkdir", 0, True),
    "os.rename": ("rename", 1, False),
    "os.remove": ("unlink", 0, False),
    "os.rmdir": ("rmdir", 0, False),
    "os.truncate": ("truncate", 0, False),
    "os.chmod": ("chmod", 0, False),
}


def _arm_audit_hook(strike: Strike, directory: Path, trace: Path) -> None:
    if strike.clock_jump_seconds:
        now, jumps = time.time, itertools.cycle((0, strike.clock_jump_seconds, -strike.clock_jump_seconds))
        time.time = lambda: now() + next(jumps)
    number = 0
    notes = trace.open("a", buffering=1)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal number
        if event not in AUDITED:
            return
        call, place, takes_space = AUDITED[event]
        path = str(args[place])
        if not f"{path}/".startswith(f"{directory}/") or (event == "open" and not _writes(args)):
            return
        if strike.text not in f"{call} {path}\n":
            return
        number += 1
        notes.write(f"{call} {path}\n")
        if strike.call and number >= strike.call:
            if strike.effect == "full disk" and takes_space:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            if strike.effect == "read-only":
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
        if number == strike.call and strike.effect.startswith("kill"):
            os.kill(0 if strike.effect == "kill group" else os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _writes(args: tuple[Any, ...]) -> bool:
    _, mode, flags = args
    return bool(set(mode or "") & set("wax+")) or bool((flags or 0) & os.O_ACCMODE)


# --- what is on the disk ----------------------------------------------------------------------------------------------


def sha256(path: Path) -> str:
    """Hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def step_of(name: str) -> int:
    """epoch-0_step-12 -> 12"""
    return int(name.rpartition("_step-")[2])


def files_of(directory: Path) -> set[str]:
    """Every file below it, by its name from there."""
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def flaws_of_checkpoint(checkpoint: Path) -> list[str]:
    """What is wrong in a folder that bears a checkpoint's name; nothing is, if it is complete."""
    if not (checkpoint / "manifest.json").is_file():
        return [f"{checkpoint.name}: no manifest"]
    hashes = json.loads((checkpoint / "manifest.json").read_text())["sha256"]
    found = files_of(checkpoint) - {"manifest.json"}
    return [
        *(f"{checkpoint.name}/{name}: in the manifest, not on the disk" for name in sorted(hashes.keys() - found)),
        *(f"{checkpoint.name}/{name}: on the disk, not in the manifest" for name in sorted(found - hashes.keys())),
        *(
            f"{checkpoint.name}/{name}: other bytes than the manifest says"
            for name in sorted(found & hashes.keys())
            if sha256(checkpoint / name) != hashes[name]
        ),
    ]


def flaws_of(save_dir: Path) -> list[str]:
    """What a dead run has left that it must not: half a checkpoint under its name, `latest` of nothing, lost lines."""
    if not save_dir.is_dir():
        return []
    checkpoints = [path for path in save_dir.iterdir() if re.fullmatch(r"epoch-\d+_step-\d+", path.name)]
    flaws = [flaw for path in checkpoints for flaw in flaws_of_checkpoint(path)]
    step = latest_step(save_dir)
    if step and step not in [step_of(path.name) for path in checkpoints]:
        flaws.append(f"latest: names step {step}, which is not there")
    lines = (save_dir / "metrics.jsonl").read_text().splitlines() if (save_dir / "metrics.jsonl").exists() else []
    if [json.loads(line)["step"] for line in lines[:step]] != list(range(1, step + 1)):
        flaws.append(f"metrics.jsonl: not all of the {step} steps that the checkpoint has seen")
    return flaws


def latest_step(save_dir: Path) -> int:
    """The step of the checkpoint that `latest` names, 0 without one."""
    pointer = save_dir / "latest"
    return step_of(pointer.read_text().strip()) if pointer.exists() else 0


@dataclass(frozen=True)
class End:
    """What two runs that ended alike have in common: everything but timings."""

    steps: list[dict[str, Any]]
    """The lines of metrics.jsonl."""
    hashes: dict[str, str]
    """sha256 of every file of the last checkpoint and of the finished model."""
    names: set[str]
    """All files and folders of the run but TensorBoard's, whose names hold the time."""


def differences(one: End, other: End) -> list[str]:
    """What two ends differ in, in words; nothing if they are alike."""
    steps = [str(line) for lines in zip(one.steps, other.steps, strict=False) for line in lines if lines[0] != lines[1]]
    files = sorted(name for name in one.hashes | other.hashes if one.hashes.get(name) != other.hashes.get(name))
    count = [f"{len(one.steps)} steps and {len(other.steps)}"] if len(one.steps) != len(other.steps) else []
    return [*count, *steps, *(f"other bytes: {name}" for name in files), *sorted(one.names ^ other.names)]


def end_of(save_dir: Path) -> End:
    """Of a finished run."""
    steps = [{name: value for name, value in line.items() if name not in TIMINGS} for line in read_metrics(save_dir)]
    last = (save_dir / "latest").read_text().strip()
    whole = [save_dir / last, save_dir / "modeling"]
    files = [path for directory in whole for path in sorted(directory.rglob("*")) if path.is_file()]
    names = {str(path.relative_to(save_dir)) for path in save_dir.rglob("*") if "tfevents" not in path.name}
    return End(steps, {str(path.relative_to(save_dir)): sha256(path) for path in files}, names)


def until(condition: Any, timeout_seconds: float) -> Iterator[None]:
    """Loop until `condition()` holds. Raises TimeoutError."""
    limit = time.monotonic() + timeout_seconds
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError(f"not within {timeout_seconds} s")
        yield
        time.sleep(0.005)


if __name__ == "__main__":
    serve()
