"""A launcher's output on a terminal that takes nothing, and on one that does."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper

import pytest

from colossal_llama.hosts import output
from colossal_llama.hosts.output import Output


def test_lines_come_in_their_order_each_on_its_stream(capfd: pytest.CaptureFixture[str]) -> None:
    one = Output()
    for number in range(100):
        one.show(str(number), on_stdout=number % 2 == 0)
    assert one.close()
    heard = capfd.readouterr()
    assert heard.out.split() == [str(number) for number in range(0, 100, 2)]
    assert heard.err.split() == [str(number) for number in range(1, 100, 2)]


def test_nobody_waits_for_a_reader_that_has_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    stream = TextIOWrapper(os.fdopen(writing, "wb", buffering=0), write_through=True)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(output, "CLOSE_SECONDS", 0.2)
    monkeypatch.setattr(output, "MOST_WAITING", 100)
    one = Output()
    for _ in range(1000):
        one.show("x" * 1000, on_stdout=True)
    assert not one.close()
    read = b""
    while b"came faster than they could be written" not in read:
        read += os.read(reading, 2**16)
    monkeypatch.setattr(output, "_write", lambda *_: None)  # what still waits is not for the next test
    one.show("", on_stdout=True)
    while not one.close():
        os.read(reading, 2**16)
