"""What the user sees of a survey."""

from __future__ import annotations

import json

import pytest

from colossal_llama.hosts.finding import fault
from colossal_llama.hosts.preflight_table import as_json, divided, folded, print_preflight, rows_of, sum_words
from tests.colossal_llama.hosts.made_facts import DATA, MODEL, OWN, SHARED, facts_of_host, good_survey


def test_what_all_have_in_common_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    found = good_survey("h0", "h1")
    found.facts["h1"] = facts_of_host("h1", gpus=[])
    print_preflight(found, [fault("h1", "x", "y")], OWN)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0].startswith("here: Python 3.11.7, torch 2.5.1+cu124, 1 packages, 2 files of code")
    assert {"software the same as here", "model and data shared", "save_dir shared", "RDMA 1 x 200 Gb/sec"} <= set(
        lines
    )
    assert "host answers in GPUs address --master_port" in lines
    assert "h0 0.5 s 2 x NVIDIA A800 80 GiB 10.0.0.10 free" in lines
    assert "h1 0.5 s none: CPU with gloo 10.0.0.11 reached" in lines
    assert lines[-1] == "fault: h1: x; y"


def test_many_hosts_that_are_alike_share_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    found = good_survey(*(f"h{index}" for index in range(64)))
    for index, name in enumerate(found.hosts):
        found.arrival_seconds[name] = 1 + index / 10
    found.sees_marker["h9"] = False
    print_preflight(found, [], OWN)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert [line for line in lines if line.startswith("h")][1:] == [
        "host answers in save_dir address --master_port",
        "h0 1.0 s shared 10.0.0.10 free",
        "h1 ... h63 (62) 1.1 s to 7.3 s shared 10.0.0.11 ... 10.0.0.163 reached",
        "h9 1.9 s own disk 10.0.0.19 reached",
    ]


def test_a_host_that_is_gone_has_a_row_and_spoils_no_common_value() -> None:
    found = good_survey("h0", "h1")
    del found.facts["h1"], found.arrival_seconds["h1"]
    common, headers, rows = divided(rows_of(found, OWN), {"h0"})
    assert ["software", "the same as here"] in common
    assert headers == ["host", "answers in"]
    assert rows == [["h0", "0.5 s"], ["h1", "no"]]


def test_inputs_of_different_kinds_are_told_apart() -> None:
    found = good_survey("h0", "h1")
    found.facts["h1"] = facts_of_host("h1", inputs={MODEL: SHARED, DATA: {**SHARED, "place": "x"}})
    assert rows_of(found, OWN)[1][8] == "--pretrained shared, --dataset equal copy"


def test_figures_are_told_from_the_least_to_the_most() -> None:
    headers = ["host", "to the next host", "GPUs"]
    rows = [["a", "900 Mbit/s, 1 ms", "8"], ["b", "-", "7"], ["c", "1,200 Mbit/s, 1 ms", "8"], ["d", "-", "8"]]
    assert folded(headers, rows) == [
        ["a ... d (3)", "900 Mbit/s, 1 ms to 1,200 Mbit/s, 1 ms", "8"],
        ["b", "-", "7"],
    ]


def test_the_bandwidth_of_an_all_reduce_is_that_of_a_ring() -> None:
    """Each of n ranks sends 2 (n - 1) / n of the bytes: for four ranks 1.5 times 1 GB in 0.5 s are 24 Gbit/s."""
    found = good_survey("h0", "h1", "h2", "h3")
    for rank in found.ranks:
        rank |= {"num_bytes": 10**9, "seconds": 0.5}
    assert "24.00 Gbit/s" in sum_words(found)
    found.ranks[2] = {"host": "h2", "rank": 2, "error": "x"}
    assert sum_words(found) == "failed, see below: 3 ranks of 4 have the right sum"
    found.ranks = []
    assert sum_words(found) == "not run: first mend what is named below"
    assert sum_words(good_survey("h0")).startswith("nccl, 1 ranks of one host, ")


def test_one_document_says_all() -> None:
    found = good_survey("h0", "h1")
    found.lines["h0", "h1"] = {"error": "timed out", "asked_at": 1.0}
    document = json.loads(json.dumps(as_json(found, [fault("h1", "x", "y")])))
    assert document["ready"] is False
    assert document["hosts"]["h1"]["facts"]["gpus"][0]["name"] == "NVIDIA A800"
    assert document["lines"][0] == {"from": "h0", "to": "h1", "error": "timed out"}
    assert document["findings"][0]["text"] == "fault: h1: x; y"
    assert as_json(found, [])["ready"] is True
