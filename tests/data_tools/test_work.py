"""The work directory: one run at a time, what is finished stays, and the output is there whole or not at all."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from data_tools.work import Work, root_of, what_changed, work_on
from tokenizer_tools.command import UserError


def finish_something(work: Work) -> None:
    """As a part that is encoded, and a bucket that is written."""
    (work.cache_dir / "part").mkdir()
    (work.cache_dir / "part" / "chunk-00000.arrow").touch()
    (work.bins_dir / "part-00000").mkdir()
    (work.bins_dir / "part-00000" / "rows.arrow").write_text("rows")


def test_the_output_is_there_at_the_end_readable_by_all_and_nothing_else(tmp_path: Path) -> None:
    output = tmp_path / "new" / "out"
    with work_on(output, None, False) as work:
        finish_something(work)
        (work.bins_dir / "part-00000" / "rows.arrow").chmod(0o600)
        work.bins_dir.chmod(0o700)
        assert not output.exists()
    assert (output / "part-00000" / "rows.arrow").read_text() == "rows"
    assert (output / "part-00000" / "rows.arrow").stat().st_mode & 0o777 == 0o644
    assert output.stat().st_mode & 0o777 == 0o755
    assert list(output.parent.iterdir()) == [output]


def test_a_link_to_another_disk_is_followed(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    output = tmp_path / "link" / "out"
    assert root_of(output) == tmp_path / "disk" / ".out.work"
    (tmp_path / "disk" / "empty").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "empty")
    with work_on(tmp_path / "out", None, False) as work:
        finish_something(work)
    assert (tmp_path / "disk" / "empty" / "part-00000").is_dir()
    assert (tmp_path / "out").is_symlink()


def test_an_error_keeps_what_is_finished(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(ZeroDivisionError), work_on(tmp_path / "out", None, False) as work:
        finish_something(work)
        raise ZeroDivisionError
    assert (work.bins_dir / "part-00000" / "rows.arrow").exists()
    assert f"what is finished is kept in {tmp_path}/.out.work" in caplog.text
    with work_on(tmp_path / "out", None, False) as again:
        assert again == work
        assert (again.cache_dir / "part" / "chunk-00000.arrow").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_before_anything_is_finished_leaves_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(ZeroDivisionError), work_on(tmp_path / "out", None, False):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    assert not caplog.records


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=f"{tmp_path}: no space left on this disk"),
        work_on(tmp_path / "out", None, False),
    ):
        raise RuntimeError("write failed: No space left on device")


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_that_appears_meanwhile_is_replaced_only_if_asked_for(tmp_path: Path, overwrite: bool) -> None:
    def run() -> None:
        with work_on(tmp_path / "out", None, overwrite) as work:
            finish_something(work)
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "of another run").touch()

    if overwrite:
        run()
    else:
        with pytest.raises(OSError, match="not empty"):
            run()
    assert (tmp_path / "out" / "of another run").exists() != overwrite


def test_nobody_else_works_on_the_same_output_or_cache(tmp_path: Path) -> None:
    (tmp_path / "other cache").mkdir()
    with work_on(tmp_path / "out", tmp_path / "cache", False) as work:
        finish_something(work)
        for output, cache in [("out", "other cache"), ("other", "cache")]:
            with (
                pytest.raises(UserError, match="another run is at work here"),
                work_on(tmp_path / output, tmp_path / cache, False),
            ):
                pytest.fail("two at a time")
    with work_on(tmp_path / "other", tmp_path / "cache", False):
        pass
    assert (tmp_path / "cache" / "part" / "chunk-00000.arrow").exists()


def test_what_a_killed_run_was_writing_is_removed(tmp_path: Path) -> None:
    root, cache = tmp_path / ".out.work", tmp_path / "cache"
    for directory in (root / "buckets", root / "bins", cache, cache / ".0123.abc.partial"):
        directory.mkdir(parents=True)
    leftovers = [cache / ".last_run.json.77.partial", root / "buckets" / ".part-00000.json.77.partial"]
    leftovers += [root / ".x.partial", cache / ".0123.abc.partial" / "chunk-00000.arrow"]
    kept = [root / "buckets" / "part-00000.json", cache / "last_run.json", root / "bins" / "part-00000"]
    for path in [*leftovers, *kept]:
        path.touch()
    with work_on(tmp_path / "out", cache, False):
        assert not any(path.exists() for path in leftovers)
        assert not (cache / ".0123.abc.partial").exists()
        assert all(path.exists() for path in kept)


def test_bins_that_will_not_be_written_over_are_removed(tmp_path: Path) -> None:
    with work_on(tmp_path / "out", None, False) as work:
        for name in ("part-00000", "part-00001", "part-00002"):
            (work.bins_dir / name).mkdir()
            (work.bins_dir / name / "rows.arrow").touch()
        (work.bins_dir / "manifest.json").touch()
        work.clear_bins(2)
        assert sorted(path.name for path in work.bins_dir.iterdir()) == ["part-00000", "part-00001"]
        assert all(list(path.iterdir()) for path in work.bins_dir.iterdir())


def test_what_has_changed_since_the_last_run_is_told_once(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for path in files:
        path.write_text("text")
    assert what_changed(tmp_path, {"length": 8, "path": tmp_path}, files) == []
    assert what_changed(tmp_path, {"length": 8, "path": tmp_path}, files) == []
    assert what_changed(tmp_path, {"length": 9, "path": tmp_path}, files) == ["length 8 -> 9"]
    assert what_changed(tmp_path, {"length": 9, "path": tmp_path}, files) == []
    before = files[0].stat()
    files[0].write_text("longer text")
    os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert what_changed(tmp_path, {"length": 9, "path": tmp_path}, files) == [f"changed {files[0]}"]
    os.utime(files[1], ns=(0, 0))
    assert what_changed(tmp_path, {"length": 9, "path": tmp_path}, files) == [f"changed {files[1]}"]
    assert what_changed(tmp_path, {"length": 9, "path": tmp_path}, files[:1]) == [f"gone {files[1]}"]
