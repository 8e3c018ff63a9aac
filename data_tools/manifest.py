"""The contract between data preparation and training: counts come in, `manifest.json` goes out and is read back.

The ledger closes: tokens in = tokens in bins + tokens dropped by reason, and records read = kept + refused by reason,
for each category and in total. Nothing in it depends on the machine, the clock or the order of files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import numpy as np

from data_tools.counts import RecordCounts, RecordLedger
from data_tools.spool import Documents
from tokenizer_tools.command import UserError
from tokenizer_tools.outputs import read_json, write_json

MANIFEST_NAME = "manifest.json"
VERSION = 1

TokenLedger = TypedDict("TokenLedger", {"in": int, "in_bins": int, "dropped": dict[str, int]})


class FileCounts(TypedDict):
    """Files `read`, and those `skipped` because they are not .jsonl, by suffix."""

    read: int
    skipped: dict[str, int]


class CategoryEntry(TypedDict):
    """One category over all buckets. `bytes`: UTF-8 bytes of the text that bears loss (the targets)."""

    tokens: TokenLedger
    records: RecordLedger
    loss_tokens: int
    bytes: int


class BucketCategory(TypedDict):
    """One category within one bucket."""

    documents: int
    tokens: int
    loss_tokens: int
    bytes: int


class BucketEntry(TypedDict):
    """One bucket. `path` is relative to the manifest, `sha256` that of the bucket's only .arrow file."""

    path: str
    rows: int
    documents: int
    tokens: int
    loss_tokens: int
    bytes: int
    sha256: str
    categories: dict[str, BucketCategory]


class Manifest(TypedDict):
    """`manifest.json`, version 1. `fill` = tokens / (rows * max_length); rows index `category_names`.

    `records` also counts lines whose category cannot be read, which `categories` cannot.
    """

    version: int
    tokenizer_fingerprint: str
    max_length: int
    num_buckets: int
    seed: int
    fill: float
    files: FileCounts
    records: RecordLedger
    tokens: TokenLedger
    loss_tokens: int
    bytes: int
    category_names: list[str]
    categories: dict[str, CategoryEntry]
    buckets: list[BucketEntry]


@dataclass(frozen=True)
class WrittenBin:
    """What lies in a bin, counted from the very rows that were written. The arrays are [categories] int64."""

    num_rows: int
    tokens: np.ndarray
    loss_tokens: np.ndarray
    sha256: str


def bucket_entry(path: str, written: WrittenBin, documents: Documents, members: np.ndarray) -> BucketEntry:
    """The entry of the bucket that holds the documents `members` [int64]."""
    num_categories = len(documents.category_names)
    num_documents = np.bincount(documents.category[members], minlength=num_categories)
    text_bytes = np.zeros(num_categories, np.int64)
    np.add.at(text_bytes, documents.category[members], documents.text_bytes[members])
    categories: dict[str, BucketCategory] = {
        documents.category_names[index]: {
            "documents": int(num_documents[index]),
            "tokens": int(written.tokens[index]),
            "loss_tokens": int(written.loss_tokens[index]),
            "bytes": int(text_bytes[index]),
        }
        for index in np.flatnonzero(num_documents).tolist()
    }
    return {
        "path": path,
        "rows": written.num_rows,
        "documents": len(members),
        "tokens": int(written.tokens.sum()),
        "loss_tokens": int(written.loss_tokens.sum()),
        "bytes": int(text_bytes.sum()),
        "sha256": written.sha256,
        "categories": categories,
    }


def category_entries(
    counts: RecordCounts, documents: Documents, buckets: list[BucketEntry]
) -> dict[str, CategoryEntry]:
    """The ledger of each category: tokens in come from the documents, tokens in bins from what was written."""
    tokens_in = np.zeros(len(documents.category_names), np.int64)
    np.add.at(tokens_in, documents.category, documents.length)
    entries: dict[str, CategoryEntry] = {}
    for index, name in enumerate(documents.category_names):
        parts = [bucket["categories"][name] for bucket in buckets if name in bucket["categories"]]
        in_bins = sum(part["tokens"] for part in parts)
        entries[name] = {
            "tokens": {"in": int(tokens_in[index]), "in_bins": in_bins, "dropped": {}},
            "records": counts.ledger(name),
            "loss_tokens": sum(part["loss_tokens"] for part in parts),
            "bytes": sum(part["bytes"] for part in parts),
        }
    return entries


def build_manifest(
    *,
    tokenizer_fingerprint: str,
    max_length: int,
    seed: int,
    files: FileCounts,
    counts: RecordCounts,
    documents: Documents,
    buckets: list[BucketEntry],
) -> Manifest:
    """The whole manifest: what came in beside what was written."""
    categories = category_entries(counts, documents, buckets)
    in_bins = sum(bucket["tokens"] for bucket in buckets)
    return {
        "version": VERSION,
        "tokenizer_fingerprint": tokenizer_fingerprint,
        "max_length": max_length,
        "num_buckets": len(buckets),
        "seed": seed,
        "fill": in_bins / (max_length * sum(bucket["rows"] for bucket in buckets)),
        "files": files,
        "records": counts.ledger(),
        "tokens": {"in": len(documents.tokens), "in_bins": in_bins, "dropped": {}},
        "loss_tokens": sum(bucket["loss_tokens"] for bucket in buckets),
        "bytes": sum(bucket["bytes"] for bucket in buckets),
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
        "documents": (manifest["records"]["kept"], sum(bucket["documents"] for bucket in buckets)),
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
    if manifest.get("version") != VERSION or not manifest.keys() >= Manifest.__annotations__.keys():
        raise UserError(
            f"{path}: not a version {VERSION} manifest of prepare_pretrain_dataset (version "
            f"{manifest.get('version')!r}); prepare the dataset again with this checkout"
        )
    return cast(Manifest, manifest)
