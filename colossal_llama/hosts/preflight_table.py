"""What the pre-flight shows: a survey and its findings come in, text or one JSON document goes out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from colossal_llama.hosts.finding import Finding
from colossal_llama.hosts.host_findings import Own, adapter_words, disk_words, gpu_words
from colossal_llama.hosts.shared_findings import sharing
from colossal_llama.hosts.survey import Survey

GIBIBYTE = 2**30
GIGABIT_BYTES = 10**9 / 8
MEGABIT_BYTES = 10**6 / 8
WHOLE_MEGABITS = 10
MEBIBYTE = 2**20
WIDTH_CHARACTERS = 200
COLUMNS = (
    *(
        "host",
        "answers in",
        "clock",
        "software",
        "GPUs",
        "RDMA",
        "memory free",
        "/dev/shm",
        "model and data",
        "save_dir",
    ),
    *("its disk", "interface", "address", "to the next host", "--master_port"),
)
ADDRESS = "address"
FIGURES = ("answers in", "clock", "memory free", "its disk", "to the next host", ADDRESS)
"""Columns that every host fills in another way."""
MOST_ROWS = 16
"""Of more hosts, those that look alike share a row."""
ABSENT = "-"


def print_preflight(found: Survey, findings: Sequence[Finding], own: Own) -> None:
    """The table on stdout: what all hosts have in common, what each one has, the all-reduce; then the findings."""
    console = Console(soft_wrap=True, highlight=False, markup=False, width=WIDTH_CHARACTERS)
    common, headers, rows = divided(rows_of(found, own), set(found.facts))
    console.print(f"here: {software_words(own)}")
    num_here, num_hosts = len(found.facts), len(found.hosts)
    whose = "every host" if num_here == num_hosts else f"{num_here} of {num_hosts} hosts"
    console.print(_table([whose, ""], common))
    console.print(_table(headers, folded(headers, rows) if len(rows) > MOST_ROWS else rows))
    console.print(f"all-reduce: {sum_words(found)}")
    for finding in findings:
        console.print(str(finding))


def as_json(found: Survey, findings: Sequence[Finding]) -> dict[str, Any]:
    """One document: {"ready", "hosts", "lines", "all_reduce", "findings"}."""
    return {
        "ready": not any(finding.is_fault for finding in findings),
        "hosts": {name: _host_json(found, name) for name in found.hosts},
        "lines": [{"from": line[0], "to": line[1], **_measured(answer)} for line, answer in found.lines.items()],
        "all_reduce": found.ranks,
        "findings": [{**asdict(finding), "text": str(finding)} for finding in findings],
    }


def rows_of(found: Survey, own: Own) -> list[list[str]]:
    """A row of `COLUMNS` for every host."""
    seen = {words: {name: facts.inputs[words] for name, facts in found.facts.items()} for words in _inputs(found)}
    states = {words: sharing(of_hosts) for words, of_hosts in seen.items()}
    return [_row(found, own, name, states) for name in found.hosts]


def divided(rows: Sequence[list[str]], here: Set[str]) -> tuple[list[list[str]], list[str], list[list[str]]]:
    """Columns in which all hosts that are `here` say the same, as [column, value]; the others' headers; their rows."""
    present = [row for row in rows if row[0] in here]
    values = [{row[index] for row in present} for index in range(len(COLUMNS))]
    common = [index for index in range(2, len(COLUMNS)) if len(values[index]) == 1]
    kept = [index for index in range(len(COLUMNS)) if index not in common]
    said = [[COLUMNS[index], next(iter(values[index]))] for index in common]
    return (
        [pair for pair in said if pair[1] != ABSENT],
        [COLUMNS[index] for index in kept],
        [[row[index] for index in kept] for row in rows],
    )


def folded(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Rows that say the same in words as one row; what is a figure on each is told from its least to its most."""
    alike: dict[tuple[str, ...], list[Sequence[str]]] = {}
    for row in rows:
        key = tuple(cell for header, cell in zip(headers[1:], row[1:], strict=True) if header not in FIGURES)
        alike.setdefault(key, []).append(row)
    result = []
    for group in alike.values():
        names = group[0][0] if len(group) == 1 else f"{group[0][0]} ... {group[-1][0]} ({len(group)})"
        columns = list(zip(*group, strict=True))[1:]
        result.append([names, *(_span(header, cells) for header, cells in zip(headers[1:], columns, strict=True))])
    return result


def _span(header: str, cells: Sequence[str]) -> str:
    if header == ADDRESS:
        return cells[0] if len(cells) == 1 else f"{cells[0]} ... {cells[-1]}"
    figures = sorted((cell for cell in set(cells) if cell != ABSENT), key=_number) if header in FIGURES else []
    return f"{figures[0]} to {figures[-1]}" if len(figures) > 1 else (figures or cells)[0]


def _number(cell: str) -> tuple[float, str]:
    match = re.match(r"[-+]?[\d,]*\.?\d+", cell)
    return float(match[0].replace(",", "")) if match else 0.0, cell


def software_words(own: Own) -> str:
    """What every host is compared with, in one line."""
    versions = ", ".join(f"{name} {own.packages[name]}" for name in ("torch", "colossalai") if name in own.packages)
    return (
        f"Python {own.python}, {versions}, {len(own.needed)} packages, {len(own.code)} files of code in {own.code_dir}"
    )


def sum_words(found: Survey) -> str:
    """What came of the all-reduce, in one line."""
    if not found.ranks:
        alone = len(found.hosts) == 1 and set(found.facts) == set(found.hosts) and found.port_fault is None
        return "not run: one host without GPUs" if alone else "not run: first mend what is named below"
    good = [one for one in found.ranks if "error" not in one and one["is_right"]]
    if len(good) < len(found.ranks):
        return f"failed, see below: {len(good)} ranks of {len(found.ranks)} have the right sum"
    seconds, num_ranks = max(one["seconds"] for one in good), len(good)
    bus = 2 * (num_ranks - 1) / num_ranks * good[0]["num_bytes"] / seconds / GIGABIT_BYTES
    hosts = "one host" if len(found.hosts) == 1 else f"{len(found.hosts)} hosts"
    size = f"{good[0]['num_bytes'] / MEBIBYTE:.1f} MiB in {1000 * seconds:.1f} ms"
    return f"{good[0]['backend']}, {num_ranks} ranks of {hosts}, {size}, {bus:.2f} Gbit/s; every sum right"


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for header in headers:
        table.add_column(header)
    for row in rows:
        table.add_row(*row)
    return table


def _row(found: Survey, own: Own, name: str, states: Mapping[str, Mapping[str, str]]) -> list[str]:
    if name not in found.facts:
        return [
            name,
            "no" if name not in found.arrival_seconds else _arrival(found, name),
            *[ABSENT] * (len(COLUMNS) - 2),
        ]
    facts, clock = found.facts[name], found.clocks[name]
    is_same = (facts.python, facts.code, facts.packages) == (own.python, own.code, own.packages)
    line = next((answer for (start, _), answer in found.lines.items() if start == name), None)
    door = found.doors.get(name)
    is_master = name == found.hosts[0]
    return [
        name,
        _arrival(found, name),
        f"{round(clock.ahead_seconds, 1) + 0.0:+.1f} s",
        "the same as here" if is_same else "differs",
        gpu_words(facts),
        adapter_words(facts),
        f"{facts.free_memory_bytes / GIBIBYTE:.0f} GiB",
        f"{facts.shm_bytes / GIBIBYTE:.1f} GiB",
        _input_words({words: of_hosts[name] for words, of_hosts in states.items()}),
        _save_dir_words(found, name),
        disk_words(facts.save_dir),
        found.interfaces.get(name) or ABSENT,
        found.addresses.get(name, ABSENT),
        ABSENT if line is None else _line_words(line),
        _port_words(found) if is_master else ABSENT if door is None else "closed" if "error" in door else "reached",
    ]


def _arrival(found: Survey, name: str) -> str:
    return f"{found.arrival_seconds[name]:.1f} s"


def _input_words(states: Mapping[str, str]) -> str:
    """shared, or with their flags where one is another thing than the next."""
    if len(set(states.values())) < 2:
        return next(iter(states.values()), ABSENT)
    return ", ".join(dict.fromkeys(f"{words.partition(' ')[0]} {state}" for words, state in states.items()))


def _save_dir_words(found: Survey, name: str) -> str:
    if name not in found.sees_marker:
        return ABSENT
    if len(found.hosts) == 1:
        return "writable"
    return "shared" if found.sees_marker[name] else "own disk"


def _port_words(found: Survey) -> str:
    return "free" if found.port_fault is None else "taken"


def _line_words(line: Mapping[str, Any]) -> str:
    if "error" in line:
        return "none"
    megabits = line["bytes_per_second"] / MEGABIT_BYTES
    speed = f"{megabits:,.0f}" if megabits >= WHOLE_MEGABITS else f"{megabits:.2f}"
    return f"{speed} Mbit/s, {1000 * line['latency_seconds']:.2f} ms"


def _inputs(found: Survey) -> list[str]:
    return list(next(iter(found.facts.values())).inputs) if found.facts else []


def _host_json(found: Survey, name: str) -> dict[str, Any]:
    facts, clock = found.facts.get(name), found.clocks.get(name)
    return {
        "arrival_seconds": found.arrival_seconds.get(name),
        "clock": None if clock is None else asdict(clock),
        "interface": found.interfaces.get(name),
        "address": found.addresses.get(name),
        "sees_save_dir": found.sees_marker.get(name),
        "facts": None if facts is None else asdict(facts),
    }


def _measured(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {key: answer[key] for key in ("latency_seconds", "bytes_per_second", "error") if key in answer}
