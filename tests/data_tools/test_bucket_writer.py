"""Tasks of buckets: every bucket in one, as many together as fit into memory; a finished one is known by its plan."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools import bucket_writer
from data_tools.arrange import arrange
from data_tools.bin_writer import ARROW_NAME
from data_tools.bucket_writer import BucketPlan, _finished, bucket_tasks
from data_tools.sources import SOURCES_NAME
from tests.data_tools.test_arrange import make_documents
from tokenizer_tools.outputs import write_json

PLAN = BucketPlan([], list("abc"), 100, 42, np.dtype(np.uint16), Path("bins"), Path("records"), "key")


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 300)), min_size=1, max_size=60),
    st.integers(1, 12),
    st.integers(1, 4000),
)
def test_neighbouring_buckets_go_together_as_long_as_they_fit(
    items: list[tuple[int, int]], num_buckets: int, shard_tokens: int
) -> None:
    documents = make_documents(items)
    numbers = np.arange(len(items))
    facts = {"chunk": numbers % 7, "place": numbers // 7, "text_bytes": numbers * 3}
    documents = dataclasses.replace(documents, **facts, file=numbers % 5, line_number=numbers * 2)
    kept = numbers >= 0
    found = arrange(documents, kept, num_buckets=num_buckets, max_length=100, long_documents="split", mixture={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bucket_writer, "SHARD_TOKENS", shard_tokens)
        tasks = bucket_tasks(documents, found, PLAN)
    assert np.concatenate([task.length for task in tasks]).tolist() == found.length.tolist()
    for name in ("chunk", "place", "category", "text_bytes", "file", "line_number"):
        column = np.concatenate([getattr(task, name) for task in tasks])
        assert column.tolist() == getattr(documents, name)[found.document].tolist(), name
    sizes = np.concatenate([np.diff(task.borders) for task in tasks])
    assert sizes.tolist() == np.diff(found.borders).tolist()
    assert [task.first for task in tasks] == np.cumsum([0, *(len(task.borders) - 1 for task in tasks[:-1])]).tolist()
    for task, following in zip(tasks, [*tasks[1:], None], strict=True):
        num_tokens = task.length.sum()
        assert num_tokens <= shard_tokens or len(task.borders) == 2
        if following is not None:
            assert num_tokens + following.length[: following.borders[1]].sum() > shard_tokens


def test_a_bucket_counts_as_finished_only_if_it_is_there_whole_and_of_the_same_plan(tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, bins_dir=tmp_path / "bins", records_dir=tmp_path)
    files = [plan.bins_dir / "part-00003" / name for name in (ARROW_NAME, SOURCES_NAME)]
    files[0].parent.mkdir(parents=True)
    for path in files:
        path.write_bytes(path.name.encode())
    assert _finished(plan, "part-00003") is None
    rows_sha256, sources_sha256 = (hashlib.sha256(path.name.encode()).hexdigest() for path in files)
    entry = {"sha256": rows_sha256}
    write_json(tmp_path / "part-00003.json", {"key": "key", "entry": entry})  # an older version's
    assert _finished(plan, "part-00003") is None
    write_json(tmp_path / "part-00003.json", {"key": "key", "entry": entry, "sources_sha256": sources_sha256})
    assert _finished(plan, "part-00003") == entry
    assert _finished(dataclasses.replace(plan, key="other"), "part-00003") is None
    for path in files:
        path.write_bytes(b"cut off")
        assert _finished(plan, "part-00003") is None
        path.unlink()
        assert _finished(plan, "part-00003") is None
        path.write_bytes(path.name.encode())
    assert _finished(plan, "part-00003") == entry
