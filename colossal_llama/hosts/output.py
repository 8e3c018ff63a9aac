"""What the ranks print, on this terminal: lines come in and are never waited for, a thread writes them."""

from __future__ import annotations

import contextlib
import sys
import threading
from queue import Full, Queue
from typing import TextIO

from tokenizer_tools.command import silence

MOST_WAITING = 100_000
CLOSE_SECONDS = 5.0


class Output:
    """A reader that is slow, or gone, must not hold up beats and signals: what does not fit is left out and counted."""

    def __init__(self) -> None:
        self._waiting: Queue[tuple[bool, str] | None] = Queue(MOST_WAITING)
        self._num_left_out = 0
        self._thread = threading.Thread(target=self._write_all, daemon=True)
        self._thread.start()

    def show(self, line: str, on_stdout: bool) -> None:
        """Have a line written to stdout or stderr, without waiting for it."""
        try:
            self._waiting.put_nowait((on_stdout, line))
        except Full:
            self._num_left_out += 1

    def close(self) -> bool:
        """Wait until all is written, for CLOSE_SECONDS at most. Whether it is: the interpreter cannot end if not."""
        with contextlib.suppress(Full):
            self._waiting.put(None, timeout=CLOSE_SECONDS)
            self._thread.join(CLOSE_SECONDS)
        return not self._thread.is_alive()

    def _write_all(self) -> None:
        while (item := self._waiting.get()) is not None:
            on_stdout, line = item
            left_out, self._num_left_out = self._num_left_out, 0
            _write(sys.stdout if on_stdout else sys.stderr, line)
            if left_out:
                _write(sys.stderr, f"[{left_out} lines came faster than they could be written, and were left out]")


def _write(stream: TextIO, line: str) -> None:
    """A stream that nobody reads any more, or whose disk is full, is written to no longer."""
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(line.encode(encoding, "replace").decode(encoding) + "\n")
        stream.flush()
    except OSError:
        silence(stream)
