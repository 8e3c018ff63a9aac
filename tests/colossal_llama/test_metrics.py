"""metrics.jsonl and TensorBoard: every step once, also after a kill."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from colossal_llama.cluster import Cluster
from colossal_llama.metrics import Metrics
from tests.conftest import read_evaluations


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A save_dir."""
    yield tmp_path


def metrics_of(directory: Path, step: int = 0, log_interval: int = 4, rank: int = 0) -> Metrics:
    cluster = Cluster(rank, 2, torch.device("cpu"))
    return Metrics(cluster, directory, directory / "tensorboard", log_interval, total_steps=10, step=step)


def record(metrics: Metrics, *steps: int, loss: float = 2.5) -> None:
    for step in steps:
        tensors = {"loss": torch.tensor(loss), "num_tokens": torch.tensor(100), "grad_norm": torch.tensor(1.5)}
        metrics.record({"step": step, "lr": 1e-3, **tensors})


def lines_of(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_every_step_is_written_whatever_the_interval(directory: Path) -> None:
    metrics = metrics_of(directory)
    record(metrics, 1, 2, 3)
    assert not (directory / "metrics.jsonl").exists()
    record(metrics, 4, 5, 6)
    assert [line["step"] for line in lines_of(directory)] == [1, 2, 3, 4]
    metrics.flush()
    metrics.flush()
    metrics.record_evaluation(6, {"zh": {"loss": 1.25, "perplexity": 3.5}})
    record(metrics, 7)
    metrics.close()
    lines = lines_of(directory)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert read_evaluations(directory) == [{"step": 6, "eval": {"zh": {"loss": 1.25, "perplexity": 3.5}}}]
    assert {name: lines[0][name] for name in ("loss", "lr", "num_tokens", "grad_norm")} == {
        "loss": 2.5,
        "lr": 1e-3,
        "num_tokens": 100,
        "grad_norm": 1.5,
    }
    seconds = lines[0]["step_seconds"]
    assert lines[0]["tokens_per_second"] == pytest.approx(100 / seconds)
    events = EventAccumulator(str(directory / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(step, 2.5) for step in range(1, 8)]
    assert [(event.step, event.value) for event in events.Scalars("eval/zh/loss")] == [(6, 1.25)]


def test_resumed_run_writes_the_later_steps_anew(directory: Path) -> None:
    first = metrics_of(directory, log_interval=1)
    record(first, 1, 2, 3, 4)
    first.record_evaluation(4, {"zh": {"loss": 9.0}})
    record(first, 5)
    first.close()
    with (directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 2.')  # the kill came here
    second = metrics_of(directory, step=3, log_interval=1)
    record(second, 4, loss=1.5)
    second.close()
    assert [(line["step"], line["loss"]) for line in lines_of(directory)] == [(1, 2.5), (2, 2.5), (3, 2.5), (4, 1.5)]
    assert read_evaluations(directory) == []
    events = EventAccumulator(str(directory / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")][-2:] == [(3, 2.5), (4, 1.5)]


def test_new_run_in_a_used_directory_drops_every_line(directory: Path) -> None:
    (directory / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"lo')
    metrics_of(directory).close()
    assert lines_of(directory) == []


def test_other_ranks_write_nothing(directory: Path) -> None:
    metrics = metrics_of(directory, rank=1, log_interval=1)
    record(metrics, 1)
    metrics.record_evaluation(1, {})
    metrics.close()
    assert list(directory.iterdir()) == []


def test_time_beside_training_is_left_out(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("colossal_llama.metrics.time.perf_counter", lambda: now[0])
    metrics = metrics_of(directory)
    now[0] = 108.0
    start = 102.0  # a checkpoint took 6 of these 8 seconds
    metrics.leave_out_time_since(start)
    record(metrics, 1, 2, 3, 4)
    metrics.close()
    assert {line["step_seconds"] for line in lines_of(directory)} == {0.5}
    assert {line["tokens_per_second"] for line in lines_of(directory)} == {200.0}
