"""The contract between data preparation and training: counts come in, `manifest.json` goes out and is read back.

The ledger closes, for each category and in total: tokens in = tokens in bins + tokens dropped by reason, and records
read = kept + refused by reason. Nothing in it depends on the machine, the clock or the order of files.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np

from data_tools.arrange import Arrangement
from data_tools.buckets import groups
from data_tools.counts import RecordCounts, RecordLedger
from data_tools.documents import Documents
from tokenizer_tools.command import UserError
from tokenizer_tools.lineage import Record
from tokenizer_tools.outputs import read_json, write_json

MANIFEST_NAME = "manifest.json"
VERSION = 1

TokenLedger = TypedDict("TokenLedger", {"in": int, "in_bins": int, "dropped": dict[str, int], "repeated": int})


class FileCounts(TypedDict):
    """Files `read`, and those `skipped` because they are of no known format, by suffix."""

    read: int
    skipped: dict[str, int]


class PlacedLedger(RecordLedger):
    """Also how many documents lie in the bins: the kept ones without those left out, with those repeated."""

    placed: int


class CategoryEntry(TypedDict):
    """One category over all buckets.

    `bytes` (UTF-8) and `characters` are those of the text that bears loss, of whole documents, as often as they are
    placed. `length_histogram`: entry i counts the documents of 2**i up to 2**(i+1) - 1 tokens, before any is cut.
    """

    tokens: TokenLedger
    records: PlacedLedger
    loss_tokens: int
    bytes: int
    characters: int
    length_histogram: list[int]


class BucketCategory(TypedDict):
    """One category within one bucket."""

    documents: int
    tokens: int
    loss_tokens: int
    bytes: int


class BucketEntry(TypedDict):
    """One bucket. `path` is relative to the manifest, `sha256` that of the bucket's only .arrow file.

    `fill_histogram`: rows by fill, in 20 steps of 5 %; the last step includes full rows.
    """

    path: str
    rows: int
    documents: int
    tokens: int
    loss_tokens: int
    bytes: int
    sha256: str
    fill_histogram: list[int]
    categories: dict[str, BucketCategory]


class _Lineage(TypedDict, total=False):
    made_from: dict[str, Record]


class Manifest(_Lineage):
    """`manifest.json`, version 1. `fill` = tokens / (rows * max_length); rows index `category_names`.

    `records` also counts lines whose category cannot be read, which `categories` cannot. `settings` are the flags that
    decide the bytes. `documents_sha256` is over the sorted content hashes of all documents that were kept.
    `made_from` {"tokenizer": its record} is missing in older ones.
    """

    version: int
    tokenizer_fingerprint: str
    settings: dict[str, Any]
    documents_sha256: str
    max_length: int
    num_buckets: int
    seed: int
    fill: float
    files: FileCounts
    records: PlacedLedger
    tokens: TokenLedger
    loss_tokens: int
    bytes: int
    characters: int
    category_names: list[str]
    categories: dict[str, CategoryEntry]
    buckets: list[BucketEntry]


@dataclass(frozen=True)
class WrittenBin:
    """What lies in a bin, counted from the very rows that were written.

    `tokens` and `loss_tokens` are [categories] int64, `fill_histogram` is [20] int64; `sha256` is that of the rows,
    `sources_sha256` of where they were read.
    """

    num_rows: int
    tokens: np.ndarray
    loss_tokens: np.ndarray
    fill_histogram: np.ndarray
    sha256: str
    sources_sha256: str


def bucket_entry(
    path: str, written: WrittenBin, category: np.ndarray, text_bytes: np.ndarray, category_names: Sequence[str]
) -> BucketEntry:
    """The entry of a bucket that holds documents of `category` with `text_bytes`, [documents] int64."""
    num_documents = np.bincount(category, minlength=len(category_names))
    num_bytes = np.bincount(category, text_bytes, minlength=len(category_names)).astype(np.int64)
    categories: dict[str, BucketCategory] = {
        category_names[index]: {
            "documents": int(num_documents[index]),
            "tokens": int(written.tokens[index]),
            "loss_tokens": int(written.loss_tokens[index]),
            "bytes": int(num_bytes[index]),
        }
        for index in np.flatnonzero(num_documents).tolist()
    }
    return {
        "path": path,
        "rows": written.num_rows,
        "documents": len(category),
        "tokens": int(written.tokens.sum()),
        "loss_tokens": int(written.loss_tokens.sum()),
        "bytes": int(num_bytes.sum()),
        "sha256": written.sha256,
        "fill_histogram": written.fill_histogram.tolist(),
        "categories": categories,
    }


def category_entries(
    counts: RecordCounts, documents: Documents, arrangement: Arrangement, buckets: list[BucketEntry]
) -> dict[str, CategoryEntry]:
    """The ledger of each category: tokens in come from the arrangement, tokens in bins from what was written."""
    placed = arrangement.document
    category = documents.category[placed]
    characters = np.bincount(category, documents.text_characters[placed], minlength=len(documents.category_names))
    power = np.frexp(documents.length[placed].astype(np.float64))[1] - 1
    members = groups(category, len(documents.category_names))
    parts_of: dict[str, list[BucketCategory]] = {name: [] for name in documents.category_names}
    for bucket in buckets:
        for name, part in bucket["categories"].items():
            parts_of[name].append(part)
    ledgers = counts.ledgers()
    entries: dict[str, CategoryEntry] = {}
    for index, name in enumerate(documents.category_names):
        parts = parts_of[name]
        flow = arrangement.flows[index]
        entries[name] = {
            "tokens": {
                "in": flow.come_in,
                "in_bins": sum(part["tokens"] for part in parts),
                "dropped": dict(sorted(flow.dropped.items())),
                "repeated": flow.repeated,
            },
            "records": {**ledgers[name], "placed": sum(part["documents"] for part in parts)},
            "loss_tokens": sum(part["loss_tokens"] for part in parts),
            "bytes": sum(part["bytes"] for part in parts),
            "characters": int(characters[index]),
            "length_histogram": np.bincount(power[members[index]]).tolist(),
        }
    return entries


def build_manifest(
    *,
    tokenizer: Record,
    settings: dict[str, Any],
    max_length: int,
    seed: int,
    files: FileCounts,
    counts: RecordCounts,
    documents: Documents,
    kept: np.ndarray,
    arrangement: Arrangement,
    buckets: list[BucketEntry],
) -> Manifest:
    """The whole manifest: what came in beside what was written.

    `tokenizer` is its record (`tokenizer_tools/lineage.py`), `kept` is [documents] bool.
    """
    categories = category_entries(counts, documents, arrangement, buckets)
    flows = arrangement.flows
    dropped = sum((flow.dropped for flow in flows), Counter[str]())
    in_bins = sum(bucket["tokens"] for bucket in buckets)
    num_rows = sum(bucket["rows"] for bucket in buckets)
    return {
        "version": VERSION,
        "tokenizer_fingerprint": tokenizer["tokenizer_fingerprint"],
        "made_from": {"tokenizer": tokenizer},
        "settings": settings,
        "documents_sha256": hashlib.sha256(np.sort(documents.hash[kept]).astype(">u8").tobytes()).hexdigest(),
        "max_length": max_length,
        "num_buckets": len(buckets),
        "seed": seed,
        "fill": in_bins / (max_length * num_rows) if num_rows else 0.0,
        "files": files,
        "records": {**counts.ledger(), "placed": sum(bucket["documents"] for bucket in buckets)},
        "tokens": {
            "in": sum(flow.come_in for flow in flows),
            "in_bins": in_bins,
            "dropped": dict(sorted(dropped.items())),
            "repeated": sum(flow.repeated for flow in flows),
        },
        "loss_tokens": sum(bucket["loss_tokens"] for bucket in buckets),
        "bytes": sum(bucket["bytes"] for bucket in buckets),
        "characters": sum(entry["characters"] for entry in categories.values()),
        "category_names": documents.category_names,
        "categories": categories,
        "buckets": buckets,
    }


def check_ledger(manifest: Manifest) -> None:
    """Raise RuntimeError if a sum does not come out: a token or a record would have been lost or doubled."""
    ledgers = {name: (entry["tokens"], entry["records"]) for name, entry in manifest["categories"].items()}
    for name, (tokens, records) in [("in total", (manifest["tokens"], manifest["records"])), *ledgers.items()]:
        if tokens["in"] != tokens["in_bins"] + sum(tokens["dropped"].values()):
            raise RuntimeError(f"token ledger does not close, {name}: {tokens}")
        if records["read"] != records["kept"] + sum(records["refused"].values()):
            raise RuntimeError(f"record ledger does not close, {name}: {records}")
    categories, buckets = manifest["categories"].values(), manifest["buckets"]
    sums = {
        "tokens in": (manifest["tokens"]["in"], sum(entry["tokens"]["in"] for entry in categories)),
        "tokens in bins": (manifest["tokens"]["in_bins"], sum(bucket["tokens"] for bucket in buckets)),
        "records kept": (manifest["records"]["kept"], sum(entry["records"]["kept"] for entry in categories)),
        "documents": (manifest["records"]["placed"], sum(bucket["documents"] for bucket in buckets)),
        "tokens dropped": (
            sum(manifest["tokens"]["dropped"].values()),
            sum(sum(entry["tokens"]["dropped"].values()) for entry in categories),
        ),
    }
    for name, (total, of_parts) in sums.items():
        if total != of_parts:
            raise RuntimeError(f"ledger does not close: {name} {total}, sum of parts {of_parts}")


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.json`. Raises RuntimeError if its ledger does not close."""
    check_ledger(manifest)
    write_json(directory / MANIFEST_NAME, manifest)


def read_manifest(directory: Path) -> Manifest:
    """Read `manifest.json` of a prepared dataset. Raises UserError if it is none, or of another version."""
    path = directory / MANIFEST_NAME
    manifest = read_json(path, "the manifest of prepare_pretrain_dataset")
    if manifest.get("version") != VERSION or not manifest.keys() >= Manifest.__required_keys__:
        raise UserError(
            f"{path}: not a version {VERSION} manifest of prepare_pretrain_dataset (version "
            f"{manifest.get('version')!r}); prepare the dataset again with this checkout"
        )
    return cast(Manifest, manifest)
