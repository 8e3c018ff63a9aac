"""The verdict of a rehearsal: its checks one after another, each timed, and the table at the end."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

Found = TypeVar("Found")

WIDTH_CHARACTERS = 120

log = logging.getLogger(__name__)


class Fault(Exception):  # noqa: N818  it is one line, without a traceback
    """The rehearsed run does what it must not, and the user's input is not to blame. The text is one line."""


@dataclass(frozen=True)
class Row:
    """One check of the table. `seconds` is how long it took."""

    name: str
    passed: bool
    seconds: float
    line: str


@dataclass
class Verdict:
    """What a rehearsal has found so far."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What the user has to know and what is no failure."""

    def check(self, name: str, action: Callable[[], Found]) -> Found:
        """Run `action`; what it returns says as a string what was found. One line goes to stderr before it.

        What it raises becomes a row too, and is raised on.
        """
        log.info(f"rehearsal: {name} ...")
        start = time.monotonic()
        try:
            found = action()
        except Exception as error:
            self.rows.append(Row(name, False, time.monotonic() - start, " ".join(f"{error}".split()) or repr(error)))
            raise
        self.rows.append(Row(name, True, time.monotonic() - start, f"{found}"))
        return found

    @property
    def seconds(self) -> float:
        """Of all checks."""
        return sum(row.seconds for row in self.rows)

    def text(self) -> str:
        """The table, and the notes below it. No last break."""
        from rich.console import Console
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        table.add_column("check", no_wrap=True)
        table.add_column("verdict")
        table.add_column("s", justify="right")
        table.add_column("what was found")
        for row in self.rows:
            table.add_row(row.name, "passed" if row.passed else "FAILED", f"{row.seconds:.0f}", row.line)
        console = Console(file=io.StringIO(), width=WIDTH_CHARACTERS, color_system=None, markup=False, highlight=False)
        with console.capture() as capture:
            console.print(table)
        return "\n".join([*(line.rstrip() for line in capture.get().splitlines()), *self.notes])
