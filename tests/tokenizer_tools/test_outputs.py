"""Outputs appear whole or not at all, whatever goes wrong while they are written."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tokenizer_tools.command import UserError
from tokenizer_tools.outputs import (
    disk_fault_of,
    finish_tree,
    full_disk_named,
    read_json,
    refuse_existing,
    whole_directory,
    write_json,
    write_whole_file,
)


class FaultError(Exception):
    """What went wrong inside the block."""


def tree_of(directory: Path) -> dict[str, str | None]:
    """{path below `directory`: text, or None for a folder}; hidden leftovers included."""
    paths = sorted(directory.rglob("*"))
    return {str(path.relative_to(directory)): path.read_text() if path.is_file() else None for path in paths}


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def private_umask() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A directory with an earlier output."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    return tmp_path / "out"


# --- whole directories ------------------------------------------------------------------------------------------------


def test_a_directory_appears_whole_and_only_at_the_end(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "out"
    with whole_directory(target) as aside:
        (aside / "sub").mkdir()
        (aside / "sub" / "a").write_text("a")
        assert not target.exists()
        assert aside.parent == target.parent  # on the same disk, or the rename could not be one
    assert tree_of(target.parent) == {"out": None, "out/sub": None, "out/sub/a": "a"}


def test_an_empty_directory_may_be_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with whole_directory(tmp_path / "out") as aside:
        (aside / "a").write_text("a")
    assert tree_of(tmp_path) == {"out": None, "out/a": "a"}


@pytest.mark.parametrize(
    "error", [FaultError(), KeyboardInterrupt(), UserError("x")], ids=lambda error: type(error).__name__
)
def test_an_error_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), whole_directory(tmp_path / "out") as aside:
        (aside / "half").write_text("half")
        raise error
    assert tree_of(tmp_path) == {}


def test_an_existing_output_is_refused_before_any_work(old: Path) -> None:
    message = "out: exists and is not empty; add --overwrite to replace it or choose another name"
    with pytest.raises(UserError, match=message), whole_directory(old):
        raise AssertionError("the block was entered")
    assert tree_of(old.parent) == {"out": None, "out/old": "old"}


def test_overwrite_replaces_all_of_the_old(old: Path) -> None:
    with whole_directory(old, overwrite=True) as aside:
        (aside / "new").write_text((old / "old").read_text() + " is readable until the end")
    assert tree_of(old.parent) == {"out": None, "out/new": "old is readable until the end"}


def test_overwrite_keeps_the_old_when_the_block_fails(old: Path) -> None:
    with pytest.raises(FaultError), whole_directory(old, overwrite=True) as aside:
        (aside / "new").write_text("new")
        raise FaultError
    assert tree_of(old.parent) == {"out": None, "out/old": "old"}


def test_overwrite_keeps_the_old_when_the_last_rename_fails(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def refuse_the_new(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse_the_new)
    with pytest.raises(OSError, match="Input/output"), whole_directory(old, overwrite=True) as aside:
        (aside / "new").write_text("new")
    assert tree_of(old.parent) == {"out": None, "out/old": "old"}


def test_another_run_s_output_of_the_same_name_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="not empty"), whole_directory(tmp_path / "out") as slower:
        (slower / "a").write_text("slower")
        with whole_directory(tmp_path / "out") as faster:
            (faster / "a").write_text("faster")
    assert tree_of(tmp_path) == {"out": None, "out/a": "faster"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_no_place_for_a_directory(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "out").write_text("mine")
    message = "out: is a file, but the output is a directory; choose another name"
    with pytest.raises(UserError, match=message), whole_directory(tmp_path / "out", overwrite):
        raise AssertionError("the block was entered")
    assert tree_of(tmp_path) == {"out": "mine"}


def test_a_mount_point_is_refused_before_any_work() -> None:
    with pytest.raises(UserError, match="/proc: is a mount point, which cannot be replaced whole; name a directory in"):
        refuse_existing(Path("/proc"), overwrite=True)


def test_a_parent_that_cannot_be_written_is_said_before_any_work() -> None:
    """/proc refuses new directories even to root, whom no mode of a directory holds off."""
    with pytest.raises(OSError) as caught, whole_directory(Path("/proc/out")):
        raise AssertionError("the block was entered")
    assert caught.value.strerror and str(caught.value.filename).startswith("/proc/")


def test_a_file_as_parent_is_said_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError) as caught, whole_directory(tmp_path / "file" / "out"):
        raise AssertionError("the block was entered")
    assert caught.value.strerror and tree_of(tmp_path) == {"file": "mine"}


@pytest.mark.parametrize("is_there", [True, False])
def test_behind_a_link_the_output_lies_on_the_other_disk(tmp_path: Path, is_there: bool) -> None:
    scratch = tmp_path / "scratch" / "bins"
    if is_there:
        scratch.mkdir(parents=True)
    (tmp_path / "out").symlink_to(scratch)
    with whole_directory(tmp_path / "out") as aside:
        (aside / "a").write_text("a")
        assert aside.parent == scratch.parent
    assert (tmp_path / "out").is_symlink()
    assert tree_of(scratch) == {"a": "a"}


def test_a_relative_target_stays_where_it_was_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with whole_directory(Path("out")):
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
    assert tree_of(tmp_path) == {"elsewhere": None, "out": None}


@pytest.mark.usefixtures("private_umask")
def test_the_whole_team_can_read_a_directory(tmp_path: Path) -> None:
    with whole_directory(tmp_path / "out") as aside:
        folder = Path(tempfile.mkdtemp(dir=aside))
        (folder / "weights").write_text("w")
        (folder / "weights").chmod(0o600)
    modes = {path.is_dir(): mode_of(path) for path in [tmp_path / "out", *(tmp_path / "out").rglob("*")]}
    assert modes == {True: 0o755, False: 0o644}


def test_every_file_and_folder_is_handed_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("b")
    synced: set[str] = set()
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.add(str(Path(f"/proc/self/fd/{descriptor}").readlink())))
    finish_tree(tmp_path)
    assert synced == {str(tmp_path), str(tmp_path / "a"), str(tmp_path / "a" / "b")}


# --- whole files ------------------------------------------------------------------------------------------------------


def test_the_same_value_gives_the_same_bytes(tmp_path: Path) -> None:
    value = {"b": [1, 2.5, None], "a": {"词": "你好\u2028"}}
    write_json(tmp_path / "deep" / "1.json", value)
    write_json(tmp_path / "deep" / "2.json", value)
    first, second = ((tmp_path / "deep" / name).read_bytes() for name in ("1.json", "2.json"))
    assert first == second and first.endswith(b"}\n") and "你好".encode() in first
    assert read_json(tmp_path / "deep" / "1.json", "a value") == value
    assert mode_of(tmp_path / "deep" / "1.json") & 0o444 == 0o444


@pytest.mark.parametrize("where", ["write_text", "replace"])
def test_the_old_content_stays_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    write_whole_file(tmp_path / "latest", "old")
    write_text = Path.write_text

    def refuse(path: Path, *arguments: Any, **options: Any) -> None:
        if where == "write_text":
            write_text(path, "ha")  # half of it
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(Path, where, refuse)
        write_whole_file(tmp_path / "latest", "half a word")
    assert tree_of(tmp_path) == {"latest": "old"}


def test_what_is_no_json_leaves_the_old_content(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    with pytest.raises(UnicodeEncodeError):
        write_json(tmp_path / "a.json", {"new": "\ud800"})
    assert list(tree_of(tmp_path)) == ["a.json"] and read_json(tmp_path / "a.json", "x") == {"old": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"a.json: no such file; expected a manifest of bins"),
        (b'{"a": ', r"a.json: not valid JSON \(Expecting value: line 1 column 7.*\); expected a manifest of bins"),
        (b'"\xff"', r"a.json: not valid JSON \('utf-8' codec.*\); expected a manifest of bins"),
        (b"[1]", r"a.json: holds a JSON list, not an object; expected a manifest of bins"),
        (b"null", r"a.json: holds a JSON NoneType, not an object; expected a manifest of bins"),
    ],
)
def test_a_json_file_at_fault_is_named_with_what_it_should_be(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "a.json", "a manifest of bins")


def test_what_a_disk_has_said_is_found_behind_any_error(tmp_path: Path) -> None:
    """Rust's libraries give the number in their words alone, and a full disk is often seen by its free space only."""

    def fault_behind(error: Exception, cause: Exception | None = None) -> int | None:
        try:
            raise error from cause
        except type(error) as caught:
            found = disk_fault_of(caught)
            return None if found is None else found.errno

    def said_of(error: Exception) -> int | None:
        try:
            with full_disk_named(tmp_path):
                raise error
        except UserError as caught:
            return fault_behind(RuntimeError("later"), caught)

    full = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert fault_behind(UserError("/data: broken"), OSError(errno.ESTALE, "Stale file handle")) == errno.ESTALE
    assert fault_behind(UserError("/data: broken"), ValueError(full)) == errno.ENOSPC
    assert fault_behind(ValueError(full)) == errno.ENOSPC
    assert said_of(ValueError(full)) == errno.ENOSPC
    assert said_of(OSError(errno.EDQUOT, "Disk quota exceeded")) == errno.EDQUOT
    assert said_of(RuntimeError("No space left")) == errno.ENOSPC
    assert fault_behind(UserError("no such file"), FileNotFoundError(errno.ENOENT, "No such file")) is None
    assert fault_behind(UserError("a name with (os error 28) in it")) is None
