"""Parts: every byte of every file once, and a key that changes with whatever a part is made of."""

from __future__ import annotations

import hashlib
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import parts
from data_tools.fields import ReadOptions
from data_tools.input_files import Span
from data_tools.parts import digest_of, file_digest, key_of, plan_parts


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parts")


@settings(deadline=None)  # it writes files
@given(st.lists(st.tuples(st.sampled_from(["jsonl", "csv"]), st.integers(0, 100)), max_size=12), st.integers(1, 60))
def test_parts_are_all_files_in_order_and_of_like_size(
    directory: Path, drawn: list[tuple[str, int]], part_bytes: int
) -> None:
    paths = [directory / f"{index}.{suffix}" for index, (suffix, _) in enumerate(drawn)]
    for path, (_, size) in zip(paths, drawn, strict=True):
        path.write_bytes(b"x" * size)
    with mock.patch.object(parts, "PART_BYTES", part_bytes):
        found = plan_parts(paths, ReadOptions())
    spans = [span for part in found for span in part.spans]
    for path, (suffix, size) in zip(paths, drawn, strict=True):
        own = [span for span in spans if span.path == str(path)]
        assert [span.start for span in own] == [0, *(span.stop for span in own[:-1])]
        assert own[-1].stop == size
        assert len(own) == 1 or suffix == "jsonl"
    assert [span.path for span in spans] == sorted((s.path for s in spans), key=[str(p) for p in paths].index)
    assert all(part.num_bytes >= part_bytes for part in found[:-1])
    assert all(parts.Part(part.spans[:-1]).num_bytes < part_bytes for part in found)


def test_lines_of_a_txt_file_are_cut_only_where_a_line_is_a_document(directory: Path) -> None:
    path = directory / "long.txt"
    path.write_bytes(b"line\n" * 20)
    with mock.patch.object(parts, "PART_BYTES", 40):
        assert len(plan_parts([path], ReadOptions(txt_documents="line"))) == 3
        assert len(plan_parts([path], ReadOptions(txt_documents="file"))) == 1


@pytest.mark.parametrize("block_bytes", [1, 3, 2**20])
def test_the_digest_of_a_span_is_over_its_lines(
    directory: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(parts, "HASH_CHUNK_BYTES", block_bytes)
    path = directory / "lines.jsonl"
    path.write_bytes(b"one\ntwo\nthree\nfour")
    assert digest_of(Span(str(path), 0, 5)) == hashlib.sha256(b"one\ntwo\n").hexdigest()
    assert digest_of(Span(str(path), 5, 18)) == hashlib.sha256(b"wo\nthree\nfour").hexdigest()
    assert file_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_key_changes_with_names_bytes_and_settings() -> None:
    part = parts.Part((Span("a", 0, 5), Span("b", 0, 9)))
    keys = {
        key_of(part, ["x", "y"], "s"),
        key_of(part, ["x", "z"], "s"),
        key_of(part, ["x", "y"], "t"),
        key_of(parts.Part((Span("a", 0, 5), Span("c", 0, 9))), ["x", "y"], "s"),
        key_of(parts.Part((Span("a", 0, 4), Span("b", 0, 9))), ["x", "y"], "s"),
    }
    assert len(keys) == 5
