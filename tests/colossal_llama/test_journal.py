"""Files of lines: torn, full, read-only, resumed; never a reason to end a run, never a line twice."""

from __future__ import annotations

import json
import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.journal import Journal


@contextmanager
def files_end_at(num_bytes: int) -> Iterator[None]:
    """Let no file of this process grow further: as on a full disk, a write that begins below comes to half its end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps(*numbers: int) -> list[dict[str, Any]]:
    return [{"step": number, "loss": 2.5} for number in numbers]


def test_lines_wait_for_a_disk_that_is_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, 0)
    journal.append(steps(1, 2))
    with files_end_at(path.stat().st_size + 10), caplog.at_level(logging.WARNING):
        journal.append(steps(3))
        journal.append(steps(4, 5))
        assert lines_of(path) == steps(1, 2)  # and no half line behind them
    (first, second) = caplog.messages
    assert "the run goes on, 1 line(s) wait" in first and str(path) in first and "File too large" in first
    assert "3 line(s) wait" in second
    journal.append(steps(6))
    assert lines_of(path) == steps(1, 2, 3, 4, 5, 6)


def test_a_file_that_cannot_be_written_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    journal = Journal(path, 0)
    path.mkdir()  # root may write a read-only file, but nobody a directory
    journal.append(steps(1))
    assert "Is a directory" in caplog.text
    path.rmdir()
    journal.append(steps(2))
    assert lines_of(path) == steps(1, 2)


@pytest.mark.parametrize(
    "torn", [b'{"step": 4, "lo', b'{"step": 4, "name": "\xe4\xbd', b"\0\0\0\0\0", b"4", b'{"loss": 1}']
)
def test_a_resumed_run_starts_behind_its_checkpoint(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    Journal(path, 0).append(steps(1, 2, 3))
    with path.open("ab") as file:
        file.write(torn)
    journal = Journal(path, 2)
    assert lines_of(path) == steps(1, 2)
    journal.append(steps(3, 4))
    assert lines_of(path) == steps(1, 2, 3, 4)


def test_json_has_no_word_for_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    row = {"step": 1, "loss": float("nan"), "eval": {"zh": {"loss": float("inf"), "tokens": 3}}, "skipped": True}
    Journal(path, 0).append([row])

    def refuse(word: str) -> None:
        raise AssertionError(word)

    (line,) = path.read_text().splitlines()
    assert json.loads(line, parse_constant=refuse) == {
        "step": 1,
        "loss": None,
        "eval": {"zh": {"loss": None, "tokens": 3}},
        "skipped": True,
    }
