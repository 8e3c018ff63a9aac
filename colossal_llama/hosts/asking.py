"""How the ranks' helpers reach the board: a question a connection, over TCP from any host; standard library only.

A question is a line of JSON, {"token", "beat", "padding"}; the answer is one too, with the padding behind it.
"""

from __future__ import annotations

import contextlib
import json
import socket
import socketserver
import threading
import time
from collections.abc import Callable

from colossal_llama.hosts.board import Answer, Beat, Board, as_plain, beat_of

MOST_BYTES = 2**16
Ask = Callable[[Beat, float, int], Answer]
"""Hand the board a beat, wait for the answer so many seconds, with so many bytes more either way. Raises OSError or
ValueError if there is none."""


class Clock:
    """Seconds that pass while this process runs: where it was held up itself, it has not waited for anybody."""

    def __init__(self, most_seconds: float) -> None:
        self.now = 0.0
        self._most_seconds = most_seconds
        self._read_at = time.monotonic()

    def advance(self) -> float:
        """To be called at least every `most_seconds`; what is beyond that does not count."""
        now = time.monotonic()
        self.now += min(now - self._read_at, self._most_seconds)
        self._read_at = now
        return self.now


def ask_over(address: tuple[str, int], token: str) -> Ask:
    """How the helper of any rank but 0 asks the board."""

    def ask(beat: Beat, timeout_seconds: float, padding_bytes: int) -> Answer:
        question = {"token": token, "beat": as_plain(beat), "padding": " " * padding_bytes}
        with socket.create_connection(address, timeout_seconds) as connection:
            connection.sendall(json.dumps(question).encode() + b"\n")
            with connection.makefile("rb") as lines:
                return Answer(**json.loads(lines.readline(MOST_BYTES)))

    return ask


def serve(board: Board, token: str, clock: Clock) -> int:
    """Answer beats from any host in threads. Returns the port."""

    class Handler(socketserver.StreamRequestHandler):
        timeout = 10

        def handle(self) -> None:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
                question = json.loads(self.rfile.readline(MOST_BYTES))
                if question["token"] == token:
                    answer = board.take(beat_of(question["beat"]), clock.now)
                    self.wfile.write(f"{json.dumps(as_plain(answer))}{question['padding']}\n".encode())

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        request_queue_size = 1024
        address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET

        def server_bind(self) -> None:
            if self.address_family == socket.AF_INET6:
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            super().server_bind()

    server = Server(("", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return int(server.server_address[1])
