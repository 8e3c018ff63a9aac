"""Two processes of one command: the second one waits, and never writes beside the first."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from colossal_llama import run_lock
from colossal_llama.run_lock import RunLock
from tokenizer_tools.command import UserError

HOLDER = """
import sys
from pathlib import Path
from colossal_llama.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.take()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it is killed."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_told_and_refused_in_the_end(
    holder: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(run_lock, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(run_lock, "RETRY_SECONDS", 0.1)
    with caplog.at_level(logging.INFO), pytest.raises(UserError, match="another process .* choose another --save_dir"):
        RunLock(tmp_path / "run").take_if_there()
    assert "is still at work there; waiting for it" in caplog.text


def test_it_goes_on_when_the_first_one_dies(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    lock = RunLock(tmp_path / "run")
    thread = threading.Thread(target=lock.take, daemon=True)
    thread.start()
    thread.join(timeout=1)
    assert thread.is_alive(), "two hold it"
    holder.kill()
    thread.join(timeout=20)
    assert not thread.is_alive()


def test_nothing_is_made_where_no_run_lies_and_a_replaced_directory_is_locked_anew(tmp_path: Path) -> None:
    save_dir = tmp_path / "run"
    lock = RunLock(save_dir)
    lock.take_if_there()
    assert not save_dir.exists()
    save_dir.mkdir()
    lock.take_if_there()
    assert not any(save_dir.iterdir()), "it may be another's directory"
    lock.take()
    lock.take()
    first = (save_dir / ".lock").stat().st_ino
    save_dir.rename(tmp_path / "old")
    save_dir.mkdir()
    lock.take()
    assert (save_dir / ".lock").stat().st_ino != first
    shutil.rmtree(tmp_path / "old")
