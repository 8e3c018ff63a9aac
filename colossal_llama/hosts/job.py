"""One attempt to run a job on some hosts: started on all of them, ended on all of them as soon as one has failed.

opening: every agent says that it is ready -> running: orders, output, beats -> ending: all ranks of all hosts are gone
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from colossal_llama.hosts.hostfile import Host
from colossal_llama.hosts.link import Link
from colossal_llama.hosts.messages import BEAT_SECONDS, LOST_SECONDS, Message, Order
from colossal_llama.hosts.outcome import FAULT, SPARED, USER_FAULT, HostLost, Outcome, RankEnd, outcome
from colossal_llama.hosts.output import Output
from tokenizer_tools.command import UserError

TURN_SECONDS = 0.2
READY_SECONDS = 40.0
"""For ssh and for python to start on a host."""
BALLAST_BYTES = 2**18
BALLAST_SECONDS = 5.0
SLOWER = 4.0
"""A host to which BALLAST_BYTES and back take longer, and so many times as long as to half of the hosts, is slow."""
FAILED_SECONDS = 10.0
"""After the first rank has failed: for the others to notice it, and to say what they know."""
REFUSED_SECONDS = 3.0
"""The same where it was the user's fault: the ranks know it all together."""
AWAKE_SECONDS = 5.0
"""If this process itself was held up for longer, what it has not heard is nobody else's fault."""
KILLED_SECONDS = 10.0
REPEAT_SECONDS = 1.0
"""Signals within this time are one request: a terminal and a scheduler may both send it."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What is to run, whatever the hosts."""

    words: list[str]
    ranks_per_node: int
    master_port: int
    master_addr: str | None
    run_id: str
    environment: Mapping[str, str]

    def order(self, hosts: Sequence[Host], node_rank: int, attempt: int) -> Order:
        """For the agent on `hosts[node_rank]`."""
        alone = len(hosts) == 1
        return Order(
            words=self.words,
            directory=os.getcwd(),
            environment=dict(self.environment),
            run_id=self.run_id,
            attempt=attempt,
            node_rank=node_rank,
            num_nodes=len(hosts),
            ranks_per_node=self.ranks_per_node,
            master_addr=self.master_addr or ("127.0.0.1" if alone else hosts[0].name),
            master_port=self.master_port,
        )


class Attempt:
    """The links to the hosts, and what has been heard over them."""

    def __init__(self, job: Job, hosts: Sequence[Host], number: int, output: Output) -> None:
        self._job, self._number, self._output = job, number, output
        self._links = [Link(host, self._hear) for host in hosts]
        self._greeted: dict[Host, float] = {}
        self._echo_seconds: dict[Host, float] = {}
        self._ready: set[Host] = set()
        self._ordered: set[Host] = set()
        self._unready: dict[Host, str] = {}
        self._refused: list[str] = []
        self._ends: list[RankEnd] = []
        self._lost: list[HostLost] = []
        self._signal: int | None = None
        self._signal_time = 0.0
        self._kill_at: float | None = None
        self._was_killed = False

    async def run(self, signals: Sequence[signal.Signals]) -> Outcome:
        """To the end of the last process. `signals`: those that ask the ranks to stop.

        At a restart a host that does not answer, or only slowly, is left out. Raises UserError if that is so at first,
        or if none is left, or if a host cannot start what it is told to; then nothing runs on any of them.
        """
        loop = asyncio.get_running_loop()
        for number in signals:
            loop.add_signal_handler(number, self._take_signal, number)
        tasks = [asyncio.create_task(link.run()) for link in self._links]
        try:
            await self._open()
            if self._signal is None:
                await self._accompany(self._chosen())
        finally:
            self._send_all({"kill": True})
            done, _ = await asyncio.wait(tasks, timeout=KILLED_SECONDS)
            for link in self._links:
                link.cut()
            for number in signals:
                loop.remove_signal_handler(number)
        for task in done:
            task.result()
        if self._refused and self._number == 0:
            raise UserError("; ".join(self._refused))
        if self._refused:
            return Outcome(FAULT, "; ".join(self._refused), is_worth_another=self._signal is None)
        return outcome(self._ends, self._lost, self._signal)

    async def _open(self) -> None:
        """Wait until every agent is ready, or never will be."""
        deadline = asyncio.get_running_loop().time() + READY_SECONDS
        while self._signal is None and asyncio.get_running_loop().time() < deadline:
            self._find_slow()
            if all(link.host in {*self._ready, *self._unready} or not link.is_open for link in self._links):
                return
            await asyncio.sleep(TURN_SECONDS)
        self._ready |= self._greeted.keys() - self._unready.keys()  # slow they all are: the line from here is

    def _find_slow(self) -> None:
        """Those that take far longer than half of the hosts: their network has ended the attempt before, it may be."""
        if 2 * len(self._echo_seconds) < len(self._greeted) or not self._echo_seconds:
            return
        limit = max(BALLAST_SECONDS, SLOWER * statistics.median(self._echo_seconds.values()))
        now = asyncio.get_running_loop().time()
        for host, greeted in self._greeted.items():
            if host not in self._ready and now - greeted > limit:
                size = f"{BALLAST_BYTES // 1024} KiB there and back"
                self._unready[host] = f"its network is slow: {size} take more than {limit:.0f} s"

    def _chosen(self) -> list[Host]:
        reasons = {
            link.host: self._unready.get(link.host, f"no answer within {READY_SECONDS:.0f} s")
            for link in self._links
            if link.host not in self._ready
        }
        if reasons and (not self._ready or self._number == 0):
            said = "; ".join(f"{host}: {reason}" for host, reason in reasons.items())
            raise UserError(f"{said}. Nothing was started on any host")
        for link in self._links:
            if link.host in reasons:
                log.warning(f"left out: {link.host}: {reasons[link.host]}")
                link.cut()
        self._links = [link for link in self._links if link.host in self._ready]
        return [link.host for link in self._links]

    async def _accompany(self, hosts: list[Host]) -> None:
        """Send the orders; then beats, until every way is closed or all has to end."""
        loop = asyncio.get_running_loop()
        for node_rank, link in enumerate(self._links):
            link.send(self._job.order(hosts, node_rank, self._number))
        self._ordered = set(hosts)
        next_beat, now = 0.0, loop.time()
        while any(link.is_open for link in self._links):
            await asyncio.sleep(TURN_SECONDS)
            before, now = now, loop.time()
            if now - before > AWAKE_SECONDS:
                for link in self._links:
                    link.excuse()
            if now >= next_beat:
                next_beat = now + BEAT_SECONDS
                self._send_all({"beat": True})
            for link in self._links:
                if link.is_silent:
                    self._lose(
                        link.host, f"nothing was heard of it for {LOST_SECONDS:.0f} s: it has stopped, or its network"
                    )
            if self._kill_at is not None and now >= self._kill_at:
                self._was_killed = True
                return

    def _send_all(self, message: Message) -> None:
        for link in self._links:
            link.send(message)

    def _hear(self, host: Host, message: Message) -> None:
        if "text" in message:
            self._show(host, message)
        elif "ready" in message:
            self._greet(host)
        elif "echo" in message:
            self._echo_seconds[host] = asyncio.get_running_loop().time() - self._greeted[host]
            self._ready.add(host)
        elif "refused" in message:
            self._refused.append(f"{host}: {message['refused']}")
            self._kill_within(0)
        elif "code" in message:
            self._take_end(host, message)
        elif "gone" in message and host not in self._ordered:
            self._ready.discard(host)
            self._unready[host] = message["gone"] or "its agent ended at once"
        elif "gone" in message and self._has_ranks(host):
            self._lose(host, f"lost while its ranks were running: {message['gone'] or 'its agent ended'}")

    def _greet(self, host: Host) -> None:
        if self._number == 0:
            self._ready.add(host)
            return
        self._greeted[host] = asyncio.get_running_loop().time()
        for link in self._links:
            if link.host == host:
                link.send({"echo": secrets.token_hex(BALLAST_BYTES // 2)})

    def _take_end(self, host: Host, message: Message) -> None:
        end = RankEnd(
            host=str(host),
            rank=message["rank"],
            code=message["code"],
            error=message["error"],
            is_own=message["is_noted"],
            errno=message["errno"],
            was_killed=self._was_killed,
        )
        self._ends.append(end)
        if end.code not in SPARED:
            self._kill_within(REFUSED_SECONDS if end.code == USER_FAULT else FAILED_SECONDS)

    def _has_ranks(self, host: Host) -> bool:
        """Whether some of its ranks have not ended yet, as far as is known."""
        return sum(end.host == str(host) for end in self._ends) < self._job.ranks_per_node

    def _lose(self, host: Host, reason: str) -> None:
        if not self._was_killed and not self._refused and str(host) not in {one.host for one in self._lost}:
            self._lost.append(HostLost(str(host), reason))
            self._kill_within(0)

    def _kill_within(self, seconds: float) -> None:
        at = asyncio.get_running_loop().time() + seconds
        self._kill_at = at if self._kill_at is None else min(at, self._kill_at)

    def _take_signal(self, number: int) -> None:
        now = asyncio.get_running_loop().time()
        if self._signal is None:
            self._signal, self._signal_time = number, now
            self._send_all({"signal": signal.SIGTERM if number == signal.SIGHUP else number})
        elif now - self._signal_time >= REPEAT_SECONDS:
            self._kill_within(0)

    def _show(self, host: Host, message: Message) -> None:
        """What a rank has printed, as it is for the first rank, with its name for the others."""
        prefix = "" if message["rank"] == 0 else f"[{host} rank {message['rank']}] "
        self._output.show(prefix + message["text"], on_stdout=message["stream"] == "stdout")
