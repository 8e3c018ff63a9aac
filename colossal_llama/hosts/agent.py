"""On every host of a run: starts its ranks, hands on what they print, and never leaves one behind.

Started by the launcher (`launch.py`), over ssh or beside it, as `python -m colossal_llama.hosts.agent`; `messages.py`
says what the two tell each other. If the launcher is gone, or not heard of for LOST_SECONDS, ranks are asked to stop
(SIGTERM: a checkpoint) and killed STOP_SECONDS later. No torch here.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import Full, Queue
from typing import IO

from colossal_llama.hosts.messages import BEAT_SECONDS, LOST_SECONDS, Message, Order, decode, encode

TURN_SECONDS = 0.2
STOP_SECONDS = 300.0
"""From SIGTERM to SIGKILL where the launcher is gone: the ranks may hear each other all the same, and save. Those that
do not are ended by their watch (`watch.py`) long before."""
OUTPUT_SECONDS = 2.0
PORT_SECONDS = 20.0
"""For the ranks of the attempt before to let go of the port."""
LAST_LINES = 30
MOST_WAITING = 10_000
LONGEST_LINE_BYTES = 2**16
NOTE_BYTES = 4096
ERRNO = re.compile(r"\[Errno (\d+)\]")


class Rank:
    """A process of the run, the threads that read what it prints, and what is known of its end."""

    def __init__(self, order: Order, local_rank: int, notes: Path, say: Callable[[Message], None]) -> None:
        self.rank = order.first_rank + local_rank
        self._note = notes / f"rank-{self.rank}.json"
        self._note.write_text(" " * NOTE_BYTES)  # room for it, should the disk be full by then
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._say = say
        environment = {**os.environ, **order.environment, **order.variables_of(local_rank)}
        environment["TORCHELASTIC_ERROR_FILE"] = str(self._note)
        if order.ranks_per_node > 1:
            environment.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does
        self.process = subprocess.Popen(
            [sys.executable, *order.words],
            cwd=order.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._readers = [
            threading.Thread(target=self._read, args=(name, pipe), daemon=True)
            for name, pipe in (("stdout", self.process.stdout), ("stderr", self.process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def send(self, number: int) -> None:
        """A signal to the process; nothing if it has ended."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to it and to all that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def ended(self) -> Message:
        """What is to be said of a process that has ended; what is left of its children ends too."""
        self.kill()
        for reader in self._readers:
            reader.join(OUTPUT_SECONDS)
        noted = self._noted()
        number = ERRNO.search(noted or "")
        return {
            "rank": self.rank,
            "code": self.process.returncode,
            "error": noted or self._last_words(),
            "is_noted": noted is not None,
            "errno": int(number[1]) if number else None,
        }

    def _read(self, stream: str, pipe: IO[bytes]) -> None:
        for line in iter(lambda: pipe.readline(LONGEST_LINE_BYTES), b""):
            text = line.decode(errors="replace").rstrip("\r\n")
            if stream == "stderr" and text.strip():
                self._last.append(text)
            self._say({"rank": self.rank, "stream": stream, "text": text})

    def _noted(self) -> str | None:
        """What ended this rank itself, in torch's own form (torch.distributed.elastic.multiprocessing.errors)."""
        try:
            message = json.loads(self._note.read_text())["message"]
            text = message if isinstance(message, str) else message["message"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return " ".join(str(text).split())

    def _last_words(self) -> str:
        errors = [line for line in self._last if line.startswith("error: ")]
        return (errors or list(self._last) or [""])[-1].strip()


class Outlet:
    """What is on its way to the launcher, written by a thread: where the link takes nothing, only the printers wait."""

    def __init__(self) -> None:
        self._waiting: Queue[Message | None] = Queue(MOST_WAITING)
        self._thread = threading.Thread(target=self._write_all, daemon=True)
        self._thread.start()

    def say(self, message: Message) -> None:
        """Hand over a message, and wait where too many are under way. For the threads that read what ranks print."""
        self._waiting.put(message)

    def say_soon(self, message: Message) -> bool:
        """Hand over a message unless that would have to wait: then the launcher hears enough already, or nothing."""
        try:
            self._waiting.put_nowait(message)
        except Full:
            return False
        return True

    def close(self) -> None:
        """Wait until all is written, or a launcher that takes nothing counts as lost."""
        with contextlib.suppress(Full):
            self._waiting.put(None, timeout=LOST_SECONDS)
            self._thread.join(LOST_SECONDS)

    def _write_all(self) -> None:
        while (message := self._waiting.get()) is not None:
            with contextlib.suppress(OSError):  # nobody listens any more; `Agent` hears of it on its stdin
                line = encode(message)
                while line:
                    line = line[os.write(sys.stdout.fileno(), line) :]


class Agent:
    """The ranks of one host, from their start to the end of the last one."""

    def __init__(self) -> None:
        self._outlet = Outlet()
        self._input = b""
        self._heard = time.monotonic()
        self._spoke = 0.0
        self._ranks: list[Rank] = []
        self._kill_at: float | None = None
        self._is_alone = False
        self._unsaid: list[Message] = []

    def run(self) -> None:
        """Take an order, carry it out. Returns when no process is left."""
        self._outlet.say({"ready": socket.gethostname()})
        order = self._first_order()
        if order is not None:
            self._carry_out(order)
        self._outlet.close()

    def leave_alone(self) -> None:
        """As if the launcher were gone."""
        self._is_alone = True

    def _carry_out(self, order: Order) -> None:
        with contextlib.ExitStack() as stack:
            try:
                _wait_for_port(order)
                notes = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ranks-")))
                for local_rank in range(order.ranks_per_node):
                    self._ranks.append(Rank(order, local_rank, notes, self._outlet.say))
            except OSError as error:
                self._kill()
                self._outlet.say({"refused": f"{error.filename or 'temporary files'}: {error.strerror or error}"})
                return
            while self._ranks or (self._unsaid and not self._is_alone):
                self._turn()

    def _first_order(self) -> Order | None:
        while True:
            messages = self._hear()
            for message in messages:
                if "echo" in message:
                    self._outlet.say(message)
                if "words" in message:
                    return Order(**message)
            if self._is_alone or any("kill" in message or "signal" in message for message in messages):
                return None

    def _turn(self) -> None:
        for message in self._hear():
            if "signal" in message:
                for rank in self._ranks:
                    rank.send(message["signal"])
            if "kill" in message:
                self._kill()
        now = time.monotonic()
        if self._is_alone and self._kill_at is None:
            self._kill_at = now + STOP_SECONDS
            for rank in self._ranks:
                rank.send(signal.SIGTERM)
        if self._kill_at is not None and now >= self._kill_at:
            self._kill()
        for rank in [one for one in self._ranks if one.process.poll() is not None]:
            self._ranks.remove(rank)
            self._unsaid.append(rank.ended())
        while self._unsaid and self._outlet.say_soon(self._unsaid[0]):
            del self._unsaid[0]

    def _kill(self) -> None:
        for rank in self._ranks:
            rank.kill()

    def _hear(self) -> list[Message]:
        """What has come within TURN_SECONDS; notices if the launcher is gone, and lets it know that this one is not."""
        now = time.monotonic()
        if now - self._spoke > BEAT_SECONDS:
            self._spoke = now
            self._outlet.say_soon({"beat": True})
        if self._is_alone:
            time.sleep(TURN_SECONDS)
            return []
        readable, _, _ = select.select([sys.stdin.fileno()], [], [], TURN_SECONDS)
        if not readable:
            self._is_alone |= time.monotonic() - self._heard > LOST_SECONDS
            return []
        data = os.read(sys.stdin.fileno(), 2**16)
        self._heard = time.monotonic()
        self._is_alone |= not data
        *lines, self._input = (self._input + data).split(b"\n")
        return [message for message in map(decode, lines) if message is not None]


def _wait_for_port(order: Order) -> None:
    """Raise OSError unless the port that the ranks meet at is free, on the host of rank 0."""
    if order.node_rank:
        return
    deadline = time.monotonic() + (PORT_SECONDS if order.attempt else 0)
    while True:
        try:
            with socket.socket(socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("", order.master_port))
            return
        except OSError as error:
            if time.monotonic() > deadline:
                reason = f"{error.strerror}; choose another --master_port"
                raise OSError(error.errno, reason, f"port {order.master_port}") from None
            time.sleep(TURN_SECONDS)


def main() -> None:
    """An agent's life. A signal to it is as good as the end of its launcher."""
    agent = Agent()
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda *_: agent.leave_alone())
    agent.run()


if __name__ == "__main__":
    main()
