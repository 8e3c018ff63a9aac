"""What lies between hosts, spoilt in one way, and the line that says so."""

from __future__ import annotations

from typing import Any

import pytest

from colossal_llama.hosts.inputs import Seen
from colossal_llama.hosts.shared_findings import clocks, shared_findings, sharing
from colossal_llama.hosts.survey import Clock, Survey, slower_lines
from tests.colossal_llama.hosts.made_facts import DATA, MODEL, QUESTION, SHARED, facts_of_host, good_survey, said

MEGABIT = 125_000
COPY: Seen = {**SHARED, "place": "another disk"}
OTHER: Seen = {"files": {"config.json": "10 bb", "new": "1 c"}, "size_bytes": 1, "place": "x"}
NONE: Seen = {"files": None, "size_bytes": 0, "place": ""}
EMPTY: Seen = {"files": {}, "size_bytes": 0, "place": "y"}


def findings_of(found: Survey) -> list[str]:
    return said(shared_findings(found, QUESTION, 100 * MEGABIT))


def three(**changes: Any) -> Survey:
    """Three hosts; the facts of h1 are others."""
    found = good_survey("h0", "h1", "h2")
    found.facts["h1"] = facts_of_host("h1", **changes)
    return found


def test_of_good_hosts_nothing_is_said() -> None:
    assert findings_of(three()) == []
    assert findings_of(good_survey("h0", "h1")) == []
    assert findings_of(good_survey("h0")) == []
    assert findings_of(Survey(["h0", "h1"])) == []  # nobody has answered: that is said elsewhere


@pytest.mark.parametrize(
    ("seen", "states"),
    [
        ([SHARED, SHARED, SHARED], ["shared", "shared", "shared"]),
        ([SHARED, SHARED, COPY], ["shared", "shared", "equal copy"]),
        ([SHARED, COPY], ["equal copy", "equal copy"]),
        ([SHARED], ["shared"]),
        ([SHARED, OTHER], ["equal copy", "differs"]),  # of two the first counts
        ([OTHER, SHARED, COPY], ["differs", "equal copy", "equal copy"]),  # of three most
        ([NONE, SHARED], ["missing", "equal copy"]),
        ([NONE, NONE], ["missing", "missing"]),
    ],
)
def test_what_hosts_see_of_a_directory(seen: list[Seen], states: list[str]) -> None:
    assert list(sharing({f"h{index}": one for index, one in enumerate(seen)}).values()) == states


@pytest.mark.parametrize(
    ("seen", "line"),
    [
        (COPY, None),
        (OTHER, "fault: h1: --dataset bins: not the files of h0: config.json, new; copy them anew, on h1: rsync "),
        (NONE, "fault: h1: --dataset bins: no such directory; on h1: rsync -a --delete h0:d/ d/"),
    ],
)
def test_each_host_may_have_its_copy_but_no_other_files(seen: Seen, line: str | None) -> None:
    lines = findings_of(three(inputs={MODEL: SHARED, DATA: seen}))
    assert len(lines) == (line is not None)
    assert line is None or lines[0].startswith(line)


@pytest.mark.parametrize(("seen", "words"), [(NONE, "no such directory; correct it"), (EMPTY, "is empty")])
def test_what_no_host_has_cannot_be_copied(seen: Seen, words: str) -> None:
    found = good_survey("h0", "h1")
    for name in found.hosts:
        found.facts[name] = facts_of_host(name, inputs={MODEL: SHARED, DATA: seen})
    lines = findings_of(found)
    assert len(lines) == 2
    assert all(words in line and "rsync" not in line for line in lines)


def test_a_disk_of_its_own_is_none_for_checkpoints() -> None:
    found = three()
    found.sees_marker["h1"] = False
    (line,) = findings_of(found)
    assert line.startswith("fault: h1: --save_dir runs: a disk of its own, what h0 writes there is not seen; ")
    found.marker, found.sees_marker = {"error": "[Errno 13] Permission denied: 'runs/.x'"}, {}
    (line,) = findings_of(found)
    assert line.startswith("fault: h0: --save_dir runs: [Errno 13] Permission denied")


@pytest.mark.parametrize(
    ("ahead", "line"),
    [
        ({"h0": (0, 0.01), "h1": (1.9, 0.01)}, None),
        ({"h0": (0, 0.01), "h1": (3, 1.5)}, None),  # the way there took so long that it may be right
        ({"h0": (9, 0.01), "h1": (9, 0.01)}, None),  # this machine's clock is not asked for
        ({"h0": (0, 0.01), "h1": (3, 0.01)}, "fault: h1: its clock is 3.0 s ahead of h0's; "),
        ({"h0": (0, 0.01), "h1": (0, 0.01), "h2": (-60, 0.01)}, "fault: h2: its clock is 60.0 s behind h0's; "),
        ({"h0": (99, 0.01), "h1": (0, 0.01), "h2": (0, 0.01)}, "fault: h0: its clock is 99.0 s ahead of h1's; "),
    ],
)
def test_clocks(ahead: dict[str, tuple[float, float]], line: str | None) -> None:
    lines = said(clocks({name: Clock(*reading) for name, reading in ahead.items()}))
    assert len(lines) == (line is not None)
    assert line is None or lines[0].startswith(line)


@pytest.mark.parametrize(
    ("addresses", "line"),
    [
        ([], "fault: h1: does not know the name of the first host, h0; an ssh alias is not enough"),
        (["127.0.1.1"], "fault: h1: takes h0, the first host, for itself (127.0.1.1); "),
        (["127.0.1.1", "10.0.0.10"], None),
    ],
)
def test_every_host_finds_the_first(addresses: list[str], line: str | None) -> None:
    lines = findings_of(three(master_addresses=addresses))
    assert len(lines) == (line is not None)
    assert line is None or lines[0].startswith(line)


def test_the_first_host_may_take_itself_for_itself() -> None:
    found = good_survey("h0", "h1")
    found.facts["h0"] = facts_of_host("h0", master_addresses=["127.0.1.1"])  # as Debian's installer writes it
    assert findings_of(found) == []


def test_ways_that_are_closed_or_slow_are_named() -> None:
    found = three()
    found.port_fault = "29500: Address already in use"
    found.interfaces["h2"] = None
    found.doors["h1"] = {"error": "timed out"}
    found.lines["h1", "h2"] = {"error": "timed out"}
    found.lines["h2", "h0"] = {"latency_seconds": 0.1, "bytes_per_second": 2 * MEGABIT}
    lines = findings_of(found)
    assert [line.partition("; ")[0] for line in lines] == [
        "fault: h0: --master_port 29500: Address already in use",
        "fault: h2: several network interfaces, and none is known to lead to h0",
        "fault: h1 -> h0: --master_port is not reached: timed out",
        "fault: h1 -> h2: no connection: timed out",
        "fault: h2 -> h0: 2.00 Mbit/s, less than 2,500: all ranks would wait for it",
    ]


def test_a_line_is_slow_against_the_others_or_against_the_bound() -> None:
    found = good_survey("h0", "h1", "h2", "h3")
    found.lines["h0", "h1"]["bytes_per_second"] = 2600 * MEGABIT
    assert findings_of(found) == []
    found.lines["h0", "h1"]["bytes_per_second"] = 2400 * MEGABIT
    assert len(findings_of(found)) == 1
    for line in found.lines.values():
        line["bytes_per_second"] = 99 * MEGABIT
    assert {line.partition(": ")[0] for line in findings_of(found)} == {"fault"}
    assert [line.partition(": ")[2][:8] for line in findings_of(found)] == [
        "h0 -> h1",
        "h1 -> h2",
        "h2 -> h3",
        "h3 -> h0",
    ]


@pytest.mark.parametrize(
    ("errors", "line"),
    [
        (
            {0: "Connection closed by peer", 1: "NCCL error: unhandled system error", 2: "had not ended in time"},
            "fault: h1: rank 1 of the all-reduce: NCCL error: unhandled system error; run it with NCCL_DEBUG=INFO",
        ),
        ({2: "had not ended in time"}, "fault: h2: rank 2 of the all-reduce: had not ended in time; the ports "),
        ({1: "OSError: No space left on device (NCCL)"}, "fault: h1: rank 1 of the all-reduce: OSError: No space"),
    ],
)
def test_the_first_reason_of_its_own_is_named(errors: dict[int, str], line: str) -> None:
    found = good_survey("h0", "h1", "h2")
    for rank, error in errors.items():
        found.ranks[rank] = {"host": f"h{rank}", "rank": rank, "error": error}
    (said_line,) = findings_of(found)
    assert said_line.startswith(line)


def test_a_wrong_sum_and_two_backends_are_named() -> None:
    found = good_survey("h0", "h1")
    found.ranks[1] |= {"is_right": False, "backend": "gloo", "device": "cpu"}
    lines = findings_of(found)
    assert lines[0].startswith("fault: h1: rank 1 of the all-reduce: a wrong sum by gloo on cpu; take this host out")
    assert lines[1].startswith("warning: h0, h1: different backends: gloo, nccl; ")


def test_a_line_that_carries_less_than_half_of_what_most_do_is_asked_again() -> None:
    speeds = {("h0", "h1"): 100.0, ("h1", "h2"): 49.0, ("h2", "h3"): 51.0, ("h3", "h0"): 100.0}
    lines: dict[tuple[str, str], dict[str, object]] = {line: {"bytes_per_second": one} for line, one in speeds.items()}
    lines["h4", "h0"] = {"error": "refused"}
    assert slower_lines(lines) == [("h1", "h2")]
    assert slower_lines({}) == []
