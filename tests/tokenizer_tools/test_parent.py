"""A process that ends with the one that started it, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_SECONDS = 20

CHILD = """
import os, signal, sys, time
from tokenizer_tools.parent import end_with_parent

signal.signal(signal.SIGUSR1, lambda *_: (print("heard", flush=True), os._exit(0)))
end_with_parent({parent}, signal.SIGUSR1)
print(os.getpid(), flush=True)
time.sleep(600)
"""
PARENT = """
import subprocess, sys, time

subprocess.Popen([sys.executable, "-c", sys.argv[1]])
time.sleep(600)
"""


def start(*argv: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", *argv], stdout=subprocess.PIPE, text=True, env=environment)


def test_a_parent_that_is_killed_is_noticed() -> None:
    parent = start(PARENT, CHILD.format(parent="os.getppid()"))
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.2)  # long enough to be heard if it came without a reason
    parent.kill()
    try:
        out, _ = parent.communicate(timeout=TIMEOUT_SECONDS)  # ends with the child, which has the pipe too
    except subprocess.TimeoutExpired:
        os.kill(child, signal.SIGKILL)
        raise
    assert out == "heard\n"


def test_a_parent_that_had_ended_before_is_noticed() -> None:
    child = start(CHILD.format(parent=2**22 + 1))  # above every process number of Linux
    out, _ = child.communicate(timeout=TIMEOUT_SECONDS)
    assert (child.returncode, out) == (0, "heard\n")


def test_a_living_parent_is_none_of_its_business() -> None:
    child = start(CHILD.format(parent="os.getppid()"))
    assert child.stdout is not None and child.stdout.readline().strip() == str(child.pid)
    child.send_signal(signal.SIGTERM)
    assert child.wait(TIMEOUT_SECONDS) == -signal.SIGTERM
