"""The pre-flight's side of its visits: a guest on every host, questions to all of them, answers within a time."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import IO, Any

from colossal_llama.hosts.finding import Finding, fault
from colossal_llama.hosts.hostfile import Host
from colossal_llama.hosts.messages import decode, encode
from colossal_llama.hosts.ssh import python_on
from colossal_llama.hosts.way_in import why_not

GUEST = "colossal_llama.hosts.guest"
ALIVE_SECONDS = 5.0
LEAVE_SECONDS = 5.0
ENDING_SECONDS = 1.0
"""From the end of its words to the end of the process."""

Answer = dict[str, Any]


@dataclass
class Visit:
    """A guest on one host. `fault` is set once there is no use in asking it any more.

    Every answer also says when the question was `asked_at` and the answer `heard_at`, by this machine's clock.
    """

    host: Host
    process: subprocess.Popen[bytes]
    complaints: IO[bytes]
    answers: Queue[Answer | None] = field(default_factory=Queue)
    asked_at: float = 0.0
    fault: Finding | None = None

    @property
    def name(self) -> str:
        """As the hostfile has it."""
        return self.host.name

    def send(self, line: bytes) -> None:
        """Nothing, if nobody is there to read it: the answer will not come."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(line)
            self.process.stdin.flush()

    def read(self) -> None:
        """For a thread: answers as they come, None at the end. Greetings of a login shell are none."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            heard_at, answer = time.time(), decode(line)
            if answer is not None:
                self.answers.put({**answer, "asked_at": self.asked_at, "heard_at": heard_at})
        self.answers.put(None)

    def leave(self) -> None:
        """Let the guest end: its stdin closes."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()


@contextmanager
def visits_to(hosts: Sequence[Host]) -> Iterator[list[Visit]]:
    """A visit to each host, for as long as this is open; afterwards no guest is left that still hears of it."""
    visits: list[Visit] = []
    try:
        for host in hosts:
            complaints = tempfile.TemporaryFile()  # noqa: SIM115
            process = subprocess.Popen(
                python_on(host, GUEST),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=complaints,
                start_new_session=True,  # a terminal's Ctrl-C is the visitor's alone
            )
            visits.append(Visit(host, process, complaints))
            threading.Thread(target=visits[-1].read, daemon=True).start()
        yield visits
    finally:
        for visit in visits:
            visit.leave()
        deadline = time.monotonic() + LEAVE_SECONDS
        for visit in visits:
            _end(visit, deadline)


def ask(
    visits: Sequence[Visit], name: str, seconds: float, words: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Answer]:
    """The answers by the hosts' names; one that has none within `seconds` has left, and its `fault` says why.

    `words` are what each host is asked in particular; if given, only these hosts are asked.
    """
    asked = [visit for visit in visits if visit.fault is None and (words is None or visit.name in words)]
    for visit in asked:
        visit.asked_at = time.time()
        visit.send(encode({"ask": name, "words": {} if words is None else dict(words[visit.name])}))
    deadline = time.monotonic() + seconds
    answers: dict[str, Answer] = {}
    for visit in asked:
        answer = _answer(visit, visits, deadline)
        if answer is None:
            visit.fault = _silence(visit, seconds)
        else:
            answers[visit.name] = answer
    return answers


def _answer(visit: Visit, everyone: Sequence[Visit], deadline: float) -> Answer | None:
    """The next answer of one guest. Meanwhile the others hear that the visitor is still here."""
    while True:
        left = deadline - time.monotonic()
        try:
            return visit.answers.get(timeout=min(ALIVE_SECONDS, max(0.0, left)))
        except Empty:
            if left <= 0:
                return None
        for one in everyone:
            one.send(b"\n")


def _silence(visit: Visit, seconds: float) -> Finding:
    """Why a guest has not answered: it has ended, or it is busy with something that does not end."""
    try:
        code = visit.process.wait(ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        visit.leave()
        cure = "look at its disks (a network file system that hangs?) and its load, or take it out of the hostfile"
        return fault(visit.name, f"no answer within {seconds:.0f} s", cure)
    visit.complaints.seek(0)
    return why_not(visit.host, code, visit.complaints.read().decode(errors="replace"), sys.executable)


def _end(visit: Visit, deadline: float) -> None:
    try:
        visit.process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        visit.process.kill()
        visit.process.wait()
    visit.complaints.close()
