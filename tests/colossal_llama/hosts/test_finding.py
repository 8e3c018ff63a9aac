"""Findings of many hosts as few lines."""

from __future__ import annotations

from colossal_llama.hosts.finding import Finding, fault, listed, merged, warning


def test_the_same_finding_of_many_hosts_is_one_line_and_faults_come_first() -> None:
    found = merged([warning("h2", "w", "c"), fault("h0", "x", "c"), fault("h1", "x", "c"), fault("h0", "y", "c")])
    assert found == [Finding(("h0", "h1"), "x", "c"), Finding(("h0",), "y", "c"), Finding(("h2",), "w", "c", False)]
    assert [str(one) for one in found] == ["fault: h0, h1: x; c", "fault: h0: y; c", "warning: h2: w; c"]


def test_long_lists_are_cut() -> None:
    assert listed([f"h{index}" for index in range(64)]) == "h0, h1, h2, h3, h4, h5, h6, h7 and 56 more"
    assert listed(["a", "b"], most=2) == "a, b"
