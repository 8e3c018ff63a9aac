"""Tables of documents that `make soak` writes row by row: what was measured last stands in its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def record_row(document: Path, head: str, keys: Sequence[str], key: str, cells: str) -> None:
    """Write `head` and a row for every key that is known: `cells` for `key`, and for the others what stood there.

    A key is the first cells of a row, as in "zero2 | fp32"; `keys` has their order. Rows of other keys are dropped.
    """
    text = document.read_text(encoding="utf-8") if document.exists() else ""
    rows = {one: line for line in text.splitlines() for one in keys if line.startswith(f"| {one} |")}
    rows[key] = f"| {key} | {cells} |"
    document.write_text(head + "\n".join(rows[one] for one in keys if one in rows) + "\n", encoding="utf-8")
