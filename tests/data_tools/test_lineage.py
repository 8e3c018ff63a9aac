"""A dataset names the tokenizer it was made with, file by file, and refuses one that was swapped."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data_tools.bins import open_bins
from tests.data_tools.conftest import Prepare, Run
from tests.tokenizer_tools.test_init_tokenizer import only_error, write_pieces
from tests.tokenizer_tools.test_init_tokenizer import run as expand


def manifest_of(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "manifest.json").read_text())


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_manifest_names_the_files_of_a_plain_tokenizer(prepare: Prepare, tiny_tokenizer_dir: Path) -> None:
    manifest = manifest_of(prepare())
    tokenizer = manifest["made_from"]["tokenizer"]
    assert tokenizer["sha256"] == {path.name: sha256(path) for path in tiny_tokenizer_dir.iterdir()}
    assert tokenizer["tokenizer_fingerprint"] == manifest["tokenizer_fingerprint"]


def test_the_chain_goes_back_to_the_pieces_and_a_swap_is_named(
    run: Run, tmp_path: Path, tiny_tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer, pieces = tmp_path / "tokenizer", write_pieces(tmp_path / "pieces.jsonl", ["月光"])
    assert expand(tiny_tokenizer_dir, tokenizer, pieces) == 0
    assert run("bins", tokenizer_dir=tokenizer) == 0
    made_from = manifest_of(tmp_path / "bins")["made_from"]["tokenizer"]["made_from"]
    assert made_from["pieces"]["sha256"] == {"pieces.jsonl": sha256(pieces)}
    assert str(tmp_path) not in (tmp_path / "bins" / "manifest.json").read_text()
    capsys.readouterr()

    shutil.copy(tiny_tokenizer_dir / "tokenizer.model", tokenizer)
    assert run("others", tokenizer_dir=tokenizer) == 2
    error = only_error(capsys)
    assert f"{tokenizer / 'tokenizer.model'}: sha256 {sha256(tokenizer / 'tokenizer.model')[:16]}, but" in error
    assert manifest_of(tokenizer)["sha256"]["tokenizer.model"][:16] in error
    assert not (tmp_path / "others").exists()


def test_records_of_opened_bins_are_those_of_the_chosen_buckets(prepare: Prepare) -> None:
    first, second = prepare("first"), prepare("second", max_length=64)
    bucket = first / "part-00002"
    opened = open_bins([bucket, second])
    entry = manifest_of(first)["buckets"][2]
    name = "data-00000-of-00001.arrow"
    assert opened.records[0]["sha256"] == {f"part-00002/{name}": sha256(bucket / name)}
    assert opened.records[0]["tokens_by_category"] == {
        category: part["tokens"] for category, part in sorted(entry["categories"].items())
    }
    assert sum(opened.records[1]["tokens_by_category"].values()) == manifest_of(second)["tokens"]["in_bins"]
    assert [digest for record in opened.records for digest in record["sha256"].values()] == [
        one.sha256 for one in opened.bins
    ]
    assert opened.records[0]["made_from"] == manifest_of(first)["made_from"]


def test_an_older_dataset_without_an_origin_opens(prepare: Prepare) -> None:
    directory = prepare()
    manifest = manifest_of(directory)
    del manifest["made_from"]
    (directory / "manifest.json").write_text(json.dumps(manifest))
    assert open_bins([directory]).records[0]["made_from"] == {}
