"""TensorBoard on a full disk; Weights & Biases by a stand-in for its package, which needs an account and a network."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from colossal_llama.trackers import TensorBoard, missing_package, open_wandb
from tests.colossal_llama.test_journal import files_end_at


class FakeWandb(ModuleType):
    """The four things of wandb that are used, written down."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None, origin="wandb/__init__.py")
        self.error = error
        self.started: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, float], int]] = []
        self.finished = 0

    def init(self, **options: Any) -> FakeWandb:
        if self.error is not None:
            raise self.error
        self.started.append(options)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((values, step))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_one_run_of_wandb_whatever_the_resumes(wandb: FakeWandb, tmp_path: Path) -> None:
    for _ in range(2):
        (tracker,) = open_wandb("demo", tmp_path / "run", {"lr": 1e-3})
        tracker.log({"loss": 2.5, "eval/zh/loss": 1.5}, step=3)
        tracker.close()
    first, second = wandb.started
    assert first == second
    assert first["project"] == "demo" and first["resume"] == "allow" and first["config"] == {"lr": 1e-3}
    assert first["name"] == "run" and first["dir"] == str(tmp_path / "run")
    assert not set(first["id"]) & set("/\\#?%:") and first["id"]
    assert wandb.logged == [({"loss": 2.5, "eval/zh/loss": 1.5}, 3)] * 2
    assert wandb.finished == 2
    open_wandb("demo", tmp_path / "another", {})
    assert wandb.started[-1]["id"] != first["id"]


def test_no_project_no_wandb(wandb: FakeWandb, tmp_path: Path) -> None:
    assert open_wandb(None, tmp_path, {}) == []
    assert wandb.started == [] and list(tmp_path.iterdir()) == []


def test_no_network_ends_no_run(wandb: FakeWandb, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wandb.error = RuntimeError("api_key not\nconfigured")
    assert open_wandb("demo", tmp_path, {}) == []
    assert "--wandb_project demo: api_key not configured; the run goes on without" in caplog.text
    assert "WANDB_MODE=offline" in caplog.text


def test_a_missing_package_is_said_before_anything_is_built(wandb: FakeWandb, monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_package("demo") == [] == missing_package(None)
    monkeypatch.delitem(sys.modules, "wandb")
    problems = missing_package("demo")
    assert problems == [
        "--wandb_project demo: the package wandb is not installed; pip install wandb, or leave the flag away"
    ]


def test_a_folder_named_wandb_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "wandb").mkdir()  # what W&B itself leaves in the working directory
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(missing_package("demo")) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # that of its writer's thread
def test_tensorboard_goes_on_when_the_disk_has_room_again(tmp_path: Path) -> None:
    tracker = TensorBoard(tmp_path, step=0)
    tracker.log({"loss": 1.0}, 1)
    limit = sum(path.stat().st_size for path in tmp_path.iterdir()) + 20
    with files_end_at(limit), pytest.raises(OSError, match="File too large"):
        for _ in range(1000):  # its writer's thread fails a moment later
            tracker.log({"loss": 1.0}, 2)
    tracker.log({"loss": 5.0}, 5)
    tracker.close()
    events = EventAccumulator(str(tmp_path)).Reload().Scalars("loss")
    assert [(event.step, event.value) for event in events] == [(1, 1.0), (5, 5.0)]
