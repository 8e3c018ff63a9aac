"""What was refused: records of parts come in, `refused.jsonl`, a line of log and a limit go out."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_tools.chunks import PLACE_COLUMNS, read_columns
from data_tools.cleaning import REASONS
from data_tools.counts import RecordCounts
from data_tools.documents import Documents, numbered
from data_tools.duplicates import Kept
from data_tools.fields import ReadOptions
from data_tools.intake import REFUSED_NAME, PartRecord
from data_tools.reasons import way_out
from data_tools.records import Refusal
from tokenizer_tools.command import UserError

logger = logging.getLogger(__name__)


def refusals(records: Sequence[PartRecord], cache_dir: Path) -> Iterator[Refusal]:
    """Every refused line, in the order of the files, its line number counted from the beginning of the file."""
    for record, lines_before, _ in numbered(records):
        with (cache_dir / record["key"] / REFUSED_NAME).open(encoding="utf-8") as lines:
            for line in lines:
                span, file, line_number, *rest = json.loads(line)
                yield Refusal(file, line_number + lines_before[span], *rest)


def duplicate_refusals(
    records: Sequence[PartRecord], cache_dir: Path, documents: Documents, kept: Kept
) -> Iterator[Refusal]:
    """Every document that was dropped for another one."""
    end = 0
    for record, lines_before, _ in numbered(records):
        for chunk in record["chunks"]:
            first, end = end, end + sum(chunk["batch_documents"])
            found = {reason: np.flatnonzero(is_dropped[first:end]) for reason, is_dropped in kept.dropped.items()}
            if not any(map(len, found.values())):
                continue
            places = read_columns(cache_dir / record["key"] / chunk["name"], PLACE_COLUMNS)
            for reason, dropped in found.items():
                for index in dropped.tolist():
                    span, line_number, byte_offset = (int(places[name][index]) for name in PLACE_COLUMNS)
                    category = documents.category_names[documents.category[first + index]]
                    offset = byte_offset if byte_offset >= 0 else None
                    line = line_number + lines_before[span]
                    yield Refusal(record["files"][span], line, offset, reason, category)


def write_refused(path: Path, found: Iterator[Refusal]) -> None:
    """Write `refused.jsonl`: {"file", "line_number", "byte_offset", "reason", "category"} a line."""
    with path.open("w", encoding="utf-8") as file:
        for refusal in found:
            file.write(json.dumps(refusal._asdict(), ensure_ascii=False) + "\n")


def most_refused(flag: str | None, num_read: int) -> float:
    """How many lines may be refused of `num_read`. Raises UserError for a flag that is neither count nor share."""
    if flag is None:
        return math.inf
    try:
        number = float(flag)
    except ValueError:
        number = -1.0
    is_share = "." in flag and number <= 1
    if not number >= 0 or not (is_share or number.is_integer()):
        raise UserError(f"--max_refused {flag}: choose a count (100) or a share (0.01)")
    return number * num_read if is_share else number


def check_refused(flag: str | None, counts: RecordCounts, first: Refusal | None, options: ReadOptions) -> None:
    """Raise UserError if more lines are refused than --max_refused allows, or if no document is left.

    What cleaning leaves out is asked for, and does not count.
    """
    said = _in_words(counts, first, options)
    num_damaged = sum(count for (_, reason), count in counts.refused.items() if reason not in REASONS)
    ledger = counts.ledger()
    num_refused = sum(ledger["refused"].values())
    if not ledger["kept"]:
        reason = said or "every file is empty"
        raise UserError(f'no document is left: {reason}; write one {{"target": "..."}} a line')
    if num_damaged > most_refused(flag, ledger["read"]):
        raise UserError(
            f"{said}: {num_damaged} are more than --max_refused {flag} of {ledger['read']} lines; mend the text or "
            "raise the limit"
        )
    if num_refused:
        logger.warning("warning: %s; all are listed in %s of the output", said, REFUSED_NAME)


def _in_words(counts: RecordCounts, first: Refusal | None, options: ReadOptions) -> str:
    """ "refused 3 invalid_json, 1 empty_target, the first at a.jsonl:7 (what it means)", or nothing."""
    refused = counts.ledger()["refused"]
    if not refused:
        return ""
    words = ", ".join(f"{count} {reason}" for reason, count in refused.items())
    if first is None:
        return f"refused {words}"
    meaning = way_out(first.reason, options) or REASONS.get(first.reason)
    return f"refused {words}, the first at {first.file}:{first.line_number}" + (f" ({meaning})" if meaning else "")
