"""Processes that stand in for the ranks of train.py: their environment, their ends, their words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from colossal_llama.rehearsal.ranks import Processes, watch
from colossal_llama.rehearsal.verdict import Fault
from tests.colossal_llama.killing import until
from tokenizer_tools.command import UserError

SLEEPS = "import time; print('waiting for the others', flush=True); time.sleep(60)"


def ranks(tmp_path: Path, code: str, world_size: int = 2) -> Processes:
    """Ranks that run `code` with its own `rank`."""
    script = tmp_path / "script.py"
    script.write_text(f"import os, sys\nrank = int(os.environ['RANK'])\n{code}\n")
    return Processes(script, tmp_path / "flags.json", world_size, tmp_path / "run")


def test_a_rank_has_torchruns_environment_and_no_accelerator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    job = ranks(tmp_path, "import json; print(json.dumps([sys.argv[1], dict(os.environ)]))")
    assert watch(job)
    said = [json.loads(log.read_text()) for log in job.logs]
    assert [words for words, _ in said] == [str(tmp_path / "flags.json")] * 2
    environments = [environment for _, environment in said]
    assert [one["RANK"] for one in environments] == [one["LOCAL_RANK"] for one in environments] == ["0", "1"]
    assert {one["MASTER_PORT"] for one in environments} == {environments[0]["MASTER_PORT"]}
    for one in environments:
        assert (one["WORLD_SIZE"], one["MASTER_ADDR"], one["OMP_NUM_THREADS"]) == ("2", "127.0.0.1", "1")
        assert one["CUDA_VISIBLE_DEVICES"] == ""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_what_the_user_did_wrong_is_said_in_the_runs_own_line(tmp_path: Path) -> None:
    code = "if rank: import time; time.sleep(60)\nprint('a line'); print('error: --lr 0: no'); sys.exit(2)"
    job = ranks(tmp_path, code)
    with pytest.raises(UserError, match=r"^--lr 0: no$"):
        watch(job)
    assert job.exit_codes() == [2, -signal.SIGKILL], "the other one is not left"


def test_a_fault_of_ours_is_the_last_line_of_the_rank_that_failed(tmp_path: Path) -> None:
    code = "if not rank: import time; time.sleep(2); sys.exit('rank 1 is lost')\nraise RuntimeError('no such group')"
    job = ranks(tmp_path, code)
    with pytest.raises(Fault, match="rank 1 ended with exit code 1: RuntimeError: no such group"):
        watch(job)
    assert job.exit_codes() == [-signal.SIGKILL, 1]


def test_a_rank_that_the_system_has_killed_is_told_from_others(tmp_path: Path) -> None:
    job = ranks(tmp_path, "print('step 1'); sys.stdout.flush(); os.kill(os.getpid(), 9)", 1)
    with pytest.raises(Fault, match=r"rank 0 ended with exit code -9, SIGKILL \(is the memory full\?\): step 1"):
        watch(job)


def test_a_line_for_the_user_with_another_exit_code_is_no_fault_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="interrupted"):
        watch(ranks(tmp_path, "print('error: interrupted'); sys.exit(130)", 1))


def test_a_hang_is_found_and_ended(tmp_path: Path) -> None:
    job = ranks(tmp_path, SLEEPS)
    with pytest.raises(Fault, match="it hangs: no process has worked for 1 seconds; the last word: waiting for the"):
        watch(job, idle_seconds=1)
    assert job.exit_codes() == [-signal.SIGKILL] * 2


def test_work_is_no_hang(tmp_path: Path) -> None:
    job = ranks(tmp_path, "import time; end = time.time() + 2.5\nwhile time.time() < end: pass", 1)
    assert watch(job, idle_seconds=1.5)


def test_ranks_go_on_after_the_moment_that_was_waited_for(tmp_path: Path) -> None:
    job = ranks(tmp_path, SLEEPS)
    assert not watch(job, until=lambda: all("waiting" in log.read_text() for log in job.logs))
    assert job.exit_codes() == [None, None]
    job.kill()
    assert job.exit_codes() == [-signal.SIGKILL] * 2


def test_an_interrupt_ends_them_all(tmp_path: Path) -> None:
    job = ranks(tmp_path, SLEEPS)

    def interrupted() -> bool:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch(job, until=interrupted)
    assert job.exit_codes() == [-signal.SIGKILL] * 2


def test_ranks_that_hear_of_it_end_with_this_process(tmp_path: Path) -> None:
    """As train.py's do, by the id of a torchrun that is not there."""
    code = (
        "import signal, time; sys.path.insert(0, '.')\n"
        "from tokenizer_tools.parent import end_with_parent\n"
        "assert 'TORCHELASTIC_RUN_ID' in os.environ\n"
        "end_with_parent(os.getppid(), signal.SIGTERM)\n"
        "print(os.getpid(), flush=True); time.sleep(60)"
    )
    (tmp_path / "script.py").write_text(f"import os, sys\n{code}\n")
    place = f"__import__('pathlib').Path({str(tmp_path)!r})"
    driver = (
        "import time\nfrom colossal_llama.rehearsal.ranks import Processes\n"
        f"place = {place}\nProcesses(place / 'script.py', place / 'flags.json', 1, place / 'run')\ntime.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", driver])
    log = tmp_path / "run.rank0.log"
    try:
        for _ in until(lambda: log.is_file() and log.read_text().strip(), 30):
            pass
    finally:
        process.kill()
        process.wait()
    pid = int(log.read_text())
    limit = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < limit, "the rank outlives the one that started it"
        time.sleep(0.05)
