"""One part of the input: it is read, cleaned and encoded, and lies in the cache as a directory when it is done.

`<cache>/<key>/` holds chunk-00000.arrow, ... (documents), refused.jsonl and record.json. The key is a hash of all that
the part is made of, so a finished part is found again by what it holds, and never by its name or a mark beside it.
"""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict, cast

import numpy as np
import xxhash

from data_tools.backends import BackendDiffersError, BackendName
from data_tools.chunks import Facts, write_chunk
from data_tools.counts import CountRow, RecordCounts
from data_tools.encode import Encoded, chosen_documents, encode_records
from data_tools.input_files import shown_name
from data_tools.parts import Part, digest_of, file_digest, is_intact, key_of
from data_tools.readers import read_span
from data_tools.records import Record, Refusal
from data_tools.tools import Settings, Tools, tools_of
from tokenizer_tools.command import UserError
from tokenizer_tools.outputs import read_json, write_json

CHUNK_BYTES = 2**23  # of text: what is in memory at a time
CHUNK_DOCUMENTS = 2**16  # the same, of very short documents
CHECK_EVERY = 512  # one document of so many is also encoded by the reference
RECORD_NAME = "record.json"
REFUSED_NAME = "refused.jsonl"
PARTIAL = ".partial"


@dataclass(frozen=True)
class Job:
    """Settings, the library that encodes, and where the parts lie; `key` is a digest of what decides a part's bytes."""

    settings: Settings
    backend: BackendName
    cache_dir: Path
    key: str


class ChunkRecord(TypedDict):
    """One chunk file of a part."""

    name: str
    sha256: str
    batch_documents: list[int]
    num_tokens: int


class PartRecord(TypedDict):
    """What became of a part: `record.json`. `files`, `digests` and `num_lines` have an entry a span."""

    key: str
    files: list[str]
    digests: list[str]
    num_lines: list[int]
    refused_sha256: str
    category_names: list[str]
    counts: list[CountRow]
    chunks: list[ChunkRecord]


def encode_part(task: tuple[Part, Job]) -> tuple[PartRecord, bool]:
    """(the record of a part, whether it was made already).

    Raises BackendDiffersError if the fast library and the reference give different ids for a document of this part.
    """
    part, job = task
    gc.disable()  # records are many and hold no cycles: looking for some costs a sixth of the time
    try:
        return _encode_part(part, job)
    finally:
        gc.enable()


def _encode_part(part: Part, job: Job) -> tuple[PartRecord, bool]:
    digests = [digest_of(span) for span in part.spans]
    key = key_of(part, digests, job.key)
    directory = job.cache_dir / key
    finished = finished_part(directory)
    if finished is not None:
        return finished, True
    aside = Path(tempfile.mkdtemp(prefix=f".{key[:12]}.", suffix=PARTIAL, dir=job.cache_dir))
    try:
        record = _Intake(part, job, aside).run(key, digests)
        for span, digest in zip(part.spans, digests, strict=True):
            if digest_of(span) != digest:
                raise UserError(f"{shown_name(span.path)}: changed while it was read; run the same command again")
        write_json(aside / RECORD_NAME, {"record": record, "sha256": _digest(record)})
        shutil.rmtree(directory, ignore_errors=True)  # there only if it is damaged
        aside.rename(directory)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return record, False


def finished_part(directory: Path) -> PartRecord | None:
    """The record of a part that was finished and is intact, else None."""
    try:
        stored = read_json(directory / RECORD_NAME, "the record of an encoded part")
    except UserError:
        return None
    record = cast(PartRecord, stored.get("record"))
    if stored.get("sha256") != _digest(record) or record["key"] != directory.name:
        return None
    files = [(chunk["name"], chunk["sha256"]) for chunk in record["chunks"]]
    files.append((REFUSED_NAME, record["refused_sha256"]))
    return record if all(is_intact((directory / name, sha256)) for name, sha256 in files) else None


def _digest(record: PartRecord) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


class _Batch(NamedTuple):
    """Records, and for each the index of its span."""

    span_indices: list[int]
    records: list[Record]

    def at(self, places: list[int]) -> _Batch:
        """The records at `places`, in this order."""
        return _Batch([self.span_indices[place] for place in places], [self.records[place] for place in places])


class _Intake:
    """Reads one part into `directory`; holds what lies between two chunks."""

    def __init__(self, part: Part, job: Job, directory: Path) -> None:
        self._part = part
        self._job = job
        self._tools: Tools = tools_of(job.settings)
        self._directory = directory
        self._counts = RecordCounts()
        self._categories: dict[str, int] = {}
        self._chunks: list[ChunkRecord] = []

    def run(self, key: str, digests: list[str]) -> PartRecord:
        num_lines: list[int] = []
        with (self._directory / REFUSED_NAME).open("w", encoding="utf-8") as self._refused_file:
            waiting = _Batch([], [])
            size = 0
            for span_index, item in self._read(num_lines):
                if isinstance(item, Refusal):
                    self._refuse(span_index, item)
                    continue
                waiting.span_indices.append(span_index)
                waiting.records.append(item)
                size += sum(len(segment.text) for segment in item.segments)
                if size >= CHUNK_BYTES or len(waiting.records) >= CHUNK_DOCUMENTS:
                    self._encode(waiting)
                    waiting, size = _Batch([], []), 0
            self._encode(waiting)
        return {
            "key": key,
            "files": [shown_name(span.path) for span in self._part.spans],
            "digests": digests,
            "num_lines": num_lines,
            "refused_sha256": file_digest(self._directory / REFUSED_NAME),
            "category_names": list(self._categories),
            "counts": self._counts.rows(),
            "chunks": self._chunks,
        }

    def _read(self, num_lines: list[int]) -> Iterator[tuple[int, Record | Refusal]]:
        for index, span in enumerate(self._part.spans):
            reader = read_span(span, self._tools.read_options)
            for item in reader:
                self._counts.read[item.category] += 1
                yield index, item
            num_lines.append(reader.num_lines)

    def _refuse(self, span_index: int, refusal: Refusal) -> None:
        """A line of refused.jsonl; the line number still counts from the beginning of the span."""
        self._counts.refused[refusal.category, refusal.reason] += 1
        self._refused_file.write(json.dumps([span_index, *refusal], ensure_ascii=False) + "\n")

    def _without(self, batch: _Batch, reasons: Sequence[str | None]) -> _Batch:
        """Refuse the records that have a reason; the others."""
        if not any(reasons):
            return batch
        for span_index, record, reason in zip(batch.span_indices, batch.records, reasons, strict=True):
            if reason is not None:
                place = (record.file, record.line_number, record.byte_offset)
                self._refuse(span_index, Refusal(*place, reason, record.category))
        return batch.at([place for place, reason in enumerate(reasons) if reason is None])

    def _encode(self, batch: _Batch) -> None:
        """Clean, sort by content, encode and write one chunk."""
        if self._tools.cleaner.is_on:
            batch = self._without(batch, self._tools.cleaner.faults([_text_of(record) for record in batch.records]))
        hashes = np.array([content_hash(record) for record in batch.records], np.uint64)
        ranks = {name: rank for rank, name in enumerate(sorted({record.category for record in batch.records}))}
        order = np.lexsort((np.array([ranks[record.category] for record in batch.records], np.int64), hashes))
        batch, hashes = batch.at(order.tolist()), hashes[order]
        encoded = encode_records(self._tools.encoders(self._job.backend), batch.records)
        if not encoded.has_text.all():
            kept = np.flatnonzero(encoded.has_text)
            reasons = [None if has_text else "target_without_tokens" for has_text in encoded.has_text.tolist()]
            batch, hashes, encoded = self._without(batch, reasons), hashes[kept], chosen_documents(encoded, kept)
        if batch.records:
            self._check(batch, hashes, encoded)
            self._write(self._facts(batch, hashes), encoded)

    def _facts(self, batch: _Batch, hashes: np.ndarray) -> Facts:
        records = batch.records
        names = [record.category for record in records]
        self._counts.kept.update(names)
        for name in dict.fromkeys(names):
            self._categories.setdefault(name, len(self._categories))
        texts = [loss_text(record) for record in records]
        return Facts(
            hash=hashes,
            category=np.array([self._categories[name] for name in names], np.int32),
            text_bytes=np.array([len(text.encode()) for text in texts], np.int64),
            text_characters=np.array([len(text) for text in texts], np.int64),
            span=np.array(batch.span_indices, np.int32),
            line_number=np.array([record.line_number for record in records], np.int64),
            byte_offset=np.array([_or_none(record.byte_offset) for record in records], np.int64),
            sketch=self._tools.cleaner.sketches(list(map(_text_of, records)) if self._tools.cleaner.is_on else []),
        )

    def _check(self, batch: _Batch, hashes: np.ndarray, encoded: Encoded) -> None:
        """Hold a few documents against the reference, chosen by what they hold."""
        for place in np.flatnonzero(hashes % np.uint64(CHECK_EVERY) == 0).tolist():
            record = batch.records[place]
            reference = encode_records(self._tools.reference, [record])
            if not np.array_equal(reference.tokens, chosen_documents(encoded, np.array([place])).tokens):
                raise BackendDiffersError(
                    f"{self._job.backend} gives other ids than the tokenizer does for a document of {record.file}"
                )

    def _write(self, facts: Facts, encoded: Encoded) -> None:
        name = f"chunk-{len(self._chunks):05d}.arrow"
        batch_documents = write_chunk(self._directory / name, facts, encoded, self._tools.dtype)
        self._chunks.append(
            {
                "name": name,
                "sha256": file_digest(self._directory / name),
                "batch_documents": batch_documents,
                "num_tokens": len(encoded.tokens),
            }
        )


def _text_of(record: Record) -> str:
    """What cleaning looks at: all text of a record."""
    if len(record.segments) == 1:
        return record.segments[0].text
    return "\n".join(segment.text for segment in record.segments if not segment.is_control)


def loss_text(record: Record) -> str:
    """The text that bears loss."""
    if len(record.segments) == 1:
        return record.segments[0].text
    return "".join(segment.text for segment in record.segments if segment.has_loss and not segment.is_control)


def content_hash(record: Record) -> int:
    """64 bits over what a record holds. Clean text has no NUL: segments joined by it are no other record's."""
    if len(record.segments) == 1 and not record.is_framed:
        return xxhash.xxh3_64_intdigest(record.segments[0].text.encode())
    is_framed = "\0" if record.is_framed else ""
    segments = (f"\0{segment.has_loss:d}{segment.is_control:d}{segment.text}" for segment in record.segments)
    return xxhash.xxh3_64_intdigest((is_framed + "".join(segments)).encode())


def _or_none(byte_offset: int | None) -> int:
    return -1 if byte_offset is None else byte_offset
