"""Do all hosts see the same? Inputs, the file system for checkpoints, clocks, names and ways: findings go out. Pure."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Literal

from colossal_llama.hosts.facts import Question
from colossal_llama.hosts.finding import Finding, fault, listed, warning
from colossal_llama.hosts.inputs import Seen
from colossal_llama.hosts.survey import Clock, Survey, is_loopback

MOST_SKEW_SECONDS = 2.0
SLOW_SHARE = 0.25
"""A line with less than this share of the usual bandwidth is named."""
MOST_FILES_NAMED = 3
MEGABIT_BYTES = 10**6 / 8
REDUCE_CURES = (
    ("No space left on device", "enlarge /dev/shm: --ipc=host or --shm-size=16g for a container"),
    ("NCCL", "run it with NCCL_DEBUG=INFO; the first WARN line names the adapter or the interface"),
    ("had not ended in time", "the ports that ranks choose must be open between the hosts, not only --master_port"),
    ("client socket", "see what is wrong with the first host, and whether its --master_port is open"),
    ("waiting for clients", "see what is wrong with the hosts that have not come, and whether --master_port is open"),
    ("gloo", "the ports that ranks choose must be open between the hosts; GLOO_SOCKET_IFNAME=... names the interface"),
)
VICTIMS = (
    *("Connection closed by peer", "Connection reset by peer", "Broken pipe"),
    *("had not ended in time", "waiting for clients", "client socket"),
)
"""Words of ranks that only lost another one."""

Sharing = Literal["shared", "equal copy", "differs", "missing"]


def shared_findings(found: Survey, question: Question, least_bytes_per_second: float) -> Iterator[Finding]:
    """Everything that lies between hosts."""
    for words, path in question.inputs.items():
        yield from inputs(words, path, {name: facts.inputs[words] for name, facts in found.facts.items()})
    yield from one_file_system(found, question.save_dir)
    yield from clocks(found.clocks)
    yield from names(found)
    yield from ways(found, least_bytes_per_second)
    yield from sums(found)


def sharing(seen: Mapping[str, Seen]) -> dict[str, Sharing]:
    """What each host's look at one directory is to that of most hosts."""
    usual = _usual(seen)
    if usual is None:
        return dict.fromkeys(seen, "missing")
    places = Counter(one["place"] for one in seen.values() if one["files"] == usual)
    place = places.most_common(1)[0][0]
    result: dict[str, Sharing] = {}
    for name, one in seen.items():
        is_shared = one["place"] == place and (places[place] > 1 or len(seen) == 1)
        same: Sharing = "shared" if is_shared else "equal copy"
        result[name] = "missing" if one["files"] is None else same if one["files"] == usual else "differs"
    return result


def inputs(words: str, path: str, seen: Mapping[str, Seen]) -> Iterator[Finding]:
    """A directory that the run reads is the same on all hosts, be it one disk or a copy on each.

    `words` are the flag and what was written behind it, `path` is what that means.
    """
    usual = _usual(seen)
    states = sharing(seen)
    source = next((name for name, state in states.items() if state not in ("missing", "differs")), None)
    for name, state in states.items():
        copy = f"on {name}: rsync -a --delete {source}:{path}/ {path}/" if source else "correct it, or make it first"
        if state == "missing":
            yield fault(name, f"{words}: no such directory", copy)
        elif state == "differs":
            files = seen[name]["files"] or {}
            differing = sorted(
                key for key in files.keys() | (usual or {}).keys() if files.get(key) != (usual or {}).get(key)
            )
            what = f"{words}: not the files of {source}: {listed(differing, MOST_FILES_NAMED)}"
            yield fault(name, what, f"copy them anew, {copy}")
        elif not seen[name]["files"]:
            yield fault(name, f"{words}: the directory is empty", "name the directory with the files in it")


def one_file_system(found: Survey, save_dir: str) -> Iterator[Finding]:
    """A file that one host has just written next to --save_dir is seen by all."""
    if "error" in found.marker:
        cure = "give this user the right to write there, or name another --save_dir"
        yield fault(next(iter(found.facts), found.hosts[0]), f"--save_dir {save_dir}: {found.marker['error']}", cure)
    writer = next(iter(found.sees_marker), "")
    for name, sees in found.sees_marker.items():
        if not sees:
            what = f"--save_dir {save_dir}: a disk of its own, what {writer} writes there is not seen"
            cure = "all ranks write parts of one checkpoint: name a directory that all hosts share (NFS, Lustre, ...)"
            yield fault(name, what, cure)


def clocks(clocks: Mapping[str, Clock]) -> Iterator[Finding]:
    """All within two seconds, or lines of logs and times of files cannot be put in order."""
    if not clocks:
        return
    middle = statistics.median_low(clock.ahead_seconds for clock in clocks.values())
    usual = next(name for name, clock in clocks.items() if clock.ahead_seconds == middle)
    for name, clock in clocks.items():
        apart = clock.ahead_seconds - middle
        if abs(apart) - clock.error_seconds - clocks[usual].error_seconds > MOST_SKEW_SECONDS:
            what = (
                f"its clock is {abs(apart):.1f} s {'ahead of' if apart > 0 else 'behind'} {usual}'s; "
                f"{MOST_SKEW_SECONDS:g} s is the most by which logs and times of files can still be put in order"
            )
            yield fault(name, what, "`timedatectl set-ntp true`, or chronyc makestep")


def names(found: Survey) -> Iterator[Finding]:
    """Every host finds the first one by its name, at an address that is not its own."""
    master = found.hosts[0]
    for name, facts in found.facts.items():
        entry = f"an ssh alias is not enough: add {master} with its address to DNS or /etc/hosts there"
        outer = [address for address in facts.master_addresses if not is_loopback(address)]
        is_first = master in found.facts and facts.machine == found.facts[master].machine
        if not facts.master_addresses:
            yield fault(name, f"does not know the name of the first host, {master}", entry)
        elif not outer and not is_first:
            addresses = listed(facts.master_addresses)
            yield fault(name, f"takes {master}, the first host, for itself ({addresses})", entry)


def ways(found: Survey, least_bytes_per_second: float) -> Iterator[Finding]:
    """The run's port is free and open, every line between neighbours is there, and none is much slower."""
    master = found.hosts[0]
    if found.port_fault is not None and master in found.facts:
        yield fault(master, f"--master_port {found.port_fault}", "choose another, or end what listens there")
    for name, interface in found.interfaces.items():
        if interface is None:
            what = f"several network interfaces, and none is known to lead to {master}"
            cure = (
                f"in /etc/hosts there, {master} has its address in the network and not 127.0.1.1; or GLOO_SOCKET_IFNAME"
            )
            yield fault(name, what, cure)
    for name, answer in found.doors.items():
        if "error" in answer:
            cure = "open all TCP ports between the hosts in the firewall"
            yield fault(f"{name} -> {master}", f"--master_port is not reached: {answer['error']}", cure)
    for (name, target), answer in found.lines.items():
        if "error" in answer:
            cure = "open all TCP ports between the hosts: ranks choose theirs (net.ipv4.ip_local_port_range)"
            yield fault(f"{name} -> {target}", f"no connection: {answer['error']}", cure)
    speeds = {line: one["bytes_per_second"] for line, one in found.lines.items() if "error" not in one}
    usual = statistics.median_high(speeds.values()) if speeds else 0.0
    for (name, target), speed in speeds.items():
        least = max(least_bytes_per_second, SLOW_SHARE * usual)
        if speed < least:
            bound = f"{least / MEGABIT_BYTES:,.0f}"
            what = f"{speed / MEGABIT_BYTES:,.2f} Mbit/s, less than {bound}: all ranks would wait for it"
            cure = (
                "look at the cable, the switch port and `ethtool`; a run you know to be slow: --min_mbit_per_second 0"
            )
            yield fault(f"{name} -> {target}", what, cure)


def sums(found: Survey) -> Iterator[Finding]:
    """Every rank has seen the right sum; of those that failed, the first with a reason of its own is named."""
    failed = [one for one in found.ranks if "error" in one]
    if failed:
        own = [one for one in failed if not any(words in one["error"] for words in VICTIMS)]
        first = (own or failed)[0]
        said = f"{first['error']}"
        cure = next((cure for words, cure in REDUCE_CURES if words in said), "run one host alone, then two, to find it")
        rank = f"rank {first['rank']} of the " if "rank" in first else ""
        yield fault(first["host"], f"{rank}all-reduce: {said}", cure)
    for one in found.ranks:
        if "error" not in one and not one["is_right"]:
            what = f"rank {one['rank']} of the all-reduce: a wrong sum by {one['backend']} on {one['device']}"
            yield fault(one["host"], what, "take this host out, and have its memory and its network adapter checked")
    backends = {one["backend"] for one in found.ranks if "error" not in one}
    if len(backends) > 1:
        yield warning(
            listed(found.hosts), f"different backends: {listed(sorted(backends))}", "mend the hosts without GPUs"
        )


def _usual(seen: Mapping[str, Seen]) -> dict[str, str] | None:
    """The files that most hosts see; of two that are as frequent, the first host's."""
    counted = Counter(tuple(sorted(one["files"].items())) for one in seen.values() if one["files"] is not None)
    return dict(counted.most_common(1)[0][0]) if counted else None
