"""What ssh, a shell and Python say of a host that cannot be entered, and what the user reads."""

from __future__ import annotations

import pytest

from colossal_llama.hosts.hostfile import Host
from colossal_llama.hosts.way_in import why_not

CASES = [
    (255, "ssh: Could not resolve hostname h1: Name or service not known", "no", "knows", "/etc/hosts"),
    (255, "ssh: connect to host h1 port 22: Connection refused", "nothing listens on its ssh port", "h1:PORT"),
    (255, "ssh: connect to host h1 port 22: Connection timed out", "no answer to ssh", "switched on"),
    (255, "ssh: connect to host h1 port 22: No route to host", "no answer to ssh", "switched on"),
    (255, "@@@\nWARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!\nHost key verification failed.", "key", "-R h1"),
    (255, "me@h1: Permission denied (publickey,password).", "without a password", "ssh-copy-id me@h1"),
    (255, "kex_exchange_identification: read: Connection reset by peer", "ssh: kex", "ssh -v me@h1 true"),
    (255, "", "the connection to it was lost", "look at its network"),
    (127, "bash: line 1: exec: /x/python: not found", "no python at PYTHON", "at this path"),
    (126, "bash: line 1: /x/python: cannot execute: No such file", "no python at PYTHON", "at this path"),
    (1, "/x/python: Error while finding ... No module named 'colossal_llama')", "not this project", "pip install"),
    (1, "Traceback\nValueError: x", "exit code 1: ValueError: x", "PYTHON -V"),
    (1, "", "without a word", "PYTHON -V"),
]


@pytest.mark.parametrize(("code", "said", "words"), [(code, said, words) for code, said, *words in CASES])
def test_each_reason_has_its_cure(code: int, said: str, words: list[str]) -> None:
    line = str(why_not(Host("h1", "me"), code, said, "PYTHON"))
    assert line.startswith("fault: h1: ")
    assert "\n" not in line
    assert all(word in line for word in words), line
