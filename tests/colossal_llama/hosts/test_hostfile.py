"""Hostfiles as people write them: read as meant, or refused with the line and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.hosts.hostfile import Host, parse_hosts, read_hostfile
from tokenizer_tools.command import UserError

LABEL = st.from_regex(r"[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,4})?(\.[a-z]{2,5})?", fullmatch=True)


def hosts_of(tmp_path: Path, content: bytes) -> list[Host]:
    (tmp_path / "hostfile").write_bytes(content)
    return read_hostfile(tmp_path / "hostfile")


@pytest.mark.parametrize(
    ("content", "hosts"),
    [
        (b"h0\nh1\n", [Host("h0"), Host("h1")]),
        (b"h0\r\nh1\r\n", [Host("h0"), Host("h1")]),  # from Windows
        (b"\xef\xbb\xbfh0\nh1", [Host("h0"), Host("h1")]),  # with a byte order mark
        (b"# all\n\n  h0  \n\t\nh1 # the new one\n", [Host("h0"), Host("h1")]),
        (b"root@h0\nh1:2222\nme@h2:22\n", [Host("h0", "root"), Host("h1", None, 2222), Host("h2", "me", 22)]),
        (b"10.0.0.1\n[fe80::1]:22\n", [Host("10.0.0.1"), Host("fe80::1", None, 22)]),
        (b"localhost\n", [Host("localhost")]),
        (b"gpu-01.cluster\n", [Host("gpu-01.cluster")]),
    ],
)
def test_it_is_read_as_meant(tmp_path: Path, content: bytes, hosts: list[Host]) -> None:
    assert hosts_of(tmp_path, content) == hosts


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"h0\nh1 slots=8\n", ["hostfile:2: 'h1 slots=8' is no host", "user@name:port"]),
        (b"h0,h1\n", ["hostfile:1: 'h0,h1' is no host"]),
        (b"h0\nh1\nH0\n", ["hostfile:3: H0 is named again", "hostfile:1"]),  # names know no case
        (b"h0\nroot@h0:22\n", ["hostfile:2: h0 is named again"]),
        (b"localhost\nh1\n", ["hostfile:1: localhost is another machine for each of the hosts"]),
        (b"h0:0\n", ["hostfile:1"]),
        (b"h0:70000\n", ["hostfile:1"]),
        (b"h0:ssh\n", ["hostfile:1"]),
        (b"@h0\n", ["hostfile:1"]),
        (b"-oProxyCommand=x\n", ["hostfile:1"]),
        (b"-x\n", ["hostfile:1"]),
        (b"# nothing\n\n", ["names no host"]),
        (b"", ["names no host"]),
        (b"h\xff\n", ["not UTF-8 at byte 1"]),
        (b"h0 x\nh1\nh1\n", ["hostfile:1", "hostfile:3"]),  # all of them at once
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, content: bytes, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        hosts_of(tmp_path, content)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none: No such file or directory; name a file"):
        read_hostfile(tmp_path / "none")


def test_host_takes_commas_and_the_same_rules() -> None:
    assert parse_hosts("h0, root@h1:22,") == [Host("h0"), Host("h1", "root", 22)]
    with pytest.raises(UserError, match="--host: h0 is named again"):
        parse_hosts("h0,h0")
    with pytest.raises(UserError, match="names no host"):
        parse_hosts(" , ")


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(LABEL, st.none() | LABEL, st.none() | st.integers(1, 65535), st.sampled_from(["", "  ", " # x"])),
        min_size=1,
        unique_by=lambda line: line[0],
    ),
    st.sampled_from(["\n", "\r\n", "\n\n# x\n"]),
)
def test_every_form_comes_back(tmp_path_factory: pytest.TempPathFactory, lines: list[tuple], end: str) -> None:
    text = end.join(
        (f"{user}@" if user else "") + name + (f":{port}" if port else "") + behind
        for name, user, port, behind in lines
    )
    hosts = hosts_of(tmp_path_factory.mktemp("hosts"), text.encode())
    assert hosts == [Host(name, user, port) for name, user, port, _ in lines]
