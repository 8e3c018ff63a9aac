"""metrics.jsonl and TensorBoard: every step once, also after a kill."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from colossal_llama.cluster import Cluster
from colossal_llama.flops import Peak, StepCost
from colossal_llama.metrics import Metrics
from tests.conftest import read_evaluations


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A save_dir."""
    yield tmp_path


def metrics_of(directory: Path, step: int = 0, log_interval: int = 4, rank: int = 0, **options: Any) -> Metrics:
    cluster = Cluster(rank, 2, torch.device("cpu"))
    options = {"total_steps": 10, **options}
    return Metrics(cluster, directory, directory / "tensorboard", log_interval, step=step, **options)


def record(metrics: Metrics, *steps: int, loss: float = 2.5, **more: torch.Tensor) -> None:
    for step in steps:
        tensors = {"loss": torch.tensor(loss), "num_tokens": torch.tensor(100), "grad_norm": torch.tensor(1.5)}
        metrics.record({"step": step, "lr": 1e-3, **tensors, **more})


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


def test_mfu_memory_and_positions(directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    now = [100.0]
    monkeypatch.setattr("colossal_llama.metrics.time.perf_counter", lambda: now[0])
    monkeypatch.setattr("colossal_llama.metrics.memory_bytes", lambda: 12_340_000_000)
    cost = StepCost(positions=400, flops=3e12, peak=Peak(4e12, "2 x 2 TFLOP/s (--peak_tflops)"))
    with caplog.at_level(logging.INFO):
        metrics = metrics_of(directory)
        now[0] = 1100.0  # the model is built
        metrics.cost = cost
        metrics.start_clock()
        now[0] = 1108.0
        record(metrics, 1, 2, 3, 4)
    (line,) = {tuple(sorted(speed_of(line).items())) for line in lines_of(directory)}
    assert dict(line) == {
        "memory_bytes": 12_340_000_000,
        "mfu": 0.375,
        "positions_per_second": 200.0,
        "step_seconds": 2.0,
        "tokens_per_second": 50.0,
    }
    assert caplog.messages[0] == "MFU is measured against 2 x 2 TFLOP/s (--peak_tflops)"
    assert "| 50 tokens/s | MFU 37.5% | 12.3 GB |" in caplog.messages[1]


def speed_of(line: dict[str, Any]) -> dict[str, float]:
    names = ("step_seconds", "tokens_per_second", "positions_per_second", "memory_bytes", "mfu")
    return {name: line[name] for name in names if name in line}


def test_without_a_known_peak_there_is_no_mfu(directory: Path, caplog: Any) -> None:
    with caplog.at_level(logging.INFO):
        metrics = metrics_of(directory)
        metrics.cost = StepCost(400, 3e12)
        metrics.start_clock()
        record(metrics, 1, 2, 3, 4)
    assert "MFU" not in caplog.text
    assert lines_of(directory)[0]["positions_per_second"] > 0
    assert "mfu" not in lines_of(directory)[0]


def test_time_left_is_sane_from_the_first_line_on(
    directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """A resumed run of 110 steps: 2 s a step, but 30 s the first one and a long evaluation in between."""
    now = [0.0]
    monkeypatch.setattr("colossal_llama.metrics.time.perf_counter", lambda: now[0])
    metrics = metrics_of(directory, step=100, log_interval=1, total_steps=210)
    said = []
    with caplog.at_level(logging.INFO):
        for step, seconds in ((101, 30.0), (102, 2.0), (103, 2.0), (104, 2.0)):
            now[0] += seconds
            record(metrics, step)
            said.append(caplog.messages[-1].rpartition("| ")[2])
            start = now[0]
            now[0] += 1000.0
            metrics.leave_out_time_since(start)
        assert said == ["54 min left", "29 min left", "4 min left", "4 min left"]
        metrics.start_clock()  # the next stage is ten times as slow
        now[0] += 20.0
        record(metrics, 105)
        assert caplog.messages[-1].endswith("| 35 min left")


def test_categories_over_the_interval_and_over_the_run(directory: Path, caplog: Any) -> None:
    first = metrics_of(directory, log_interval=2, categories=["en", "zh", "code"], tokens_by_category={"en": 1000})
    nats, tokens = [[10.0, 3.0, 0.0], [20.0, 3.0, 0.0]], [[4, 1, 0], [6, 2, 0]]
    with caplog.at_level(logging.INFO):
        for step in (1, 2):
            sums = {"category_nats": torch.tensor(nats[step - 1]), "category_tokens": torch.tensor(tokens[step - 1])}
            record(first, step, **sums)
    lines = lines_of(directory)
    assert "categories" not in lines[0] and not {"category_nats", "category_tokens"} & lines[1].keys()
    assert lines[1]["categories"] == {
        "en": {"num_tokens_seen": 1010, "loss": 3.0},
        "zh": {"num_tokens_seen": 3, "loss": 2.0},
        "code": {"num_tokens_seen": 0},
    }
    assert caplog.messages[-1].endswith("| loss of en 3.000, zh 2.000")
    assert first.tokens_by_category == {"en": 1010, "zh": 3, "code": 0}
    first.close()
    events = EventAccumulator(str(directory / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("categories/zh/loss")] == [(2, 2.0)]

    second = metrics_of(
        directory, step=2, log_interval=1, categories=["code", "zh"], tokens_by_category=first.tokens_by_category
    )
    record(second, 3, category_nats=torch.tensor([0.0, 1.0]), category_tokens=torch.tensor([0, 5]))
    assert second.tokens_by_category == {"en": 1010, "zh": 8, "code": 0}
    assert lines_of(directory)[-1]["categories"]["zh"] == {"num_tokens_seen": 8, "loss": pytest.approx(0.2)}


class Broken:
    """A tracker whose server is gone."""

    name = "Somewhere"

    def log(self, values: Mapping[str, float], step: int) -> None:
        raise ConnectionError("no route\nto host")

    def close(self) -> None:
        raise ConnectionError("still none")


def test_a_tracker_that_fails_ends_no_run_and_harms_no_other(directory: Path, caplog: Any) -> None:
    metrics = metrics_of(directory, log_interval=2, trackers=[Broken()])
    metrics._trackers.reverse()  # the broken one first
    record(metrics, 1, 2)
    metrics.close()
    assert [line["step"] for line in lines_of(directory)] == [1, 2]
    warnings = [message for message in caplog.messages if "Somewhere" in message]
    assert "no route to host; the run goes on" in warnings[0] and "still none" in warnings[1]
    assert len(warnings) == 2
    events = EventAccumulator(str(directory / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]


def test_row_health_has_its_own_file_and_curves(directory: Path, caplog: Any) -> None:
    metrics = metrics_of(directory)
    health = {"new_ids_seen": 0.5, "input": {"new": {"update_rms": 0.25}}}
    with caplog.at_level(logging.INFO):
        metrics.record_row_health(8, health, "new rows: 50.0%")
    metrics.close()
    assert json.loads((directory / "row_health.jsonl").read_text()) == {"step": 8, "row_health": health}
    assert caplog.messages[-1] == "step 8 | new rows: 50.0%"
    events = EventAccumulator(str(directory / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("row_health/input/new/update_rms")] == [(8, 0.25)]
    metrics_of(directory, step=4)
    assert (directory / "row_health.jsonl").read_text() == ""


def test_evaluations_by_category_go_to_the_file_and_not_to_the_log(directory: Path, caplog: Any) -> None:
    metrics = metrics_of(directory)
    results = {"zh": {"loss": 1.25, "categories": {"news": {"loss": 1.0}}}}
    with caplog.at_level(logging.INFO):
        metrics.record_evaluation(6, results)
    assert read_evaluations(directory) == [{"step": 6, "eval": results}]
    assert caplog.messages[-1] == "step 6 | zh: loss 1.2500"
