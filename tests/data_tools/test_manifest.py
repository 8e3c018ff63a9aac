"""The manifest: its ledger closes, and one that does not is never written."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from data_tools.counts import RecordCounts
from data_tools.manifest import MANIFEST_NAME, check_ledger, read_manifest, write_manifest
from tests.data_tools.conftest import Prepare
from tokenizer_tools.command import UserError


@pytest.fixture
def manifest(prepare: Prepare) -> Any:
    return read_manifest(prepare())


def add_one(value: dict[str, Any], *path: str | int) -> None:
    for key in path[:-1]:
        value = value[key]  # type: ignore[index]
    value[path[-1]] += 1  # type: ignore[index]


def test_a_ledger_off_by_one_anywhere_is_not_written(tmp_path: Path, manifest: Any) -> None:
    paths: list[tuple[str | int, ...]] = [
        ("tokens", "in"),
        ("tokens", "in_bins"),
        ("records", "read"),
        ("records", "kept"),
        ("records", "placed"),
        ("categories", "zh", "tokens", "in"),
        ("categories", "zh", "tokens", "in_bins"),
        ("categories", "en", "records", "read"),
        ("categories", "en", "records", "kept"),
        ("buckets", 0, "tokens"),
        ("buckets", 0, "documents"),
    ]
    for path in paths:
        wrong = copy.deepcopy(manifest)
        add_one(wrong, *path)
        with pytest.raises(RuntimeError, match="ledger does not close"):
            write_manifest(tmp_path, wrong)
        assert not (tmp_path / MANIFEST_NAME).exists()
    check_ledger(manifest)


def test_sums_that_hold_for_each_category_must_hold_in_total(manifest: Any) -> None:
    for key in ("in", "in_bins"):
        manifest["categories"]["zh"]["tokens"][key] += 1
    with pytest.raises(RuntimeError, match="tokens in"):
        check_ledger(manifest)


def test_dropped_tokens_of_the_categories_must_be_those_of_the_whole(manifest: Any) -> None:
    manifest["tokens"]["dropped"] = {"truncated": 1}
    manifest["tokens"]["in"] += 1
    with pytest.raises(RuntimeError, match="tokens in"):
        check_ledger(manifest)
    manifest["categories"]["zh"]["tokens"]["in"] += 1
    manifest["categories"]["zh"]["tokens"]["dropped"] = {"truncated": 1}
    check_ledger(manifest)


def test_counts_can_be_sent_and_added() -> None:
    counts, total = RecordCounts(), RecordCounts()
    counts.read.update({"a": 3, None: 1})
    counts.kept.update({"a": 2})
    counts.refused.update({("a", "empty_target"): 1, (None, "invalid_json"): 1})
    for _ in range(2):
        total.add([(c, w, n) for c, w, n in json.loads(json.dumps(counts.rows()))])
    assert total.ledger() == {"read": 8, "kept": 4, "refused": {"empty_target": 2, "invalid_json": 2}}
    total.refuse_kept("a", "near_duplicate", 3)
    assert total.ledgers()["a"] == {"read": 6, "kept": 1, "refused": {"empty_target": 2, "near_duplicate": 3}}


def test_counts_close_with_lines_of_no_category() -> None:
    counts = RecordCounts()
    counts.read.update({"b": 3, "a": 1, None: 2})
    counts.kept.update({"b": 2})
    counts.refused.update({(None, "invalid_json"): 2, ("b", "empty_target"): 1, ("a", "empty_target"): 1})
    assert counts.category_names == ["a", "b"]
    assert list(counts.ledger()["refused"]) == ["empty_target", "invalid_json"]
    assert counts.ledger() == {"read": 6, "kept": 2, "refused": {"empty_target": 2, "invalid_json": 2}}
    assert counts.ledgers() == {
        "a": {"read": 1, "kept": 0, "refused": {"empty_target": 1}},
        "b": {"read": 3, "kept": 2, "refused": {"empty_target": 1}},
    }
    counts.refuse_kept("b", "near_duplicate", 0)
    assert "near_duplicate" not in counts.ledger()["refused"]


@pytest.mark.parametrize("change", [{"version": 2}, {"version": None}, {"buckets": ...}])
def test_another_version_is_named_and_refused(tmp_path: Path, manifest: Any, change: dict[str, Any]) -> None:
    changed = {key: value for key, value in (manifest | change).items() if value is not ...}
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(changed))
    with pytest.raises(UserError, match=r"manifest.json: not a version 1 manifest .* prepare the dataset again"):
        read_manifest(tmp_path)
