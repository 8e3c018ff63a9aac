"""What goes wrong around a run, disks, clocks, ranks and files: one line says what to do, and nothing is half-saved."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.colossal_llama.killing import (
    NOTHING,
    End,
    Job,
    Launcher,
    Strike,
    differences,
    end_of,
    flaws_of,
    latest_step,
    until,
)

Flags = dict[str, Any]
KILLED, HUNG = -9, -14


@dataclass(frozen=True)
class Runs:
    """Where the runs of this file happen, always under the same path, and what they must end in."""

    launcher: Launcher
    flags: Flags
    save_dir: Path
    end: End
    stopped: Path
    """A run that was killed when it had two checkpoints, of steps 1 and 2."""

    def anew(self) -> Path:
        """An empty place."""
        shutil.rmtree(self.save_dir, ignore_errors=True)
        return self.save_dir

    def stopped_anew(self) -> Path:
        """The stopped run, to be damaged."""
        shutil.rmtree(self.save_dir, ignore_errors=True)
        shutil.copytree(self.stopped, self.save_dir)
        return self.save_dir

    def run(self, world_size: int = 1, strike: Strike = NOTHING, **more: Any) -> tuple[list[int], Job]:
        """train.py at that place."""
        return self.launcher.run(world_size, self.save_dir, strike, **{**self.flags, **more})

    def refused(self, *words: str, strike: Strike = NOTHING, **more: Any) -> None:
        """train.py ends with exit code 2 and one line, which holds these words, and leaves nothing half-written."""
        codes, job = self.run(1, strike, **more)
        assert codes == [2], job.said
        assert len(job.errors) == 1, job.said
        assert [word for word in words if word not in job.errors[0]] == [], job.errors
        assert "Traceback" not in job.said, job.said

    def goes_on(self, world_size: int = 1) -> Job:
        """The same command line again ends as if nothing had happened."""
        codes, job = self.run(world_size)
        assert codes == [0] * world_size, job.said
        assert flaws_of(self.save_dir) == []
        assert differences(end_of(self.save_dir), self.end) == []
        return job


def make_runs(launcher: Launcher, flags: Flags, directory: Path, world_size: int) -> Runs:
    """Three steps with a checkpoint after each."""
    steps = {"max_steps": 3, "save_interval": 1, "warmup_steps": 1, "log_interval": 1, "micro_batch_size": 2}
    save_dir, stopped = directory / "run", directory / "stopped"
    flags = {**flags, **steps}
    strike = Strike("kill group", 1, f"{save_dir}/.epoch-0_step-3")
    codes, job = launcher.run(world_size, save_dir, strike, **flags)
    assert codes == [KILLED] * world_size, job.said
    shutil.copytree(save_dir, stopped)
    assert launcher.run(world_size, save_dir, **flags)[0] == [0] * world_size
    return Runs(launcher, flags, save_dir, end_of(save_dir), stopped)


@pytest.fixture(scope="module")
def runs(launcher: Launcher, flags: Flags, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """On one rank."""
    return make_runs(launcher, flags, tmp_path_factory.mktemp("faults"), 1)


@pytest.fixture(scope="module")
def runs_of_two(launcher: Launcher, flags: Flags, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """On two ranks."""
    return make_runs(launcher, flags, tmp_path_factory.mktemp("faults_of_two"), 2)


# --- disks ------------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_in_a_save(runs: Runs) -> None:
    save_dir = runs.anew()
    runs.refused(str(save_dir.parent), "no space left", strike=Strike("full disk", 4, ".epoch-0_step-2.partial/"))
    assert latest_step(save_dir) == 1
    assert flaws_of(save_dir) == []
    assert not list(save_dir.glob(".*.partial")), "what was half-written has made room"
    runs.goes_on()


def test_a_disk_that_fills_up_under_another_rank(runs_of_two: Runs) -> None:
    save_dir = runs_of_two.anew()
    strike = Strike("full disk", 1, ".epoch-0_step-2.partial/", rank=1)
    codes, job = runs_of_two.run(2, strike)
    assert codes == [2, 2], job.said
    (error,) = job.errors
    assert str(save_dir.parent) in error and "no space left" in error and "free some" in error
    assert latest_step(save_dir) == 1
    assert flaws_of(save_dir) == []
    runs_of_two.goes_on(2)


def test_too_little_space_is_seen_before_anything_is_written(runs: Runs) -> None:
    save_dir = runs.anew()
    codes, job = runs.run(strike=Strike(has_little_space=True))
    assert codes == [2], job.said
    (error,) = job.errors
    assert str(save_dir) in error and "are free there; free some, older checkpoints for one" in error
    assert [path for _, path in job.calls() if "step-2" in path] == []
    assert latest_step(save_dir) == 1
    runs.goes_on()


def test_a_directory_that_is_read_only(runs: Runs) -> None:
    save_dir = runs.anew()
    runs.refused(str(save_dir), "Read-only file system", strike=Strike("read-only", 1))
    assert not save_dir.exists()


def test_a_disk_that_becomes_read_only_in_a_save(runs: Runs) -> None:
    """As Linux remounts one with errors."""
    save_dir = runs.anew()
    runs.refused(str(save_dir), "Read-only file system", strike=Strike("read-only", 4, ".epoch-0_step-2.partial/"))
    assert latest_step(save_dir) == 1
    assert flaws_of(save_dir) == []
    runs.goes_on()


def test_a_directory_that_vanishes_while_the_run_goes_on(runs: Runs, tmp_path: Path) -> None:
    save_dir, elsewhere = runs.anew(), tmp_path / "elsewhere"
    job = runs.launcher.start(1, save_dir, **{**runs.flags, "max_steps": 100, "num_epochs": 9})
    for _ in until((save_dir / "latest").exists, 100):
        pass
    save_dir.rename(elsewhere)
    assert job.wait() == [2], job.said
    (error,) = job.errors
    assert str(save_dir) in error, job.said
    assert flaws_of(elsewhere) == []
    assert latest_step(elsewhere) > 0
    assert not list(save_dir.glob("epoch-*")), "half a run at the old place"


# --- clocks -----------------------------------------------------------------------------------------------------------


def test_a_clock_that_jumps(runs: Runs) -> None:
    runs.anew()
    codes, job = runs.run(strike=Strike(clock_jump_seconds=400 * 24 * 3600))
    assert codes == [0], job.said
    assert differences(end_of(runs.save_dir), runs.end) == []


def test_the_newest_checkpoint_is_that_of_most_steps_whatever_the_clock_said(runs: Runs) -> None:
    save_dir = runs.stopped_anew()
    (save_dir / "latest").unlink()
    for days, path in enumerate(sorted(save_dir.rglob("*"), reverse=True)):
        os.utime(path, (days * 86400, days * 86400))
    assert "going on after step 2," in runs.goes_on().said


# --- ranks ------------------------------------------------------------------------------------------------------------


def test_a_rank_that_dies_in_a_save(runs_of_two: Runs) -> None:
    """The other one ends, long before any timeout, and says who is gone."""
    save_dir = runs_of_two.anew()
    codes, job = runs_of_two.run(2, Strike("kill process", 1, ".epoch-0_step-2.partial/", rank=1))
    assert codes[1] == KILLED, job.said
    assert codes[0] in (1, 2), job.said
    lines = [line for line in job.said.splitlines() if "rank 0: another process of this run has ended" in line]
    assert len(lines) == 1 and "same command" in lines[0], job.said
    assert latest_step(save_dir) == 1
    assert flaws_of(save_dir) == []
    runs_of_two.goes_on(2)


# --- files ------------------------------------------------------------------------------------------------------------


def flip_a_bit(path: Path) -> None:
    """In the last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    """In half, as a full disk or a lost connection does."""
    os.truncate(path, path.stat().st_size // 2)


def largest_in(directory: Path, folder: str) -> Path:
    """Of the safetensors, where the weights or moments are."""
    return max((directory / folder).glob("*"), key=lambda path: path.stat().st_size)


def manifest_of_another(directory: Path) -> None:
    """That of the checkpoint before."""
    shutil.copy(directory.parent / "epoch-0_step-1" / "manifest.json", directory / "manifest.json")


DAMAGES: dict[str, Callable[[Path], Any]] = {  # what happens to the latest checkpoint
    "a bit of the weights": lambda directory: flip_a_bit(largest_in(directory, "modeling")),
    "a bit of the moments": lambda directory: flip_a_bit(largest_in(directory, "optimizer")),
    "moments cut off": lambda directory: cut(largest_in(directory, "optimizer")),
    "weights lost": lambda directory: largest_in(directory, "modeling").unlink(),
    "position lost": lambda directory: (directory / "running_states.json").unlink(),
    "a bit of the position": lambda directory: flip_a_bit(directory / "running_states.json"),
    "manifest cut off": lambda directory: cut(directory / "manifest.json"),
    "manifest empty": lambda directory: (directory / "manifest.json").write_text(""),
    "manifest of another": manifest_of_another,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_goes_on(damage: str, runs: Runs) -> None:
    save_dir = runs.stopped_anew()
    DAMAGES[damage](save_dir / "epoch-0_step-2")
    job = runs.goes_on()
    warnings = [line for line in job.said.splitlines() if "going back to epoch-0_step-1" in line]
    assert len(warnings) == 1, job.said
    assert str(save_dir / "epoch-0_step-2") in warnings[0]


def test_damage_with_nothing_before_it_is_refused_by_name(runs: Runs) -> None:
    for damage in ("a bit of the weights", "moments cut off", "manifest empty"):
        save_dir = runs.stopped_anew()
        DAMAGES[damage](save_dir / "epoch-0_step-2")
        shutil.rmtree(save_dir / "epoch-0_step-1")
        runs.refused(str(save_dir / "epoch-0_step-2"), "--overwrite")


def test_no_checkpoint_at_all_is_not_taken_for_a_new_run(runs: Runs) -> None:
    """`latest` names one, so steps have been trained: beginning again unasked would lose them."""
    save_dir = runs.stopped_anew()
    for path in save_dir.glob("epoch-*"):
        shutil.rmtree(path)
    runs.refused(str(save_dir / "latest"), "epoch-0_step-2", "--overwrite")


POINTERS: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_text(""),
    "of nothing": lambda path: path.write_text("epoch-0_step-7\n"),
    "of no checkpoint": lambda path: path.write_text("../..\n"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("pointer", POINTERS)
def test_a_pointer_that_names_nothing_gives_way_to_the_newest_checkpoint(pointer: str, runs: Runs) -> None:
    save_dir = runs.stopped_anew()
    POINTERS[pointer](save_dir / "latest")
    job = runs.goes_on()
    assert [line for line in job.said.splitlines() if str(save_dir / "latest") in line], job.said


def test_a_manifest_that_is_no_manifest_is_refused_in_words(runs: Runs) -> None:
    for text in ("[]", "{}", '{"version": 3}', json.dumps({"version": 3, "sizes_bytes": 1, "sha256": {}})):
        save_dir = runs.stopped_anew()
        shutil.rmtree(save_dir / "epoch-0_step-1")
        (save_dir / "epoch-0_step-2" / "manifest.json").write_text(text)
        runs.refused(str(save_dir / "epoch-0_step-2"))
