"""What a host says of itself, against what is known of this one."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from colossal_llama.hosts import facts
from colossal_llama.hosts.facts import (
    Facts,
    adapters_in,
    addresses_of,
    disk_of,
    earlier_processes,
    facts_of,
    gpus_in,
    listener_words,
)
from tests.colossal_llama.hosts.made_facts import QUESTION


def test_facts_survive_the_way_and_are_those_of_this_machine(tmp_path: Path) -> None:
    question = replace(QUESTION, master="localhost", save_dir=str(tmp_path / "a" / "b"), inputs={"--x": str(tmp_path)})
    own = facts_of(question)
    assert Facts(**json.loads(json.dumps(asdict(own)))) == own
    assert own.hostname == socket.gethostname()
    assert own.python_path == sys.executable
    assert own.save_dir["path"] == str(tmp_path)  # the nearest one that exists
    assert own.save_dir["is_writable"]
    assert abs(own.save_dir["free_bytes"] - shutil.disk_usage(tmp_path).free) < 10**9
    assert own.inputs == {"--x": {"files": {}, "size_bytes": 0, "place": own.inputs["--x"]["place"]}}
    assert "127.0.0.1" in own.interfaces["lo"]
    assert own.master_addresses[0] == "127.0.0.1"
    assert own.earlier == {}


def test_a_name_that_nobody_knows_has_no_address() -> None:
    assert addresses_of("no-such-host.invalid") == []


def test_the_disk_of_a_path_is_that_of_its_mount() -> None:
    assert disk_of(Path("/proc/self"))["type"] == "proc"
    assert disk_of(Path("/proc/self/none/none"))["path"].endswith("self")


def test_lines_of_nvidia_smi() -> None:
    text = "NVIDIA A800-SXM4-80GB, 81920, 81000, 550.54\nName, with comma, [N/A], 12, 550.54\n\n"
    assert gpus_in(text) == [
        {
            "name": "NVIDIA A800-SXM4-80GB",
            "memory_bytes": 81920 * 2**20,
            "free_bytes": 81000 * 2**20,
            "driver": "550.54",
        },
        {"name": "Name, with comma", "memory_bytes": 0, "free_bytes": 12 * 2**20, "driver": "550.54"},
    ]


@pytest.mark.parametrize(
    ("script", "num_gpus", "reason"),
    [
        ("echo 'A, 1, 1, 5'; echo 'B, 1, 1, 5'", 2, None),
        ("echo 'NVIDIA-SMI has failed: no driver.'; exit 9", 0, "NVIDIA-SMI has failed: no driver."),
        ("sleep 9", 0, "nvidia-smi has not answered within 1 s"),
        (None, 0, None),
    ],
)
def test_a_driver_that_is_there_has_to_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, num_gpus: int, reason: str | None
) -> None:
    if script is not None:
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.setattr(facts, "SMI_SECONDS", 1)
    own = facts_of(replace(QUESTION, save_dir=str(tmp_path), inputs={}))
    assert (len(own.gpus), own.gpu_fault) == (num_gpus, reason)


def test_ports_of_adapters(tmp_path: Path) -> None:
    for port, state in ((1, "4: ACTIVE"), (2, "1: DOWN")):
        directory = tmp_path / "mlx5_0" / "ports" / str(port)
        directory.mkdir(parents=True)
        (directory / "state").write_text(f"{state}\n")
        (directory / "rate").write_text("200 Gb/sec (4X HDR)\n")
    assert adapters_in(tmp_path) == [
        {"name": "mlx5_0:1", "state": "ACTIVE", "rate": "200 Gb/sec"},
        {"name": "mlx5_0:2", "state": "DOWN", "rate": "200 Gb/sec"},
    ]
    assert adapters_in(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("words", "is_found"),
    [
        (["--save_dir", "runs/full"], True),
        (["--save_dir=runs"], True),
        (["--save_dir", "runs-2"], False),
        (["--lr", "1"], False),
    ],
)
def test_ranks_that_still_write_there_are_found(tmp_path: Path, words: list[str], is_found: bool) -> None:
    (tmp_path / "train.py").write_text("print(flush=True); input()")
    rank = subprocess.Popen(
        [sys.executable, "train.py", *words], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert rank.stdout is not None
    rank.stdout.readline()
    try:
        found = earlier_processes(tmp_path / "runs")
        assert list(found) == ([str(rank.pid)] if is_found else [])
    finally:
        rank.kill()
        rank.communicate()


def test_who_listens_on_a_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert f" by process {os.getpid()} (" in listener_words(port)
    assert listener_words(port) == ""
