"""The way to a host: what ssh is told, and what needs no ssh."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from colossal_llama.hosts.hostfile import Host
from colossal_llama.hosts.ssh import is_local, words_on

ODD = ["a b", "", "$(touch evil)", ";echo", '{"lr": 1e-3}', "it's", "*", "two\nlines"]


def test_words_survive_the_shell_that_ssh_hands_them_to() -> None:
    show = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"]
    line = words_on(Host("h9"), [*show, *ODD])[-1]
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == ODD


def test_user_and_port_are_told_and_nothing_is_asked() -> None:
    words = words_on(Host("h9", "me", 2022), ["true"])
    assert words[0] == "ssh" and words[-3:] == ["--", "me@h9", "exec true"]
    assert words[words.index("-p") + 1] == "2022"
    assert "BatchMode=yes" in words and "StrictHostKeyChecking=accept-new" in words
    assert "-p" not in words_on(Host("h9"), ["true"])


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", "LOCALHOST"])
def test_this_machine_needs_no_ssh(name: str) -> None:
    assert is_local(Host(name))
    assert words_on(Host(name), ["true", "a b"]) == ["true", "a b"]


@pytest.mark.parametrize("host", [Host("no.such.host.invalid"), Host("localhost", port=2222), Host("localhost", "me")])
def test_another_machine_or_another_way_in_needs_ssh(host: Host) -> None:
    assert not is_local(host)
    assert words_on(host, ["true"])[0] == "ssh"


def test_a_name_of_this_machine_as_the_network_knows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"debian": "127.0.1.1", "away": "203.0.113.7"}
    monkeypatch.setattr(socket, "getaddrinfo", lambda name, _: [(2, 1, 6, "", (found[name], 0))])
    assert is_local(Host("debian"))
    assert not is_local(Host("away"))
