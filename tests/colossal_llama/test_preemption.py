"""Runs that are asked to stop: they save, leave with 75, and the same command line ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from colossal_llama.stopping import LEFT_AT_ONCE
from tests.colossal_llama.killing import Job, Launcher, end_of, flaws_of, latest_step, until
from tests.conftest import argv_of, read_metrics, run_train

ROOT = Path(__file__).parent.parent.parent
START_TIMEOUT_SECONDS = 120
STOPPED, INTERRUPTED = 75, 130


@pytest.fixture(scope="module")
def long_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """So many steps that a signal comes in the middle; nothing is saved before the last one."""
    return {**flags, "micro_batch_size": 2, "num_epochs": 2, "log_interval": 1}


@pytest.fixture(scope="module")
def undisturbed(launcher: Launcher, long_flags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The save_dir of a whole run on two ranks."""
    save_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    codes, job = launcher.run(2, save_dir, **long_flags)
    assert codes == [0, 0], job.said
    return save_dir


def wait_for_steps(save_dir: Path, count: int) -> None:
    """Until so many steps are logged."""
    log = save_dir / "metrics.jsonl"
    for _ in until(lambda: log.exists() and len(log.read_text().splitlines()) >= count, START_TIMEOUT_SECONDS):
        pass


def bits_of(save_dir: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Every step of a finished run, and the sha256 of the weights and optimizer states of its end."""
    end = end_of(save_dir)
    return end.steps, {name: digest for name, digest in end.hashes.items() if name.endswith(".safetensors")}


def send(job: Job, rank: int | None, number: signal.Signals) -> None:
    """A signal to one rank, or, as a terminal sends it, to all of them."""
    if rank is None:
        os.killpg(job._pids[0], number)
    else:
        os.kill(job._pids[rank], number)


@pytest.mark.parametrize(
    ("rank", "number"),
    [(1, signal.SIGUSR1), (None, signal.SIGINT)],
    ids=["SIGUSR1 to one rank", "Ctrl-C to all"],
)
def test_a_signal_saves_and_the_same_command_goes_on(
    rank: int | None,
    number: signal.Signals,
    launcher: Launcher,
    long_flags: dict[str, Any],
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    save_dir = tmp_path / "run"
    job = launcher.start(2, save_dir, **long_flags)
    wait_for_steps(save_dir, 5)
    send(job, rank, number)
    assert job.wait() == [STOPPED, STOPPED], job.said
    step = latest_step(save_dir)
    assert flaws_of(save_dir) == []
    assert step == len(read_metrics(save_dir)) < len(read_metrics(undisturbed)), "a step was lost, or none was left"
    place = save_dir / (save_dir / "latest").read_text().strip()
    line = f"stopped by {number.name} after step {step}, saved in {place}; the same command goes on from there"
    assert job.said.splitlines().count(line) == 1
    assert job.errors == []
    codes, job = launcher.run(2, save_dir, **long_flags)
    assert codes == [0, 0], job.said
    assert bits_of(save_dir) == bits_of(undisturbed)


def test_the_time_limit_lets_a_run_go_on_piece_by_piece(
    launcher: Launcher, long_flags: dict[str, Any], undisturbed: Path, tmp_path: Path
) -> None:
    save_dir, steps, codes = tmp_path / "run", [0], [STOPPED, STOPPED]
    while codes == [STOPPED, STOPPED]:
        limit = "1s" if len(steps) == 1 else "1h"  # over before the first step is
        codes, job = launcher.run(2, save_dir, **long_flags, time_limit=limit)
        steps.append(latest_step(save_dir))
        assert flaws_of(save_dir) == []
        if len(steps) == 2:
            assert f"stopped by --time_limit after step {steps[1]}, saved in " in job.said
    assert codes == [0, 0], job.said
    assert 1 <= steps[1] < steps[2] == len(read_metrics(undisturbed))
    assert bits_of(save_dir) == bits_of(undisturbed)


def slow_run(argv: list[str], signal_times: list[float]) -> tuple[int, float]:
    """A run whose third step lasts 20 s and gets a SIGTERM at these times: its exit code, and how long it lasted."""
    from colossal_llama.step import Stepper

    train, num_steps, begin = Stepper.train, 0, 0.0

    def slow(self: Stepper, *args: Any) -> Any:
        nonlocal num_steps, begin
        num_steps += 1
        if num_steps == 3:
            begin = time.monotonic()
            for seconds in signal_times:
                threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
            time.sleep(20)
        return train(self, *args)

    Stepper.train = slow  # type: ignore[method-assign]
    code = run_train(argv)
    return code, time.monotonic() - begin


def test_a_second_signal_leaves_at_once_but_not_a_repeated_first_one(
    ranks: Callable[..., list[Any]], long_flags: dict[str, Any], tmp_path: Path
) -> None:
    argv = argv_of(**long_flags, save_dir=tmp_path / "run")
    ((code, seconds),) = ranks(slow_run, 1, argv, [0.0, 0.3, 1.5])
    assert code == INTERRUPTED
    assert 1.5 <= seconds < 15, "it did not wait for the step to end"
    assert latest_step(tmp_path / "run") == 0


def test_a_second_signal_leaves_although_another_rank_hangs(
    launcher: Launcher, long_flags: dict[str, Any], tmp_path: Path
) -> None:
    """The main thread waits for the other rank in a library then, where Python's handlers do not run."""
    save_dir = tmp_path / "run"
    job = launcher.start(2, save_dir, **long_flags)
    own, other = (psutil.Process(pid) for pid in job._pids)
    try:
        wait_for_steps(save_dir, 5)
        other.suspend()
        time.sleep(1)  # by now the first one waits for it
        own.terminate()
        time.sleep(1.5)
        own.terminate()
        for _ in until(lambda: not own.is_running(), 30):
            pass
    finally:
        other.kill()
    assert job.wait() == [INTERRUPTED, -signal.SIGKILL]
    assert job.errors == ["error: " + LEFT_AT_ONCE]
    assert flaws_of(save_dir) == []


# --- with torchrun ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def torchrun(save_dir: Path, flags: dict[str, Any]) -> Iterator[subprocess.Popen[str]]:
    """train.py under torchrun on two ranks, in its fifth step or later. No process outlives the block."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(ROOT / "train.py")]
    process = subprocess.Popen(
        [sys.executable, *words, *argv_of(**flags, save_dir=save_dir)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )
    workers: list[psutil.Process] = []
    try:
        wait_for_steps(save_dir, 5)
        workers = psutil.Process(process.pid).children(recursive=True)
        yield process
        assert psutil.wait_procs(workers, timeout=30)[1] == []
    finally:
        for one in [process, *workers]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_the_end_of_the_launcher_saves_and_leaves_no_process(
    number: signal.Signals, long_flags: dict[str, Any], tmp_path: Path
) -> None:
    """torchrun passes SIGTERM on; of its own death by SIGKILL the workers learn from the system."""
    save_dir = tmp_path / "run"
    with torchrun(save_dir, long_flags) as process:
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    step = latest_step(save_dir)
    assert f"stopped by SIGTERM after step {step}, saved in {save_dir}" in said
    assert "interrupted" not in said
    assert flaws_of(save_dir) == []
    assert [line["step"] for line in read_metrics(save_dir)] == list(range(1, step + 1))
