"""The pre-flight's guest, spoken to over its pipes: it answers, and goes without leaving anything."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

START = (
    "from colossal_llama.hosts import guest; guest.STAY_SECONDS = {seconds}; guest.MARKER_SECONDS = 0.5; guest.main()"
)
END_SECONDS = 10


@contextmanager
def guest(stay_seconds: float = 60) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", START.format(seconds=stay_seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.wait(END_SECONDS)


def ask(process: subprocess.Popen[str], name: str, /, **words: Any) -> dict[str, Any]:
    assert process.stdin is not None
    assert process.stdout is not None
    print(json.dumps({"ask": name, "words": words}), file=process.stdin, flush=True)
    return json.loads(process.stdout.readline())


@pytest.mark.parametrize("how", ["closed", "terminated", "hung up"])
def test_a_marker_and_a_port_go_with_the_guest(tmp_path: Path, how: str) -> None:
    with guest() as process:
        marker = ask(process, "mark", save_dir=str(tmp_path / "runs"))
        port = ask(process, "listen", name="x", port=0)["port"]
        assert Path(marker["path"]).read_text() == marker["content"]
        assert Path(marker["path"]).parent == tmp_path
        socket.create_connection(("127.0.0.1", port)).close()
        if how == "closed":
            assert process.stdin is not None
            process.stdin.close()
        else:
            process.send_signal(signal.SIGTERM if how == "terminated" else signal.SIGHUP)
        process.wait(END_SECONDS)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_a_guest_that_hears_nothing_goes() -> None:
    with guest(stay_seconds=0.5) as process:
        assert process.wait(END_SECONDS) == 0


def test_a_marker_is_seen_where_it_lies_and_not_elsewhere(tmp_path: Path) -> None:
    with guest() as process:
        marker = ask(process, "mark", save_dir=str(tmp_path))
        assert ask(process, "look", **marker) == {"is_seen": True}
        assert ask(process, "look", **{**marker, "content": "another"}) == {"is_seen": False}
        began = time.monotonic()
        assert ask(process, "look", path=str(tmp_path / "none"), content="") == {"is_seen": False}
        assert time.monotonic() - began >= 0.5


def test_ranks_end_with_a_guest_that_is_killed() -> None:
    """This one waits for another that never comes."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29521"}
    words = {"first_rank": 0, "num_ranks": 1, "world_size": 2, "environment": meeting, "num_bytes": 8, "seconds": 50}
    with guest() as process:
        assert process.stdin is not None
        print(json.dumps({"ask": "add_up", "words": words}), file=process.stdin, flush=True)
        own = psutil.Process(process.pid)
        deadline = time.monotonic() + END_SECONDS
        while not (children := own.children()) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert children
    _, alive = psutil.wait_procs(children, timeout=END_SECONDS)
    assert not alive


def test_whatever_goes_wrong_is_an_answer(tmp_path: Path) -> None:
    with guest() as process:
        assert ask(process, "arrive", directory=str(tmp_path)) == {}
        assert ask(process, "arrive", directory="none") == {"error": "none: No such file or directory"}
        assert "KeyError" in ask(process, "nonsense")["error"]
        with socket.create_server(("", 0)) as server:
            taken = ask(process, "listen", name="x", port=server.getsockname()[1])["error"]
            assert "Address already in use by process " in taken
        assert ask(process, "dial", address="127.0.0.1", port=1)["error"] == "[Errno 111] Connection refused"
