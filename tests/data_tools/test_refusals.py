"""Refusals: each at its line of the file, a limit that holds to the line, and words that tell what to do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.chunks import write_chunk
from data_tools.counts import RecordCounts
from data_tools.documents import load_documents
from data_tools.duplicates import Kept
from data_tools.encode import Encoded
from data_tools.fields import ReadOptions
from data_tools.intake import REFUSED_NAME, PartRecord
from data_tools.records import Refusal
from data_tools.refusals import check_refused, duplicate_refusals, most_refused, refusals, write_refused
from tests.data_tools.test_chunks import make_facts
from tokenizer_tools.command import UserError


def make_part(
    cache_dir: Path, key: str, files: list[str], num_lines: list[int], chunks: tuple[int, ...] = ()
) -> PartRecord:
    """A part with one refused line a span, the second, and chunks of so many documents, the nth of which lies at line n
    of the last span, at byte 10 * n, or at none in a chunk of two."""
    (cache_dir / key).mkdir()
    lines = [json.dumps([span, file, 2, 7, "empty_target", "日"]) + "\n" for span, file in enumerate(files)]
    (cache_dir / key / REFUSED_NAME).write_text("".join(lines))
    record: Any = {"key": key, "files": files, "num_lines": num_lines, "category_names": ["zh"], "chunks": []}
    for number, size in enumerate(chunks):
        line = np.arange(1, size + 1)
        offset = np.full(size, -1) if size == 2 else 10 * line
        places = {"span": np.full(size, len(files) - 1), "line_number": line, "byte_offset": offset}
        facts = type(make_facts(size))(**(vars(make_facts(size)) | places | {"category": np.zeros(size, int)}))
        ones = np.ones(size, np.int64)
        encoded = Encoded(np.zeros(size, np.uint32), ones, np.tile([0, 1], size), ones, ones > 0)
        name = f"chunk-{number:05d}.arrow"
        write_chunk(cache_dir / key / name, facts, encoded, np.dtype(np.uint16))
        record["chunks"].append({"name": name, "batch_documents": [size]})
    return record


def test_lines_count_from_the_beginning_of_the_file(tmp_path: Path) -> None:
    parts = [
        make_part(tmp_path, "one", ["a"], [100]),
        make_part(tmp_path, "two", ["a", "b"], [50, 10]),
        make_part(tmp_path, "three", ["b", "c"], [5, 5]),
    ]
    found = list(refusals(parts, tmp_path))
    places = [("a", 2), ("a", 102), ("b", 2), ("b", 12), ("c", 2)]
    assert found == [Refusal(file, line, 7, "empty_target", "日") for file, line in places]
    write_refused(tmp_path / "refused.jsonl", iter(found))
    lines = (tmp_path / "refused.jsonl").read_text(encoding="utf-8").splitlines()
    assert [Refusal(**json.loads(line)) for line in lines] == found
    assert "日" in lines[0]  # to be found with grep


def test_duplicates_are_told_at_their_lines(tmp_path: Path) -> None:
    parts = [
        make_part(tmp_path, "one", ["a"], [100], (3,)),
        make_part(tmp_path, "two", ["a"], [50], (4, 2)),
        make_part(tmp_path, "three", ["a", "b"], [30, 9], (5,)),
    ]
    documents = load_documents(tmp_path, parts, ["en", "zh"])
    dropped = {reason: np.zeros(14, bool) for reason in ("exact_duplicate", "near_duplicate")}
    dropped["exact_duplicate"][[1, 4, 8]] = True
    dropped["near_duplicate"][[3, 13]] = True
    kept = Kept(~np.logical_or(*dropped.values()), dropped)
    found = list(duplicate_refusals(parts, tmp_path, documents, kept))
    assert found == [
        Refusal("a", 2, 20, "exact_duplicate", "zh"),
        Refusal("a", 102, 20, "exact_duplicate", "zh"),
        Refusal("a", 101, 10, "near_duplicate", "zh"),
        Refusal("a", 102, None, "exact_duplicate", "zh"),
        Refusal("b", 5, 50, "near_duplicate", "zh"),
    ]


@pytest.mark.parametrize(
    ("flag", "most"),
    [(None, math.inf), ("0", 0), ("7", 7), ("1", 1), ("0.25", 50), ("1.0", 200), ("0.0", 0), (".5", 100), ("3.0", 3)],
)
def test_a_limit_is_a_count_or_a_share(flag: str | None, most: float) -> None:
    assert most_refused(flag, 200) == most


@pytest.mark.parametrize("flag", ["", "few", "-1", "-0.1", "1.5", "nan", "inf", "1e-3"])
def test_a_limit_that_is_neither_is_refused(flag: str) -> None:
    with pytest.raises(UserError, match=r"--max_refused .*: choose a count \(100\) or a share \(0\.01\)"):
        most_refused(flag, 200)


def make_counts(kept: int, **refused: int) -> RecordCounts:
    counts = RecordCounts()
    counts.add([("c", "read", kept + sum(refused.values())), ("c", "kept", kept)])
    counts.add([("c", reason, count) for reason, count in refused.items()])
    return counts


FIRST = Refusal("a.jsonl", 7, 0, "too_short", "c")


def test_as_many_as_allowed_are_allowed_and_told(caplog: pytest.LogCaptureFixture) -> None:
    counts = make_counts(7, too_short=1, empty_target=1, invalid_json=1)
    for flag in (None, "2", "0.2"):
        check_refused(flag, counts, FIRST, ReadOptions())
    meaning = "fewer characters than --min_characters"
    said = f"refused 1 empty_target, 1 invalid_json, 1 too_short, the first at a.jsonl:7 ({meaning})"
    assert [record.getMessage() for record in caplog.records] == [
        f"warning: {said}; all are listed in refused.jsonl of the output"
    ] * 3
    for flag in ("1", "0.19"):
        with pytest.raises(UserError) as caught:
            check_refused(flag, counts, FIRST, ReadOptions())
        assert str(caught.value).startswith(f"{said}: 2 are more than --max_refused {flag} of 10 lines; ")


def test_nothing_is_said_if_nothing_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    check_refused("0", make_counts(8), None, ReadOptions())
    assert not caplog.records


def test_no_document_at_all_is_a_fault_whatever_the_limit() -> None:
    with pytest.raises(UserError, match=r"no document is left: refused 3 too_short, the first at a\.jsonl:7"):
        check_refused(None, make_counts(0, too_short=3), FIRST, ReadOptions())
    with pytest.raises(UserError, match="no document is left: every file is empty"):
        check_refused(None, make_counts(0), None, ReadOptions())


def test_the_way_out_is_told_in_the_names_of_the_user() -> None:
    first = FIRST._replace(reason="missing_text")
    with pytest.raises(UserError, match=r"there is no field text; .* name it with --text_field"):
        check_refused(None, make_counts(0, missing_text=3), first, ReadOptions(text_field="text"))
