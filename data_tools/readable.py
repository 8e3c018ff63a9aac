"""Rows for human eyes: a prepared dataset comes in, one .jsonl file a bucket goes out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_tools.bins import Row, open_bins
from data_tools.manifest import MANIFEST_NAME


def write_readable(dataset: Path, jsonl_dir: Path, decode: Callable[[list[int]], str]) -> None:
    """Write `part-00000.jsonl`, ... to `jsonl_dir`, a row a line, UTF-8, and the manifest that they belong to.

    A line is `{"input_ids", "labels", "documents": [{"category", "tokens", "text"}]}`; `decode` turns ids into text.
    """
    shutil.copyfile(dataset / MANIFEST_NAME, jsonl_dir / MANIFEST_NAME)
    bins = open_bins([dataset])
    for part in bins.bins:
        with (jsonl_dir / f"{part.path.name}.jsonl").open("w", encoding="utf-8") as file:
            for index in range(part.num_rows):
                row = _readable(part.row(index), decode, bins.categories)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def is_readable_form(jsonl_dir: Path, dataset: Path) -> bool:
    """Whether `jsonl_dir` holds the rows of this very dataset: it is complete or absent, and has the manifest."""
    manifest = jsonl_dir / MANIFEST_NAME
    return manifest.is_file() and manifest.read_bytes() == (dataset / MANIFEST_NAME).read_bytes()


def _readable(row: Row, decode: Callable[[list[int]], str], category_names: list[str]) -> dict[str, list]:
    ids_of_pieces = np.split(row.input_ids, np.cumsum(row.document_lengths)[:-1])
    categories = [category_names[index] for index in row.document_categories]
    return {
        "input_ids": row.input_ids.tolist(),
        "labels": row.labels.tolist(),
        "documents": [
            {"category": category, "tokens": len(ids), "text": decode(ids.tolist())}
            for category, ids in zip(categories, ids_of_pieces, strict=True)
        ],
    }
