"""The measure of a line, on the only one at hand: this machine's own."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from colossal_llama.hosts import wire
from colossal_llama.hosts.wire import Listener, dial


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """With a stream of a fifth of a second."""
    monkeypatch.setattr(wire, "STREAM_SECONDS", 0.2)
    one = Listener()
    yield one
    one.close()


def test_a_line_is_measured_more_than_once(listener: Listener) -> None:
    for _ in range(2):
        line = dial("127.0.0.1", listener.port)
        assert 0 < line["latency_seconds"] < 1
        assert 10**6 < line["bytes_per_second"] < 10**12


def test_a_knock_sends_nothing(listener: Listener) -> None:
    assert dial("127.0.0.1", listener.port, only_knocks=True)["bytes_per_second"] == 0


def test_a_line_that_takes_a_little_at_a_time_is_slow(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver counts what arrives, not what the sender's buffers have taken."""
    proxy = socket.create_server(("127.0.0.1", 0))

    def carry() -> None:
        with proxy.accept()[0] as near, socket.create_connection(("127.0.0.1", listener.port)) as far:
            threading.Thread(target=_copy, args=(far, near, 2**20, 0.0), daemon=True).start()
            _copy(near, far, 1000, 0.01)

    threading.Thread(target=carry, daemon=True).start()
    assert dial("127.0.0.1", proxy.getsockname()[1])["bytes_per_second"] < 2 * 10**5  # 1000 bytes each 0.01 s
    proxy.close()


def _copy(source: socket.socket, target: socket.socket, num_bytes: int, wait_seconds: float) -> None:
    try:
        while data := source.recv(num_bytes):
            target.sendall(data)
            time.sleep(wait_seconds)
    except OSError:
        pass


def test_a_port_is_taken_once_and_given_back(listener: Listener) -> None:
    with pytest.raises(OSError, match="Address already in use"):
        Listener(listener.port)
    listener.close()
    Listener(listener.port).close()
    with pytest.raises(ConnectionRefusedError):
        dial("127.0.0.1", listener.port)


def test_another_program_on_the_port_is_no_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].sendall(b"SSH-2.0"), daemon=True).start()
        with pytest.raises(OSError, match="another program answers"):
            dial("127.0.0.1", server.getsockname()[1])
