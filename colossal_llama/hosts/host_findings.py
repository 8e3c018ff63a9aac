"""What is wrong with hosts taken one by one, and where they differ: their facts come in, findings go out. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from colossal_llama.hosts.facts import Disk, Facts
from colossal_llama.hosts.finding import Finding, fault, listed, warning

GIGABYTE = 10**9
GIBIBYTE = 2**30
LEAST_TEMPORARY_BYTES = GIGABYTE
LEAST_SHM_BYTES = GIBIBYTE
FILES_PER_RANK, FILES_OF_A_RANK = 4, 256
"""gloo opens a connection to every other rank for each of a few groups; torch and the data take the rest."""
LARGEST_CHECKPOINT = 7
"""A checkpoint in the sizes of its 16-bit weights: with them fp32 weights and both of AdamW's moments."""
FREE_GPU_SHARE = 0.9
MOST_FILES_NAMED = 3
UNLIMITED = -1
MOST_GPUS = 1024


@dataclass(frozen=True)
class Own:
    """What the machine that the pre-flight runs on would run itself; every host is to be like it."""

    python: str
    code_dir: str
    code: Mapping[str, str]
    packages: Mapping[str, str]
    needed: frozenset[str]
    """Of the packages, those that training needs."""


@dataclass(frozen=True)
class Wanted:
    """What the run will ask of each host."""

    num_ranks: int
    world_size: int
    save_dir: str
    environment: Mapping[str, str]


def host_findings(facts: Mapping[str, Facts], own: Own, wanted: Wanted) -> Iterator[Finding]:
    """Of every host, in the order of the hostfile."""
    model_bytes = max(map(_model_bytes, facts.values()), default=0)
    for name, one in facts.items():
        yield from software(name, one, own)
        yield from machine(name, one, wanted, model_bytes)
        yield from disks(name, one, wanted, model_bytes)
        yield from chosen_interfaces(name, one, wanted.environment)
    yield from gpus(facts, wanted)
    yield from adapters(facts)
    yield from same_machines(facts)


def software(name: str, facts: Facts, own: Own) -> Iterator[Finding]:
    """Python, the code and the packages, against this machine's."""
    if facts.python != own.python:
        cure = f"make the environment there with Python {own.python}"
        yield fault(name, f"Python {facts.python}, here it is {own.python}", cure)
    if facts.code_dir != own.code_dir:
        what = f"its colossal_llama is that of {facts.code_dir}, and the launcher starts {own.code_dir}/train.py"
        yield fault(name, what, "run `pip install --no-deps -e .` there in the same checkout as here")
    differing = _differing(facts.code, own.code)
    if differing:
        what = f"other code than here in {listed(differing, MOST_FILES_NAMED)}"
        yield fault(name, what, "bring both checkouts to the same commit, without changes of their own")
    for is_needed in (True, False):
        names = [one for one in _differing(facts.packages, own.packages) if (one in own.needed) == is_needed]
        if names:
            pairs = [f"{one} {facts.packages.get(one, 'none')} (here {own.packages.get(one, 'none')})" for one in names]
            cure = "`pip install -c constraints.txt -e .` in both environments"
            yield (fault if is_needed else warning)(name, f"other packages: {listed(pairs)}", cure)


def machine(name: str, facts: Facts, wanted: Wanted, model_bytes: int) -> Iterator[Finding]:
    """Memory, limits, and processes of an earlier start."""
    for number, words in facts.earlier.items():
        cure = f"it leaves after its step and its checkpoint, and the run waits for that; if it stays: kill {number}"
        yield warning(
            name, f"process {number} of an earlier start still trains into {wanted.save_dir} ({words[:80]})", cure
        )
    if facts.free_memory_bytes < model_bytes:
        what = f"{_size(facts.free_memory_bytes)} of memory free, the model alone has {_size(model_bytes)}"
        yield warning(name, what, "see with `top` who takes it")
    if facts.gpus and wanted.num_ranks > 1 and facts.shm_bytes < LEAST_SHM_BYTES:
        what = f"/dev/shm has {_size(facts.shm_bytes)}, NCCL may need 1 GiB between the GPUs of a host"
        yield warning(name, what, "in a container: --ipc=host or --shm-size=16g")
    files = FILES_PER_RANK * wanted.world_size + FILES_OF_A_RANK
    if UNLIMITED < facts.max_open_files < files:
        what = f"at most {facts.max_open_files} open files a process, {wanted.world_size} ranks may need {files}"
        yield warning(name, what, "raise `nofile` in /etc/security/limits.conf")
    if any(one["state"] == "ACTIVE" for one in facts.adapters) and facts.max_locked_bytes != UNLIMITED:
        what = f"at most {_size(facts.max_locked_bytes)} of locked memory, RDMA locks its buffers"
        yield warning(name, what, "set `memlock unlimited` in /etc/security/limits.conf, or --ulimit memlock=-1")


def disks(name: str, facts: Facts, wanted: Wanted, model_bytes: int) -> Iterator[Finding]:
    """Room for checkpoints and for temporary files."""
    for flag, disk in ((f"--save_dir {wanted.save_dir}", facts.save_dir), ("TMPDIR", facts.temporary_dir)):
        if not disk["is_writable"]:
            yield fault(
                name, f"{flag}: {disk['path']} cannot be written", "give this user the right to, or name another"
            )
    free_bytes = facts.save_dir["free_bytes"]
    room = f"--save_dir {wanted.save_dir}: {_size(free_bytes)} free"
    if free_bytes < model_bytes:
        yield fault(name, f"{room}, the model alone has {_size(model_bytes)}", "delete something, or name another disk")
    elif free_bytes < LARGEST_CHECKPOINT * model_bytes:
        most = _size(LARGEST_CHECKPOINT * model_bytes)
        what = f"{room}, a checkpoint with its optimizer may take {most}"
        yield warning(name, what, "--keep_checkpoints keeps few of them; or name another disk")
    if facts.temporary_dir["free_bytes"] < LEAST_TEMPORARY_BYTES:
        free = _size(facts.temporary_dir["free_bytes"])
        what = f"{free} free in {facts.temporary_dir['path']} for temporary files, 1 GB may be needed"
        yield warning(name, what, "export TMPDIR=... on a larger disk")


def gpus(facts: Mapping[str, Facts], wanted: Wanted) -> Iterator[Finding]:
    """Every host with the same GPUs, one for each rank, and nobody else on them."""
    some_have = any(one.gpus for one in facts.values())
    kinds = Counter(_kind(one) for one in facts.values() if one.gpus)
    num_ranks, visible = wanted.num_ranks, wanted.environment.get("CUDA_VISIBLE_DEVICES")
    shown = MOST_GPUS if visible is None else len([one for one in visible.split(",") if one.strip()])
    for name, one in facts.items():
        if one.gpu_fault is not None:
            yield fault(
                name, f"its GPU driver does not answer: {one.gpu_fault}", "load the driver, or restart the host"
            )
        elif not one.gpus and some_have:
            what = "no GPU, others have some: its ranks would run on the CPU and wait with gloo for NCCL"
            yield fault(name, what, "install the NVIDIA driver (nvidia-smi has to answer), or take it out")
        elif one.gpus and min(len(one.gpus), shown) < num_ranks:
            what = f"{min(len(one.gpus), shown)} GPUs for --nproc_per_node {num_ranks}"
            what += f", with CUDA_VISIBLE_DEVICES={visible}" if shown < len(one.gpus) else ""
            yield fault(name, what, "start no more processes than the host with the fewest has GPUs, or take it out")
        elif not one.gpus and one.num_cpus < num_ranks:
            what = f"{one.num_cpus} CPUs for --nproc_per_node {num_ranks}"
            yield warning(name, what, "it will be slow; start fewer ranks")
        elif one.gpus and _kind(one) != kinds.most_common(1)[0][0]:
            what = f"{_kind(one)}, most hosts have {kinds.most_common(1)[0][0]}"
            yield warning(name, what, "a step takes as long as on the slowest, and has the room of the smallest")
        for index, gpu in enumerate(one.gpus[:num_ranks]):
            if gpu["free_bytes"] < FREE_GPU_SHARE * gpu["memory_bytes"]:
                what = f"GPU {index}: {_size(gpu['free_bytes'])} of {_size(gpu['memory_bytes'])} free"
                yield warning(name, what, "somebody else is on it: `nvidia-smi` there names the process")


def adapters(facts: Mapping[str, Facts]) -> Iterator[Finding]:
    """An InfiniBand or RoCE port that is up on most hosts is up on all."""
    active = {name: {one["name"] for one in of.adapters if one["state"] == "ACTIVE"} for name, of in facts.items()}
    counted = Counter(port for ports in active.values() for port in ports)
    usual = {port for port, count in counted.items() if 2 * count > len(facts)}
    for name in facts:
        missing = sorted(usual - active[name])
        if missing:
            states = {one["name"]: one["state"] for one in facts[name].adapters}
            said = [f"{port} {states.get(port, 'is not there')}" for port in missing]
            what = f"{listed(said)}, on most hosts it is ACTIVE"
            yield warning(name, what, "look at the cable and `ibstat`; NCCL would take a slower way")


def same_machines(facts: Mapping[str, Facts]) -> Iterator[Finding]:
    """Two names of one machine would start its ranks twice."""
    for (first, one), (second, other) in combinations(facts.items(), 2):
        if one.machine == other.machine:
            yield fault(second, f"is the same machine as {first}", "take one of the two out of the hostfile")


def chosen_interfaces(name: str, facts: Facts, environment: Mapping[str, str]) -> Iterator[Finding]:
    """What the environment says of interfaces and adapters has to be there."""
    there = listed(sorted(facts.interfaces))
    for one in filter(None, environment.get("GLOO_SOCKET_IFNAME", "").split(",")):
        if one not in facts.interfaces:
            cure = f"it has {there}; leave the variable out, and each host's is found"
            yield fault(name, f"GLOO_SOCKET_IFNAME={one}: no such interface", cure)
    names = [one.partition(":")[0] for one in (port["name"] for port in facts.adapters)]
    for variable, known in (("NCCL_SOCKET_IFNAME", list(facts.interfaces)), ("NCCL_IB_HCA", names)):
        value = environment.get(variable, "")
        if value and facts.gpus and not nccl_finds(value, known):
            yield fault(name, f"{variable}={value}: no such device", f"it has {listed(sorted(known)) or 'none'}")


def nccl_finds(value: str, known: Sequence[str]) -> bool:
    """Whether NCCL's own reading of such a variable leaves a device: names begin with a word; `=` exactly, `^` not."""
    excludes, exactly = value.startswith("^"), value.lstrip("^").startswith("=")
    words = [word.partition(":")[0] for word in value.lstrip("^=").split(",") if word]
    hits = {one for one in known for word in words if (one == word if exactly else one.startswith(word))}
    return bool(set(known) - hits if excludes else hits)


def _differing(there: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    return sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))


def _model_bytes(facts: Facts) -> int:
    return sum(seen["size_bytes"] for words, seen in facts.inputs.items() if words.startswith("--pretrained "))


def _kind(facts: Facts) -> str:
    counted = Counter(f"{one['name']} {one['memory_bytes'] / GIBIBYTE:.0f} GiB" for one in facts.gpus)
    return " and ".join(f"{count} x {name}" for name, count in sorted(counted.items()))


def gpu_words(facts: Facts) -> str:
    """8 x NVIDIA A800-SXM4-80GB 80 GiB"""
    return _kind(facts) or "none: CPU with gloo"


def adapter_words(facts: Facts) -> str:
    """4 x 200 Gb/sec of the ports that are up; - for none."""
    rates = Counter(one["rate"] for one in facts.adapters if one["state"] == "ACTIVE")
    return " and ".join(f"{count} x {rate}" for rate, count in sorted(rates.items())) or "-"


def disk_words(disk: Disk) -> str:
    """812 GB nfs4"""
    return f"{_size(disk['free_bytes'])} {disk['type']}"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / GIGABYTE:.1f} GB" if num_bytes >= GIGABYTE / 10 else f"{num_bytes / 10**6:.1f} MB"
