"""Passes 2 and 3: all documents come in, one directory a bucket and its entry of the manifest go out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from data_tools.bin_writer import write_bin
from data_tools.buckets import assign_buckets, groups
from data_tools.manifest import BucketEntry, bucket_entry
from data_tools.readable import also_as_jsonl
from data_tools.rows import RowBatch, row_batches
from data_tools.spool import Documents


def write_buckets(
    documents: Documents,
    arrow_dir: Path,
    jsonl_dir: Path | None,
    *,
    num_buckets: int,
    max_length: int,
    seed: int,
    decode: Callable[[list[int]], str],
) -> list[BucketEntry]:
    """Divide the documents into buckets, then pack and write `part-00000`, `part-00001`, ... into `arrow_dir`.

    With `jsonl_dir` each bucket is also written there as readable rows, whose text `decode` makes of ids.
    """
    from tqdm import tqdm

    bucket_of_document = assign_buckets(documents.category, documents.loss_tokens, num_buckets)
    entries: list[BucketEntry] = []
    with tqdm(total=len(documents.tokens), desc="write", unit="tok", unit_scale=True, disable=None) as bar:
        for bucket, members in enumerate(groups(bucket_of_document, num_buckets)):
            name = f"part-{bucket:05d}"
            batches = _counted(row_batches(documents, members, max_length, [seed, bucket]), bar.update)
            if jsonl_dir is not None:
                batches = also_as_jsonl(batches, jsonl_dir / f"{name}.jsonl", decode, documents.category_names)
            written = write_bin(arrow_dir / name, batches, documents.tokens.dtype, len(documents.category_names))
            entries.append(bucket_entry(name, written, documents, members))
    return entries


def _counted(batches: Iterator[RowBatch], on_progress: Callable[[int], object]) -> Iterator[RowBatch]:
    for batch in batches:
        yield batch
        on_progress(len(batch.input_ids))
