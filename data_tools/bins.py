"""Opens prepared datasets for training: directories come in, memory-mapped rows by index go out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.bin_writer import ARROW_NAME
from data_tools.manifest import MANIFEST_NAME, BucketEntry, Manifest, read_manifest
from data_tools.sources import Sources
from tokenizer_tools.command import UserError
from tokenizer_tools.lineage import Record, shortened


@dataclass(frozen=True, eq=False)
class Row:
    """One training row, numpy int64 arrays.

    `input_ids` and `labels` are [tokens], labels not shifted, -100 where no loss is taken. `document_lengths` [pieces]
    sums to the tokens; a piece attends to itself only. `document_categories` [pieces] indexes `Bins.categories`.
    """

    input_ids: np.ndarray
    labels: np.ndarray
    document_lengths: np.ndarray
    document_categories: np.ndarray


@dataclass(frozen=True, eq=False)
class Bin:
    """One bucket directory. `sha256` is that of its .arrow file when it was written; `num_tokens` and
    `num_loss_tokens`, those with a label, are of all rows."""

    path: Path
    num_rows: int
    num_tokens: int
    num_loss_tokens: int
    sha256: str
    category_indices: np.ndarray  # [categories of its manifest] -> index into Bins.categories

    def row(self, index: int) -> Row:
        """Row `index` (from 0); reads the pages of this row only. Raises IndexError beyond the last row."""
        return Row(
            input_ids=self._values("input_ids", index),
            labels=self._values("labels", index),
            document_lengths=self._values("document_lengths", index),
            document_categories=self.category_indices[self._values("document_categories", index)],
        )

    def sources(self, index: int) -> list[str]:
        """`file:line` of each document of row `index`; empty where an older dataset does not say."""
        return self._sources.of_row(index)

    @cached_property
    def _sources(self) -> Sources:
        return Sources(self.path)

    def _values(self, column: str, index: int) -> np.ndarray:
        return self._table[column][index].values.to_numpy().astype(np.int64)

    @cached_property
    def _table(self) -> Any:
        import pyarrow as pa

        with pa.memory_map(str(self.path / ARROW_NAME)) as source, pa.ipc.open_stream(source) as reader:
            return reader.read_all()

    def check(self) -> None:
        """Raise UserError if the rows that the manifest names are not there. Reads headers, not tokens."""
        import pyarrow as pa

        try:
            num_rows = self._table.num_rows
        except (pa.ArrowInvalid, OSError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"{self.path / ARROW_NAME}: not readable ({reason}); copy or prepare the dataset again"
            ) from None
        if num_rows != self.num_rows:
            raise UserError(
                f"{self.path / ARROW_NAME}: holds {num_rows} rows, its manifest says {self.num_rows}; "
                "copy or prepare the dataset again"
            )


@dataclass(frozen=True, eq=False)
class Bins:
    """The bins of one or more prepared datasets that share a tokenizer, in the order they were named.

    `records`: of each named dataset what its manifest says of the chosen buckets (`tokenizer_tools/lineage.py`).
    """

    bins: list[Bin]
    max_length: int
    tokenizer_fingerprint: str
    categories: list[str]
    records: list[Record]

    @property
    def num_rows(self) -> int:
        """Rows of all bins."""
        return sum(part.num_rows for part in self.bins)

    def sources(self, bin_index: int, row_index: int) -> list[str]:
        """`file:line` of each document of a row, as the files were named when the dataset was prepared.

        Empty where an older dataset does not say. The first call for a bin reads the sources of all its rows.
        """
        return self.bins[bin_index].sources(row_index)


def open_bins(paths: Sequence[Path]) -> Bins:
    """Open bucket directories, or parents of bucket directories (all buckets of their manifest, in its order).

    `max_length` is the largest of the manifests, `categories` the sorted union of theirs.
    Raises UserError for a path that is missing or no dataset, a bucket named twice, rows that are missing or damaged,
    different tokenizers, or no row at all.
    """
    chosen = [_buckets_of(Path(path).absolute()) for path in paths]
    manifests = [manifest for _, manifest, _ in chosen]
    _check_tokenizers([directory for directory, _, _ in chosen], manifests)
    categories = sorted({name for manifest in manifests for name in manifest["category_names"]})
    index_of = {name: index for index, name in enumerate(categories)}
    bins: list[Bin] = []
    for directory, manifest, entries in chosen:
        indices = np.array([index_of[name] for name in manifest["category_names"]], np.int64)
        bins += [_open_bin(directory, entry, indices) for entry in entries]
    _check_bins(bins)
    return Bins(
        bins=bins,
        max_length=max(m["max_length"] for m in manifests),
        tokenizer_fingerprint=manifests[0]["tokenizer_fingerprint"],
        categories=categories,
        records=[_record(manifest, entries) for _, manifest, entries in chosen],
    )


def _record(manifest: Manifest, entries: list[BucketEntry]) -> Record:
    tokens: Counter[str] = Counter()
    for entry in entries:
        tokens.update({name: part["tokens"] for name, part in entry["categories"].items()})
    return shortened(
        {
            "version": manifest["version"],
            "kind": "bins",
            "tokenizer_fingerprint": manifest["tokenizer_fingerprint"],
            "documents_sha256": manifest["documents_sha256"],
            "tokens_by_category": dict(sorted(tokens.items())),
            "sha256": {f"{entry['path']}/{ARROW_NAME}": entry["sha256"] for entry in entries},
            "made_from": manifest.get("made_from") or {},
        }
    )


def _open_bin(directory: Path, entry: BucketEntry, category_indices: np.ndarray) -> Bin:
    opened = Bin(
        directory / entry["path"],
        entry["rows"],
        entry["tokens"],
        entry["loss_tokens"],
        entry["sha256"],
        category_indices,
    )
    opened.check()
    return opened


def _buckets_of(path: Path) -> tuple[Path, Manifest, list[BucketEntry]]:
    """The manifest's directory, the manifest, and those of its buckets that `path` means."""
    if not path.is_dir():
        raise UserError(f"{path}: no such directory; name a bucket directory or the directory of its manifest")
    if (path / MANIFEST_NAME).is_file():
        manifest = read_manifest(path)
        return path, manifest, manifest["buckets"]
    if not (path.parent / MANIFEST_NAME).is_file():
        raise UserError(
            f"{path}: no {MANIFEST_NAME} in it or in its parent; name a directory written by prepare_pretrain_dataset, "
            "and keep the manifest beside its buckets"
        )
    manifest = read_manifest(path.parent)
    entries = [entry for entry in manifest["buckets"] if entry["path"] == path.name]
    if not entries:
        raise UserError(f"{path}: not a bucket of {path.parent / MANIFEST_NAME}; name one of the buckets listed there")
    return path.parent, manifest, entries


def _check_tokenizers(directories: list[Path], manifests: list[Manifest]) -> None:
    if not manifests:
        raise UserError("no dataset was named; name at least one bucket directory or the directory of its manifest")
    first = manifests[0]["tokenizer_fingerprint"]
    for directory, manifest in zip(directories, manifests, strict=True):
        other = manifest["tokenizer_fingerprint"]
        if other != first:
            raise UserError(
                f"{directory}: made with tokenizer {other[:12]}, but {directories[0]} with tokenizer {first[:12]}; "
                "prepare both with one tokenizer"
            )


def _check_bins(bins: list[Bin]) -> None:
    seen: set[Path] = set()
    for opened in bins:
        real_path = opened.path.resolve()
        if real_path in seen:
            raise UserError(f"{opened.path}: named twice, its rows would count double; name each bucket once")
        seen.add(real_path)
    if not any(opened.num_rows for opened in bins):
        raise UserError(f"{bins[0].path}: no row in any of the named buckets; name a bucket that holds rows")
