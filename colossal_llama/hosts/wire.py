"""The network between two hosts, by plain TCP: a `Listener` on one and `dial` on the other measure it."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import threading
import time
from typing import TypedDict

CONNECT_SECONDS = 5.0
NUM_PINGS = 5
STREAM_SECONDS = 1.0
SLACK_SECONDS = 10.0
"""Beyond the stream itself, until a line counts as dead."""
CHUNK = bytes(2**18)
PING, STREAM = b"p", b"s"
DROP_UNSENT = struct.pack("ii", 1, 0)


class Line(TypedDict):
    """One direction of one connection. Latency is there and back."""

    latency_seconds: float
    bytes_per_second: float


class Listener:
    """Answers on a port of every address of this host, until it is closed. Raises OSError if the port is taken."""

    def __init__(self, port: int = 0) -> None:
        dual = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if dual else socket.AF_INET
        self._server = socket.create_server(("", port), family=family, dualstack_ipv6=dual)
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Give the port back."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits in accept
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._server.accept()
                threading.Thread(target=_serve, args=(connection,), daemon=True).start()


def dial(address: str, port: int, only_knocks: bool = False) -> Line:
    """Measure the way to a `Listener`; only its latency (and a bandwidth of 0) if that is asked for.

    Raises OSError if it cannot be reached, or answers no more.
    """
    with socket.create_connection((address, port), CONNECT_SECONDS) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # what a slow line has not taken by the end is dropped, or it would go on blocking that line
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, DROP_UNSENT)
        latency_seconds = min(_ping(connection) for _ in range(NUM_PINGS))
        if only_knocks:
            return Line(latency_seconds=latency_seconds, bytes_per_second=0.0)
        connection.sendall(STREAM)
        received = json.loads(_stream(connection))
    return Line(latency_seconds=latency_seconds, bytes_per_second=received["num_bytes"] / received["seconds"])


def _ping(connection: socket.socket) -> float:
    began = time.perf_counter()
    connection.sendall(PING)
    if connection.recv(1) != PING:
        raise OSError("another program answers on this port")
    return time.perf_counter() - began


def _stream(connection: socket.socket) -> bytes:
    """Send until the other side says how much of it has arrived."""
    deadline = time.monotonic() + STREAM_SECONDS + SLACK_SECONDS
    connection.setblocking(False)
    while time.monotonic() < deadline:
        readable, writable, _ = select.select([connection], [connection], [], SLACK_SECONDS)
        if readable:
            return connection.recv(2**10)
        if writable:
            with contextlib.suppress(BlockingIOError):
                connection.send(CHUNK)
    raise TimeoutError(f"no answer within {STREAM_SECONDS + SLACK_SECONDS:.0f} s")


def _serve(connection: socket.socket) -> None:
    """Echo each ping; count what a stream brings within STREAM_SECONDS, and say it."""
    with connection, contextlib.suppress(OSError):
        connection.settimeout(SLACK_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while (word := connection.recv(1)) == PING:
            connection.sendall(PING)
        if word != STREAM:
            return
        num_bytes, seconds = _count(connection)
        connection.sendall(json.dumps({"num_bytes": num_bytes, "seconds": seconds}).encode())
        while connection.recv(len(CHUNK)):  # until the sender has heard it: closing now would drop the answer
            pass


def _count(connection: socket.socket) -> tuple[int, float]:
    num_bytes, began = 0, time.perf_counter()
    buffer = bytearray(len(CHUNK))
    while (left := STREAM_SECONDS - (time.perf_counter() - began)) > 0:
        if not select.select([connection], [], [], left)[0]:
            break
        count = connection.recv_into(buffer)
        if not count:
            break
        num_bytes += count
    return num_bytes, time.perf_counter() - began
