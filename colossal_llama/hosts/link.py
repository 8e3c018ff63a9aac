"""The launcher's end of the way to one host: starts an agent there, sends it messages, hands on what it says."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections import deque
from collections.abc import Callable

from colossal_llama.hosts.hostfile import Host
from colossal_llama.hosts.messages import LOST_SECONDS, Message, Order, decode, encode
from colossal_llama.hosts.ssh import SSH_FAILED, python_on
from colossal_llama.hosts.way_in import why_not

AGENT = "colossal_llama.hosts.agent"
LONGEST_LINE_BYTES = 2**26
LAST_LINES = 8


class Link:
    """An agent on `host` and the process here that holds the way to it."""

    def __init__(self, host: Host, hear: Callable[[Host, Message], None]) -> None:
        self.host = host
        self.is_open = True
        self._hear = hear
        self._heard = 0.0
        self._was_heard = False
        self._process: asyncio.subprocess.Process | None = None
        self._last: deque[str] = deque(maxlen=LAST_LINES)

    async def run(self) -> None:
        """Start the agent and hear it out; at the end hand on {"gone": reason or None}."""
        try:
            process = await asyncio.create_subprocess_exec(
                *python_on(self.host, AGENT),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=LONGEST_LINE_BYTES,
                start_new_session=True,  # a terminal's Ctrl-C is the launcher's alone
            )
        except OSError as error:
            self.is_open = False
            cure = "; install it, Debian's openssh-client" if isinstance(error, FileNotFoundError) else ""
            self._hear(self.host, {"gone": f"{error.filename}: {error.strerror}{cure}"})
            return
        self._process = process
        assert process.stdout is not None
        assert process.stderr is not None
        self._heard = asyncio.get_running_loop().time()
        errors = asyncio.create_task(self._read_errors(process.stderr))
        async for line in process.stdout:
            self._heard = asyncio.get_running_loop().time()
            message = decode(line)
            self._was_heard = self._was_heard or message is not None
            if message is None:
                self._last.append(line.decode(errors="replace").strip())
            elif "beat" not in message:
                self._hear(self.host, message)
        code = await process.wait()
        await errors
        self.is_open = False
        self._hear(self.host, {"gone": self._reason(code) if code else None})

    def send(self, message: Message | Order) -> None:
        """To the agent; nothing if the way to it is closed, or takes nothing more for now."""
        if self._process is not None and self._process.stdin is not None and not self._process.stdin.is_closing():
            with contextlib.suppress(ConnectionError):
                self._process.stdin.write(encode(message))

    def excuse(self) -> None:
        """Count from now on what is not heard."""
        self._heard = asyncio.get_running_loop().time()

    @property
    def is_silent(self) -> bool:
        """Whether nothing has come from the host for so long that it counts as lost."""
        return self.is_open and asyncio.get_running_loop().time() - self._heard > LOST_SECONDS

    def cut(self) -> None:
        """Close the way from this side; an agent that still lives ends its ranks and itself."""
        if self._process is not None and self.is_open:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)

    async def _read_errors(self, stream: asyncio.StreamReader) -> None:
        async for line in stream:
            self._last.append(line.decode(errors="replace").strip())

    def _reason(self, code: int) -> str:
        """Why the way has closed, in one line; with its cure if it never was open."""
        said = "\n".join(self._last)
        if not self._was_heard:
            finding = why_not(self.host, code, said, sys.executable)
            return f"{finding.what}; {finding.cure}"
        is_cut = code in (SSH_FAILED, -signal.SIGKILL)
        return " / ".join(said.split("\n")) or ("the connection was lost" if is_cut else f"its agent ended with {code}")
