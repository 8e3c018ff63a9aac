"""One thing that the pre-flight has found: on which hosts, what, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

MOST_NAMED = 8


@dataclass(frozen=True)
class Finding:
    """A fault keeps a run from starting or from being right; anything else is a warning."""

    places: tuple[str, ...]
    """Hosts, or lines such as `h0 -> h1`."""
    what: str
    """The value and the rule."""
    cure: str
    is_fault: bool = True

    def __str__(self) -> str:
        return f"{'fault' if self.is_fault else 'warning'}: {listed(self.places)}: {self.what}; {self.cure}"


def fault(place: str, what: str, cure: str) -> Finding:
    """What keeps a run from starting or from being right."""
    return Finding((place,), what, cure)


def warning(place: str, what: str, cure: str) -> Finding:
    """What a run can live with."""
    return Finding((place,), what, cure, is_fault=False)


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """The same finding of several hosts as one; faults first."""
    places: dict[tuple[bool, str, str], list[str]] = {}
    for one in findings:
        places.setdefault((one.is_fault, one.what, one.cure), []).extend(one.places)
    found = [Finding(tuple(dict.fromkeys(where)), *key[1:], is_fault=key[0]) for key, where in places.items()]
    return sorted(found, key=lambda one: not one.is_fault)


def listed(names: Iterable[str], most: int = MOST_NAMED) -> str:
    """h1, h2 and 61 more"""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
