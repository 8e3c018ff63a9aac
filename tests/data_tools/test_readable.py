"""Readable rows: each row of each bucket with its documents, in any script."""

from __future__ import annotations

import json
from pathlib import Path

from data_tools.bins import open_bins
from data_tools.readable import write_readable
from tests.data_tools.conftest import Prepare


def test_rows_documents_and_labels_are_those_of_the_bins(prepare: Prepare, tmp_path: Path) -> None:
    directory = prepare(max_length=64)
    (tmp_path / "rows").mkdir()
    write_readable(directory, tmp_path / "rows", lambda ids: "龘" + " ".join(map(str, ids)))
    opened = open_bins([directory])
    names = ["manifest.json", *(f"{part.path.name}.jsonl" for part in opened.bins)]
    assert sorted(path.name for path in (tmp_path / "rows").iterdir()) == names
    for part in opened.bins:
        text = (tmp_path / "rows" / f"{part.path.name}.jsonl").read_text(encoding="utf-8")
        assert "龘" in text  # not an escape
        for index, line in enumerate(text.splitlines()):
            readable, row, start = json.loads(line), part.row(index), 0
            assert (readable["input_ids"], readable["labels"]) == (row.input_ids.tolist(), row.labels.tolist())
            for document, length, category in zip(
                readable["documents"], row.document_lengths, row.document_categories, strict=True
            ):
                ids = row.input_ids[start : start + length].tolist()
                assert document["tokens"] == length
                assert document["category"] == opened.categories[category]
                assert document["text"] == "龘" + " ".join(map(str, ids))
                start += length
        assert index + 1 == part.num_rows
