"""What became of the input lines: counts come in one by one, ledgers by category and in total go out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypedDict

CountRow = tuple[str | None, str, int]  # category, "read", "kept" or the reason of a refusal, lines
READ, KEPT = "read", "kept"


class RecordLedger(TypedDict):
    """Lines that are not blank: `read` = `kept` + the sum of `refused`."""

    read: int
    kept: int
    refused: dict[str, int]


@dataclass
class RecordCounts:
    """What became of the lines, by category (None: the line does not tell it)."""

    read: Counter[str | None] = field(default_factory=Counter)
    kept: Counter[str | None] = field(default_factory=Counter)
    refused: Counter[tuple[str | None, str]] = field(default_factory=Counter)

    @property
    def category_names(self) -> list[str]:
        """Every category that was read, sorted, also those of which nothing was kept."""
        return sorted(category for category in self.read if category is not None)

    def rows(self) -> list[CountRow]:
        """The same counts as plain data."""
        named = [(READ, self.read), (KEPT, self.kept)]
        rows = [(category, what, count) for what, counter in named for category, count in counter.items()]
        return rows + [(category, reason, count) for (category, reason), count in self.refused.items()]

    def add(self, rows: Iterable[CountRow]) -> None:
        """Add what another one has counted."""
        for category, what, count in rows:
            if what == READ:
                self.read[category] += count
            elif what == KEPT:
                self.kept[category] += count
            else:
                self.refused[category, what] += count

    def refuse_kept(self, category: str, reason: str, count: int) -> None:
        """Documents that were kept are refused after all."""
        if count:
            self.kept[category] -= count
            self.refused[category, reason] += count

    def ledger(self) -> RecordLedger:
        """The ledger of all lines."""
        refused: Counter[str] = Counter()
        for (_, reason), count in self.refused.items():
            refused[reason] += count
        return {"read": self.read.total(), "kept": self.kept.total(), "refused": dict(sorted(refused.items()))}

    def ledgers(self) -> dict[str, RecordLedger]:
        """The ledger of each category, sorted by its name."""
        ledgers: dict[str, RecordLedger] = {
            name: {"read": self.read[name], "kept": self.kept[name], "refused": {}} for name in self.category_names
        }
        for (name, reason), count in sorted(self.refused.items(), key=lambda item: item[0][1]):
            if name is not None:
                ledgers[name]["refused"][reason] = count
        return ledgers
