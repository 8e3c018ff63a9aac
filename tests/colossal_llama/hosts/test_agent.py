"""An agent by itself: what it does with its ranks when nobody speaks to it any more."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from colossal_llama.hosts.messages import Order, decode, encode
from tests.colossal_llama.runs import free_ports

IMPATIENT = """
import colossal_llama.hosts.agent as agent
agent.STOP_SECONDS, agent.LOST_SECONDS = 1.0, float(__import__("sys").argv[1])
agent.main()
"""
DEAF = "import os, signal, time; signal.signal(15, lambda *_: None); print(os.getpid(), flush=True); time.sleep(60)"
SPAM = DEAF.rpartition(";")[0] + "\nwhile True: print('x' * 99)"


@pytest.mark.parametrize("how", ["the launcher ends", "nothing is heard any more", "the agent is told to end"])
@pytest.mark.parametrize("script", [DEAF, SPAM], ids=["deaf", "deaf and loud"])
def test_no_rank_outlives_a_launcher_that_is_gone(script: str, how: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(script)
    lost_seconds = "1.5" if how == "nothing is heard any more" else "60"
    agent = subprocess.Popen(
        [sys.executable, "-c", IMPATIENT, lost_seconds], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert agent.stdin is not None and agent.stdout is not None
    order = Order([str(tmp_path / "script.py")], str(tmp_path), {}, "id", 0, 0, 1, 1, "127.0.0.1", free_ports(1)[0])
    agent.stdin.write(encode(replace(order, words=["-u", *order.words])))
    agent.stdin.flush()
    while "text" not in (message := decode(agent.stdout.readline()) or {}):
        pass
    rank = psutil.Process(int(message["text"]))
    if how == "the launcher ends":
        agent.stdin.close()
    elif how == "the agent is told to end":
        agent.terminate()
    deadline = time.monotonic() + 15
    while rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE:  # nobody reads what the agent says
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.1)
    agent.kill()
    agent.wait()
