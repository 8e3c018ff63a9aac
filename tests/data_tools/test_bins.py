"""Opening bins: the rows that `datasets` reads, and one clear line for everything that is not as it should be."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest

from data_tools.bin_writer import ARROW_NAME
from data_tools.bins import open_bins
from data_tools.manifest import MANIFEST_NAME
from tests.data_tools.conftest import Prepare, write_documents
from tokenizer_tools.command import UserError


def test_rows_are_those_that_datasets_reads(prepare: Prepare) -> None:
    directory = prepare()
    opened = open_bins([directory])
    assert [part.path.name for part in opened.bins] == [f"part-{index:05d}" for index in range(4)]
    assert opened.max_length == 128
    assert opened.categories == ["en", "poetry", "zh"]
    for part in opened.bins:
        loaded = datasets.load_from_disk(str(part.path))
        assert part.num_rows == len(loaded) > 0
        assert part.num_tokens == sum(map(len, loaded["input_ids"]))
        for index, expected in enumerate(loaded):
            row = vars(part.row(index))
            assert all(values.dtype == np.int64 for values in row.values())
            assert {name: values.tolist() for name, values in row.items()} == expected
        with pytest.raises(IndexError):
            part.row(part.num_rows)
    assert opened.num_rows == sum(part.num_rows for part in opened.bins)


def test_buckets_can_be_named_one_by_one(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = prepare()
    names = ["part-00002", "part-00000"]
    assert [part.path.name for part in open_bins([directory / name for name in names]).bins] == names
    monkeypatch.chdir(directory / "part-00001")
    assert [part.path.name for part in open_bins([Path()]).bins] == ["part-00001"]


def test_datasets_with_other_categories_and_lengths_go_together(prepare: Prepare, tmp_path: Path) -> None:
    write_documents(
        tmp_path / "more" / "x.jsonl", [{"target": "new", "category": "code"}, {"target": "z", "category": "zh"}]
    )
    one, two = (
        prepare("one"),
        prepare("two", data_input_dirs=tmp_path / "more", max_length=64, num_spliced_dataset_bins=1),
    )
    opened = open_bins([two, one])
    assert opened.categories == ["code", "en", "poetry", "zh"]
    assert opened.max_length == 128
    assert sorted(opened.bins[0].row(0).document_categories.tolist()) == [0, 3]
    own = datasets.load_from_disk(str(one / "part-00000"))[0]["document_categories"]
    assert opened.bins[1].row(0).document_categories.tolist() == [index + 1 for index in own]


def refuses(message: str, *paths: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        open_bins(paths)
    assert "\n" not in str(caught.value)


def test_what_is_no_dataset_is_refused(prepare: Prepare, tmp_path: Path) -> None:
    directory = prepare()
    refuses("absent: no such directory", tmp_path / "absent")
    refuses("no dataset was named")
    shutil.copytree(directory / "part-00000", tmp_path / "alone" / "part-00000")
    refuses("no manifest.json in it or in its parent", tmp_path / "alone" / "part-00000")
    (directory / "other").mkdir()
    refuses("other: not a bucket of", directory / "other")
    refuses("part-00001: named twice", directory, directory / "part-00001")


@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.95])
def test_a_cut_off_bin_is_refused(prepare: Prepare, where: float) -> None:
    path = prepare() / "part-00002" / ARROW_NAME
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * where)])
    refuses(rf"{re.escape(str(path))}: .*; copy or prepare the dataset again", path.parent.parent)


def test_missing_and_foreign_rows_are_refused(prepare: Prepare) -> None:
    directory = prepare()
    shutil.copy(prepare("small", num_spliced_dataset_bins=20) / "part-00000" / ARROW_NAME, directory / "part-00001")
    refuses(r"part-00001/.*: holds \d+ rows, its manifest says \d+", directory)
    (directory / "part-00001" / ARROW_NAME).unlink()
    refuses("part-00001/.*: not readable .*No such file", directory)


def test_another_tokenizer_is_refused_and_both_sides_are_named(prepare: Prepare) -> None:
    one, two = prepare("one"), prepare("two")
    manifest = json.loads((two / MANIFEST_NAME).read_text()) | {"tokenizer_fingerprint": "f" * 64}
    (two / MANIFEST_NAME).write_text(json.dumps(manifest))
    refuses(rf"two: made with tokenizer f{{12}}, but {re.escape(str(one))} with tokenizer", one, two)


def test_buckets_without_rows_open_unless_there_are_no_others(prepare: Prepare, tmp_path: Path) -> None:
    write_documents(tmp_path / "few" / "x.jsonl", [{"target": "only one"}])
    directory = prepare(data_input_dirs=tmp_path / "few", num_spliced_dataset_bins=3)
    assert [part.num_rows for part in open_bins([directory]).bins] == [1, 0, 0]
    refuses("no row in any of the named buckets", directory / "part-00001", directory / "part-00002")
