"""Reads and encodes all input: files come in, documents in a spool, refused lines in a file and the counts go out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from data_tools.counts import RecordCounts
from data_tools.encode import encode_records
from data_tools.records import Line, Record, Refusal, parse_line, read_lines
from data_tools.spool import Spool

if TYPE_CHECKING:
    from tokenizer_tools.tokenizer import TextEncoder

BATCH_BYTES = 2**20


class Intake:
    """Takes lines in; `counts` tells what became of them, `first_refusal` is kept for the message to the user."""

    def __init__(self, encoder: TextEncoder, spool: Spool, refused_file: TextIO) -> None:
        self._encoder = encoder
        self._spool = spool
        self._refused_file = refused_file
        self.counts = RecordCounts()
        self.first_refusal: Refusal | None = None

    def read(self, files: Iterable[Path], on_progress: Callable[[int], object]) -> None:
        """Read the files to their end; `on_progress` hears the number of bytes after each batch."""
        for lines in batches(read_lines(files), BATCH_BYTES):
            parsed = [parse_line(line) for line in lines]
            for refusal in parsed:
                if isinstance(refusal, Refusal):
                    self.counts.read[refusal.category] += 1
                    self._refuse(refusal)
            self._encode([record for record in parsed if isinstance(record, Record)])
            on_progress(sum(len(line.data) for line in lines))

    def _encode(self, records: list[Record]) -> None:
        for record, sequence in zip(records, encode_records(self._encoder, records), strict=True):
            self.counts.read[record.category] += 1
            if sequence is None:
                place = (record.file, record.line_number, record.byte_offset)
                self._refuse(Refusal(*place, "target_without_tokens", record.category))
            else:
                self.counts.kept[record.category] += 1
                self._spool.append(record, sequence)

    def _refuse(self, refusal: Refusal) -> None:
        self.first_refusal = self.first_refusal or refusal
        self.counts.refused[refusal.category, refusal.reason] += 1
        self._refused_file.write(json.dumps(refusal._asdict(), ensure_ascii=False) + "\n")


def batches(lines: Iterable[Line], num_bytes: int) -> Iterator[list[Line]]:
    """The same lines in lists of about `num_bytes`; a longer line is a list of its own or the end of one."""
    batch: list[Line] = []
    size = 0
    for line in lines:
        batch.append(line)
        size += len(line.data)
        if size >= num_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
