"""A directory as a host sees it."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.hosts import inputs
from colossal_llama.hosts.inputs import see


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    """Bins with a manifest beside the bucket, a hidden file and a file in a folder."""
    directory = tmp_path / "bins" / "part-00000"
    (directory / "folder").mkdir(parents=True)
    (directory.parent / "manifest.json").write_text("{}")
    (directory / "data").write_bytes(b"rows")
    (directory / "folder" / "more").write_bytes(b"")
    (directory / ".lock").write_bytes(b"x")
    return directory


def test_every_file_counts_but_hidden_ones(bucket: Path) -> None:
    seen = see(bucket, reads_all=False)
    assert seen["files"] == {
        "../manifest.json": f"2 {hashlib.sha256(b'{}').hexdigest()[:16]}",
        "data": f"4 {hashlib.sha256(b'rows').hexdigest()[:16]}",
        "folder/more": f"0 {hashlib.sha256(b'').hexdigest()[:16]}",
    }
    assert seen["size_bytes"] == 6
    assert see(bucket / "none", reads_all=False)["files"] is None


def test_a_copy_has_the_same_files_in_another_place(bucket: Path, tmp_path: Path) -> None:
    shutil.copytree(bucket.parent, tmp_path / "copy")
    first, again, copy = (see(one, False) for one in (bucket, bucket, tmp_path / "copy" / "part-00000"))
    assert first == again
    assert copy["files"] == first["files"]
    assert copy["place"] != first["place"]


@given(st.integers(0, 10 * 8 - 1))
def test_of_a_large_file_three_places_are_read_or_all_of_it(
    tmp_path_factory: pytest.TempPathFactory, changed: int
) -> None:
    """With pieces of 8 bytes, a file of 80: bytes 0-7, 40-47 and 72-79 are read."""
    directory = tmp_path_factory.mktemp("large")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs, "PIECE_BYTES", 8)
        patch.setattr(inputs, "WHOLE_BYTES", 32)
        (directory / "weights").write_bytes(bytes(80))
        before = [see(directory, reads_all)["files"] for reads_all in (False, True)]
        content = bytearray(80)
        content[changed] = 1
        (directory / "weights").write_bytes(content)
        after = [see(directory, reads_all)["files"] for reads_all in (False, True)]
    assert (before[0] != after[0]) == (changed < 8 or 40 <= changed < 48 or changed >= 72)
    assert before[1] != after[1]
