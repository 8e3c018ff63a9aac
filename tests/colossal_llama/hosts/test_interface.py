"""Interfaces: what the routing table and the names of real hosts say, in a lab and on this machine."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from colossal_llama.hosts import interface
from colossal_llama.hosts.interface import interface_variables, only_interface
from tests.lab import lab_of

ASKED = """
import sys
from colossal_llama.hosts.interface import interface_to, interface_variables
print(*map(interface_to, sys.argv[1:]), interface_variables("h0", {}))
"""
BOTH = {"GLOO_SOCKET_IFNAME": "eth0", "NCCL_SOCKET_IFNAME": "=eth0"}


def test_a_name_that_means_the_host_itself_leads_nowhere_and_the_way_is_found_nevertheless(tmp_path: Path) -> None:
    with lab_of(tmp_path / "lab", 2, debian_names=True) as lab:
        own, other = (lab.address(name) for name in lab.hosts)
        for host, ways in (("h0", "None eth0 eth0 eth0 None None"), ("h1", "eth0 None eth0 eth0 None None")):
            asked = ["h0", "h1", own, other, "127.0.0.1", "nobody.invalid"]
            done = lab.run(host, "python", "-c", ASKED, *asked, timeout_seconds=60)
            assert done.stdout.split(" {")[0] == ways, done.stderr
            assert done.stdout.strip().endswith(str(BOTH))


def machine(monkeypatch: pytest.MonkeyPatch, *interfaces: tuple[str, str, bool]) -> None:
    """One with these interfaces: name, IPv4 address, whether it is up."""
    there: Sequence[tuple[str, str, bool]] = (("lo", "127.0.0.1", True), *interfaces)
    addresses = {name: [SimpleNamespace(family=socket.AF_INET, address=address)] for name, address, _ in there}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: addresses)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {name: SimpleNamespace(isup=up) for name, _, up in there})


def test_of_several_interfaces_none_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch)
    assert only_interface() is None
    machine(monkeypatch, ("eth0", "10.0.0.5", True), ("eth1", "10.1.0.5", False))
    assert only_interface() == "eth0"
    machine(monkeypatch, ("eth0", "10.0.0.5", True), ("eth1", "10.1.0.5", True))
    assert only_interface() is None
    assert interface_variables("127.0.1.1", {}) == {}


def test_what_the_user_has_set_and_infiniband_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interface, "interface_to", {"h0": "eth0"}.get)
    machine(monkeypatch, ("eth0", "10.0.0.5", True))
    assert interface_variables("h0", {}) == BOTH
    assert interface_variables("h0", {"GLOO_SOCKET_IFNAME": "eth7"}) == {"NCCL_SOCKET_IFNAME": "=eth0"}
    assert interface_variables("h0", {**BOTH, "NCCL_SOCKET_IFNAME": ""}) == {}
    machine(monkeypatch, ("eth0", "10.0.0.5", True), ("ib0", "10.9.0.5", True))
    assert interface_variables("h0", {}) == {"GLOO_SOCKET_IFNAME": "eth0"}
