"""All that the pre-flight asks of the hosts: hosts and questions come in, a `Survey` goes out. It judges nothing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from colossal_llama.hosts.facts import Facts, Question
from colossal_llama.hosts.finding import Finding, fault
from colossal_llama.hosts.hostfile import Host
from colossal_llama.hosts.visits import Answer, Visit, ask, visits_to

ARRIVE_SECONDS = 40.0
"""For ssh, and for python to start."""
ANSWER_SECONDS = 60.0
READING_SECONDS = 24 * 3600.0
LINE_SECONDS = 30.0
SUM_SECONDS = 150.0
"""For torch to be imported from a slow disk by every rank, to find each other, and to add up."""
NUM_CLOCK_READINGS = 4
SUM_SHARE_SECONDS = 0.2
"""As long as the slowest line needs for the bytes that are added up."""
LEAST_SUM_BYTES, MOST_SUM_BYTES = 2**16, 2**26
LOCAL_SUM_BYTES = 2**22


@dataclass(frozen=True)
class Request:
    """What is to be found out, for which run."""

    question: Question
    directory: str
    environment: Mapping[str, str]
    """The variables that decide how ranks talk (NCCL_..., GLOO_...)."""
    num_ranks: int
    """Of each host."""
    master_port: int


@dataclass(frozen=True)
class Clock:
    """How far a host's clock is ahead of this machine's, and how wrong that may be."""

    ahead_seconds: float
    error_seconds: float


@dataclass
class Survey:
    """What was found, by the hosts' names; a host that has left the conversation is missing from what came after."""

    hosts: list[str]
    gone: dict[str, Finding] = field(default_factory=dict)
    arrival_seconds: dict[str, float] = field(default_factory=dict)
    clocks: dict[str, Clock] = field(default_factory=dict)
    facts: dict[str, Facts] = field(default_factory=dict)
    interfaces: dict[str, str | None] = field(default_factory=dict)
    """Over which ranks will talk; None if none is chosen, and gloo has to guess."""
    addresses: dict[str, str] = field(default_factory=dict)
    """By which the others reach it."""
    marker: Answer = field(default_factory=dict)
    sees_marker: dict[str, bool] = field(default_factory=dict)
    port_fault: str | None = None
    """Why the first host could not listen on the run's port."""
    doors: dict[str, Answer] = field(default_factory=dict)
    """From each host to the run's port on the first one."""
    lines: dict[tuple[str, str], Answer] = field(default_factory=dict)
    """From each host to the next one: a `Line`, or {"error"}."""
    ranks: list[dict[str, Any]] = field(default_factory=list)
    """Of the all-reduce, with their hosts; empty if it was not run."""


def survey(hosts: Sequence[Host], request: Request) -> Survey:
    """Visit all hosts at once. Every question has its time; who does not answer in time is not asked again."""
    found = Survey([host.name for host in hosts])
    with visits_to(hosts) as visits:
        _arrive(visits, request, found)
        _facts(visits, request, found)
        _routes(visits, request, found)
        _marker(visits, request, found)
        _lines(visits, request, found)
        if _is_worth_adding_up(found):
            _add_up(visits, request, found)
        found.gone = {visit.name: visit.fault for visit in visits if visit.fault is not None}
    return found


def _arrive(visits: Sequence[Visit], request: Request, found: Survey) -> None:
    words = {visit.name: {"directory": request.directory} for visit in visits}
    answers = ask(visits, "arrive", ARRIVE_SECONDS, words)
    found.arrival_seconds = {name: answer["heard_at"] - answer["asked_at"] for name, answer in answers.items()}
    cure = "the ranks of a host start in the directory that they are launched from: make it there too, or share it"
    _dismiss(visits, answers, cure)
    readings: dict[str, list[Clock]] = {}
    for _ in range(NUM_CLOCK_READINGS):
        for name, answer in ask(visits, "clock", ANSWER_SECONDS).items():
            middle = (answer["asked_at"] + answer["heard_at"]) / 2
            reading = Clock(answer["seconds"] - middle, (answer["heard_at"] - answer["asked_at"]) / 2)
            readings.setdefault(name, []).append(reading)
    found.clocks = {name: min(of_host, key=lambda one: one.error_seconds) for name, of_host in readings.items()}


def _facts(visits: Sequence[Visit], request: Request, found: Survey) -> None:
    seconds = READING_SECONDS if request.question.reads_all else ANSWER_SECONDS
    answers = ask(visits, "facts", seconds, {visit.name: vars(request.question) for visit in visits})
    _dismiss(visits, answers, "mend that on this host")
    for visit in visits:
        answer = answers.get(visit.name, {"error": True})
        if "error" not in answer:
            try:
                found.facts[visit.name] = Facts(**_own(answer))
            except TypeError:
                visit.fault = fault(
                    visit.name, "its colossal_llama is another version", "bring its checkout up to date"
                )


def _routes(visits: Sequence[Visit], request: Request, found: Survey) -> None:
    """The first host's address is what the others know it by; each host's is on the interface that leads there."""
    master = found.hosts[0]
    known = [one for name, facts in found.facts.items() if name != master for one in facts.master_addresses]
    outer = [address for address in known if not is_loopback(address)]
    if not outer or master not in found.facts:
        return
    words = {"master": master, "address": outer[0], "environment": dict(request.environment)}
    answers = ask(visits, "route", ANSWER_SECONDS, dict.fromkeys(found.facts, words))
    found.interfaces = {name: answer.get("interface") for name, answer in answers.items()}
    for name, answer in answers.items():
        own = found.facts[name].interfaces.get(answer.get("way") or "", [])
        if own:
            found.addresses[name] = outer[0] if name == master else own[0]


def _marker(visits: Sequence[Visit], request: Request, found: Survey) -> None:
    writer, others = _first_and_others(visits)
    if writer is None:
        return
    words = {"save_dir": request.question.save_dir}
    found.marker = ask([writer], "mark", ANSWER_SECONDS, {writer.name: words}).get(writer.name, {"error": "no answer"})
    if "error" not in found.marker:
        marker = {key: found.marker[key] for key in ("path", "content")}
        answers = ask(others, "look", ANSWER_SECONDS, {visit.name: marker for visit in others})
        found.sees_marker = {writer.name: True} | {name: one.get("is_seen", False) for name, one in answers.items()}


def _lines(visits: Sequence[Visit], request: Request, found: Survey) -> None:
    """The run's port on the first host, then the ring of lines from each host to the next, every other one at once."""
    first = visits[0]
    words = {first.name: {"name": "master", "port": request.master_port}}
    answer = ask([first], "listen", ANSWER_SECONDS, words).get(first.name, {"error": "no answer"})
    found.port_fault = answer.get("error")
    names = [visit.name for visit in visits if visit.fault is None and visit.name in found.addresses]
    if first.name in names and found.port_fault is None:
        door = {"address": found.addresses[first.name], "port": request.master_port, "only_knocks": True}
        found.doors = ask(visits, "dial", LINE_SECONDS, {name: door for name in names if name != first.name})
    if len(names) > 1:
        heard = ask(visits, "listen", ANSWER_SECONDS, {name: {"name": "line", "port": 0} for name in names})
        following = dict(zip(names, [*names[1:], names[0]], strict=True))
        lines = {
            name: {"address": found.addresses[target], "port": heard[target]["port"], "only_knocks": False}
            for name, target in following.items()
            if "port" in heard.get(target, {})
        }
        for half in (names[::2], names[1::2]):  # so that no line is slow for the answers that another one brings back
            asked = {name: lines[name] for name in half if name in lines}
            answers = ask(visits, "dial", LINE_SECONDS, asked)
            found.lines |= {(name, following[name]): answer for name, answer in answers.items()}
        for name, target in slower_lines(found.lines):  # alone, for it may have been a busy moment
            again = ask(visits, "dial", LINE_SECONDS, {name: lines[name]}).get(name, {"error": "no answer"})
            if again.get("bytes_per_second", 0.0) > found.lines[name, target]["bytes_per_second"]:
                found.lines[name, target] = again
    ask(visits, "hang_up", ANSWER_SECONDS)


def slower_lines(lines: Mapping[tuple[str, str], Answer]) -> list[tuple[str, str]]:
    """Those that carry less than half of what most do."""
    speeds = {line: answer["bytes_per_second"] for line, answer in lines.items() if "error" not in answer}
    usual = statistics.median_high(speeds.values()) if speeds else 0.0
    return [line for line, speed in speeds.items() if speed < usual / 2]


def _is_worth_adding_up(found: Survey) -> bool:
    """Whether all ranks can be there and reach each other, and one is not alone with itself."""
    if set(found.facts) != set(found.hosts) or found.port_fault is not None:
        return False
    if len(found.hosts) == 1:
        return bool(found.facts[found.hosts[0]].gpus)
    master, *others = found.hosts
    if any(all(map(is_loopback, found.facts[name].master_addresses)) for name in others):
        return False
    lines = [*found.doors.values(), *found.lines.values()]
    return len(found.addresses) == len(found.hosts) and not any("error" in line for line in lines)


def _add_up(visits: Sequence[Visit], request: Request, found: Survey) -> None:
    master = "127.0.0.1" if len(found.hosts) == 1 else found.hosts[0]
    slowest = min((line["bytes_per_second"] for line in found.lines.values()), default=None)
    num_bytes = LOCAL_SUM_BYTES if slowest is None else int(slowest * SUM_SHARE_SECONDS)
    words: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(found.hosts):
        meeting = {"MASTER_ADDR": master, "MASTER_PORT": str(request.master_port)}
        words[name] = {
            "first_rank": index * request.num_ranks,
            "num_ranks": request.num_ranks,
            "world_size": len(found.hosts) * request.num_ranks,
            "environment": {**request.environment, **meeting},
            "num_bytes": min(max(num_bytes, LEAST_SUM_BYTES), MOST_SUM_BYTES),
            "seconds": SUM_SECONDS,
        }
    for name, answer in ask(visits, "add_up", SUM_SECONDS + ANSWER_SECONDS, words).items():
        found.ranks += [{"host": name, **rank} for rank in answer.get("ranks", [answer])]


def _dismiss(visits: Sequence[Visit], answers: Mapping[str, Answer], cure: str) -> None:
    for visit in visits:
        if "error" in answers.get(visit.name, {}):
            visit.fault = fault(visit.name, answers[visit.name]["error"], cure)
            visit.leave()


def _first_and_others(visits: Sequence[Visit]) -> tuple[Visit | None, list[Visit]]:
    here = [visit for visit in visits if visit.fault is None]
    return (here[0], here[1:]) if here else (None, [])


def _own(answer: Answer) -> Answer:
    return {key: value for key, value in answer.items() if key not in ("asked_at", "heard_at")}


def is_loopback(address: str) -> bool:
    """Whether an address means the asking host itself on every host."""
    return address.startswith("127.") or address == "::1"
