"""Files of JSON lines, each about one step: rows come in, lines go out, and none is lost to a disk full for a while."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tokenizer_tools.outputs import write_whole_file

log = logging.getLogger(__name__)


class Journal:
    """Lines of one file of a run, in the order of their steps.

    Lines of steps after `step` are dropped at the start: a resumed run writes them again. Raises OSError if that fails.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        self._waiting: list[str] = []
        self.first_steps: set[float] = set()
        """Steps whose lines were there at the start."""
        if path.exists():
            text = path.read_text(encoding="utf-8", errors="replace")
            lines = [line for line in text.splitlines() if _step_of(line) <= step]
            self.first_steps = set(map(_step_of, lines))
            kept = "".join(line + "\n" for line in lines)
            if kept != text:
                write_whole_file(path, kept)

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add a line a row. What the disk does not take waits for the next call; the run goes on meanwhile.

        A number that is not finite becomes null: JSON has no word for it.
        """
        self._waiting += [json.dumps(_finite(row), allow_nan=False) + "\n" for row in rows]
        whole_bytes = None
        try:
            whole_bytes = self._path.stat().st_size if self._path.exists() else 0
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(self._waiting)
            self._waiting = []
        except OSError as error:
            if whole_bytes is not None:
                with suppress(OSError):  # no half line may stay for the next one to be stuck to
                    os.truncate(self._path, whole_bytes)
            log.warning(
                f"{self._path}: {error.strerror}; the run goes on, {len(self._waiting)} line(s) wait for the next try"
            )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # a line cut off by the kill
        return math.inf
