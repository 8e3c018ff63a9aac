"""What a host says of itself: a `Question` comes in, its `Facts` go out, both of them plain JSON. No torch here."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypedDict

import psutil

from colossal_llama.hosts.inputs import Seen, see
from colossal_llama.hosts.software import CODE_DIR, code_hashes, package_versions

SMI_SECONDS = 30
LONGEST_COMMAND = 80
SMI_FIELDS = ("name", "memory.total", "memory.free", "driver_version")
MEBIBYTE = 2**20
INFINIBAND = Path("/sys/class/infiniband")
SHARED_MEMORY = Path("/dev/shm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
NETWORK_NAMESPACE = Path("/proc/self/ns/net")


@dataclass(frozen=True)
class Question:
    """What the hosts are asked. Paths are the user's own words, and mean the same directory's on every host."""

    master: str
    """The name of the first host, to which all others connect."""
    save_dir: str
    inputs: dict[str, str]
    """{the flag and its value: the directory} of what the run reads."""
    reads_all: bool
    """Whether large files are read whole, and not in three places."""
    temporary_dir: str | None


class Gpu(TypedDict):
    """One GPU as its driver has it."""

    name: str
    memory_bytes: int
    free_bytes: int
    driver: str


class Disk(TypedDict):
    """The file system that holds a path; `path` is the nearest directory that exists."""

    path: str
    type: str
    free_bytes: int
    is_writable: bool


class Adapter(TypedDict):
    """A port of an InfiniBand or RoCE adapter."""

    name: str
    state: str
    rate: str


@dataclass(frozen=True)
class Facts:
    """What one host answers. Sizes in bytes; limits of open files and of locked memory, -1 for none."""

    hostname: str
    machine: str
    """Equal for two names of one machine."""
    python: str
    python_path: str
    code_dir: str
    code: dict[str, str]
    packages: dict[str, str]
    num_cpus: int
    free_memory_bytes: int
    gpus: list[Gpu]
    gpu_fault: str | None
    """Why a driver that is there did not answer."""
    adapters: list[Adapter]
    shm_bytes: int
    save_dir: Disk
    temporary_dir: Disk
    max_open_files: int
    max_locked_bytes: int
    interfaces: dict[str, list[str]]
    """Network interfaces that are up and their addresses."""
    master_addresses: list[str]
    own_addresses: list[str]
    """What the system gives for the first host's name, and for this host's own."""
    inputs: dict[str, Seen]
    earlier: dict[str, str]
    """{number: command} of processes of this very run that are still there."""


def facts_of(question: Question) -> Facts:
    """Of this host, in the directory it is in."""
    gpus, gpu_fault = _gpus()
    return Facts(
        hostname=socket.gethostname(),
        machine=f"{_read(BOOT_ID)} {NETWORK_NAMESPACE.readlink()}",
        python=sys.version.split()[0],
        python_path=sys.executable,
        code_dir=str(CODE_DIR),
        code=code_hashes(),
        packages=package_versions(),
        num_cpus=len(os.sched_getaffinity(0)),
        free_memory_bytes=psutil.virtual_memory().available,
        gpus=gpus,
        gpu_fault=gpu_fault,
        adapters=adapters_in(INFINIBAND),
        shm_bytes=shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else 0,
        save_dir=disk_of(Path(question.save_dir)),
        temporary_dir=disk_of(Path(question.temporary_dir or tempfile.gettempdir())),
        max_open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        max_locked_bytes=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        interfaces=_interfaces(),
        master_addresses=addresses_of(question.master),
        own_addresses=addresses_of(socket.gethostname()),
        inputs={flag: see(Path(path), question.reads_all) for flag, path in question.inputs.items()},
        earlier=earlier_processes(Path(question.save_dir)),
    )


def addresses_of(name: str) -> list[str]:
    """What the system resolves a name to, IPv4 first; [] if it knows no such name."""
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    except OSError:
        return []
    return sorted(found, key=lambda address: (":" in address, address))


def disk_of(path: Path) -> Disk:
    """Where `path` lies, or will when it is made."""
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    mounts = {Path(one.mountpoint): one.fstype for one in psutil.disk_partitions(all=True)}
    mounted = next((mounts[folder] for folder in (path.resolve(), *path.resolve().parents) if folder in mounts), "?")
    return Disk(
        path=str(path),
        type=mounted,
        free_bytes=shutil.disk_usage(path).free,
        is_writable=os.access(path, os.W_OK | os.X_OK),
    )


def adapters_in(directory: Path) -> list[Adapter]:
    """Every port of every adapter below /sys/class/infiniband: mlx5_0:1, ACTIVE, 200 Gb/sec."""
    return [
        Adapter(
            name=f"{port.parent.parent.name}:{port.name}",
            state=_read(port / "state").rpartition(":")[2].strip() or "?",
            rate=_read(port / "rate").partition("(")[0].strip(),
        )
        for port in sorted(directory.glob("*/ports/*"))
    ]


def earlier_processes(save_dir: Path) -> dict[str, str]:
    """Ranks of train.py on this host that write into `save_dir` or below it, by their number."""
    found = {}
    for process in psutil.process_iter(["pid", "cmdline", "cwd"]):
        words, directory = process.info["cmdline"] or [], process.info["cwd"]
        target = _value_of("--save_dir", words)
        if directory is None or target is None or not any(Path(word).name == "train.py" for word in words):
            continue
        written = Path(os.path.normpath(Path(directory, target)))
        if Path(os.path.normpath(save_dir.absolute())) in (written, *written.parents):
            found[str(process.info["pid"])] = " ".join(words)
    return found


def listener_words(port: int) -> str:
    """` by process 4711 (python -m http.server)`, as far as this user may know; "" if not."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return ""
    for one in connections:
        if one.status == psutil.CONN_LISTEN and one.laddr.port == port and one.pid is not None:
            with contextlib.suppress(psutil.Error):
                return f" by process {one.pid} ({' '.join(psutil.Process(one.pid).cmdline())[:LONGEST_COMMAND]})"
    return ""


def _value_of(flag: str, words: Sequence[str]) -> str | None:
    for word, following in pairwise([*words, ""]):
        if word == flag:
            return following
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def _gpus() -> tuple[list[Gpu], str | None]:
    """The GPUs, and what the driver's own tool says if it fails. A machine without that tool has none."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return [], None
    words = [smi, f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SMI_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return [], f"nvidia-smi has not answered within {SMI_SECONDS} s"
    if done.returncode:
        return [], " ".join((done.stdout + done.stderr).split())
    return gpus_in(done.stdout), None


def gpus_in(csv: str) -> list[Gpu]:
    """Lines of `name, MiB, free MiB, driver`, as nvidia-smi writes them. A figure it does not give is 0."""
    rows = [[cell.strip() for cell in line.rsplit(",", 3)] for line in csv.splitlines() if line.count(",") >= 3]
    return [
        Gpu(name=name, memory_bytes=_mebibytes(total), free_bytes=_mebibytes(free), driver=driver)
        for name, total, free, driver in rows
    ]


def _mebibytes(text: str) -> int:
    return int(text) * MEBIBYTE if text.isdecimal() else 0


def _interfaces() -> dict[str, list[str]]:
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    families = (socket.AF_INET, socket.AF_INET6)
    return {
        name: [one.address.partition("%")[0] for one in addresses if one.family in families]
        for name, addresses in psutil.net_if_addrs().items()
        if name in up
    }


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
