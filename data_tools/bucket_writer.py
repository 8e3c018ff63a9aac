"""Writes buckets: the arrangement comes in, one directory a bucket and its entry of the manifest go out.

A task holds some neighbouring buckets, so that what lies together on the disk is read once, or one bucket that is read
shard by shard. A bucket that an earlier run has finished is recognised by its record and by its hash.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_tools.arrange import Arrangement
from data_tools.bin_writer import ARROW_NAME, write_bin, write_state
from data_tools.buckets import shards
from data_tools.chunks import read_documents
from data_tools.documents import ChunkFile, Documents
from data_tools.encode import bears_loss_whole, labels_of
from data_tools.manifest import BucketEntry, bucket_entry
from data_tools.parts import is_intact
from data_tools.rows import RowBatch, Shard, row_batches
from data_tools.sources import SOURCES_NAME
from tokenizer_tools.command import UserError
from tokenizer_tools.outputs import read_json

SHARD_TOKENS = 2**23  # in memory at a time, a worker


@dataclass(frozen=True)
class BucketTask:
    """Buckets `first`, `first` + 1, ...; arrays are [entries], bucket by bucket, `borders` [buckets + 1]."""

    first: int
    borders: np.ndarray
    chunk: np.ndarray
    place: np.ndarray
    category: np.ndarray
    length: np.ndarray
    text_bytes: np.ndarray
    file: np.ndarray
    line_number: np.ndarray
    common: BucketPlan


@dataclass(frozen=True)
class BucketPlan:
    """What all tasks share. `key` is a digest of everything that decides the bytes of a bucket."""

    chunks: list[ChunkFile]
    category_names: list[str]
    max_length: int
    seed: int
    dtype: np.dtype
    bins_dir: Path
    records_dir: Path
    key: str


def bucket_tasks(documents: Documents, arrangement: Arrangement, plan: BucketPlan) -> list[BucketTask]:
    """Neighbouring buckets together, as long as they fit into memory together."""
    borders = arrangement.borders
    tokens = np.concatenate([[0], np.cumsum(arrangement.length)])[borders]
    tasks: list[BucketTask] = []
    first = 0
    for last in range(1, len(borders)):
        if last == len(borders) - 1 or tokens[last + 1] - tokens[first] > SHARD_TOKENS:
            entries = slice(borders[first], borders[last])
            document = arrangement.document[entries]
            tasks.append(
                BucketTask(
                    first,
                    borders[first : last + 1] - borders[first],
                    documents.chunk[document],
                    documents.place[document],
                    documents.category[document],
                    arrangement.length[entries],
                    documents.text_bytes[document],
                    documents.file[document],
                    documents.line_number[document],
                    plan,
                )
            )
            first = last
    return tasks


def write_buckets(task: BucketTask) -> list[BucketEntry]:
    """Write the buckets of a task and give their entries of the manifest."""
    found = [_finished(task.common, f"part-{task.first + index:05d}") for index in range(len(task.borders) - 1)]
    is_read = None in found and len(found) > 1 and len(task.length) > 0
    together = _read(task, slice(0, len(task.length))) if is_read else None
    return [_write(task, index, together) if entry is None else entry for index, entry in enumerate(found)]


def _finished(plan: BucketPlan, name: str) -> BucketEntry | None:
    """The entry of a bucket that an earlier run has written to the end, from the same plan, and that is intact."""
    try:
        record = read_json(plan.records_dir / f"{name}.json", "the record of a bucket")
    except UserError:
        return None
    directory = plan.bins_dir / name
    if record.get("key") != plan.key or "sources_sha256" not in record:
        return None
    files = {ARROW_NAME: record["entry"]["sha256"], SOURCES_NAME: record["sources_sha256"]}
    if not all(is_intact((directory / file, sha256)) for file, sha256 in files.items()):
        return None
    write_state(directory, record["entry"]["sha256"])
    return record["entry"]


def _write(task: BucketTask, index: int, together: Shard | None) -> BucketEntry:
    plan, number = task.common, task.first + index
    name = f"part-{number:05d}"
    members = slice(task.borders[index], task.borders[index + 1])
    (plan.records_dir / f"{name}.json").unlink(missing_ok=True)
    shutil.rmtree(plan.bins_dir / name, ignore_errors=True)
    written = write_bin(
        plan.bins_dir / name,
        _batches(task, members, together, [plan.seed, number]),
        plan.dtype,
        len(plan.category_names),
        plan.max_length,
    )
    category, text_bytes = task.category[members], task.text_bytes[members]
    entry = bucket_entry(name, written, category, text_bytes, plan.category_names)
    record = json.dumps({"key": plan.key, "entry": entry, "sources_sha256": written.sources_sha256})
    (plan.records_dir / f"{name}.json").write_text(record, encoding="utf-8")  # half of one counts as none
    return entry


def _batches(task: BucketTask, members: slice, together: Shard | None, seed: list[int]) -> Iterator[RowBatch]:
    max_length = task.common.max_length
    if members.start == members.stop:
        return
    if together is not None:
        facts = (
            getattr(together, name)[members] for name in ("first_token", "category", "lengths", "file", "line_number")
        )
        yield from row_batches(Shard(together.tokens, together.labels, *facts), max_length, seed)
        return
    for number, entries in enumerate(shards(task.length, SHARD_TOKENS)):
        yield from row_batches(_read(task, entries), max_length, [*seed, number])


def _read(task: BucketTask, entries: slice) -> Shard:
    """The documents of some entries. They lie in memory as on the disk; `first_token` brings them into their order."""
    chunk, place = task.chunk[entries], task.place[entries]
    order = np.lexsort((place, chunk))
    used, first = np.unique(chunk[order], return_index=True)
    places = np.split(place[order], first[1:])
    parts = [
        read_documents(file.path, file.batch_documents, chosen)
        for file, chosen in zip((task.common.chunks[index] for index in used.tolist()), places, strict=True)
    ]
    lengths = np.concatenate([part.lengths for part in parts])
    first_token = np.empty(len(order), np.int64)
    first_token[order] = np.cumsum(lengths) - lengths
    return Shard(
        tokens=np.concatenate([part.tokens for part in parts]).astype(task.common.dtype, copy=False),
        labels=None if all(map(bears_loss_whole, parts)) else np.concatenate([labels_of(part) for part in parts]),
        first_token=first_token,
        category=task.category[entries],
        lengths=task.length[entries],
        file=task.file[entries],
        line_number=task.line_number[entries],
    )
