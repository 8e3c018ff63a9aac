"""What one sees of a run: figures of steps come in; a log line an interval, metrics.jsonl and curves go out.

Values arrive as tensors on the device and are read only when a log line is due, so that no step waits for the device.
metrics.jsonl has a line a step, evaluations.jsonl one an evaluation, row_health.jsonl one a checkpoint.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from colossal_llama.cluster import Cluster, main_rank_logger
from colossal_llama.flops import StepCost
from colossal_llama.host import memory_bytes
from colossal_llama.journal import Journal
from colossal_llama.row_chain import FIRST_LINK, extended
from colossal_llama.trackers import TensorBoard, Tracker

CATEGORY_SUMS = ("category_nats", "category_tokens")
ROW_IDS = "row_ids"
INTERVALS_REMEMBERED = 20
LOGGED_CATEGORIES = 6
MINUTE, HOUR, DAY = 60, 3600, 86400
GIGABYTE = 10**9


class Metrics:
    """Rank 0 writes; on the other ranks every call is empty.

    `categories` name the entries of the tensors `category_nats` and `category_tokens` of a record; `tokens_by_category`
    is what the run has consumed up to `step`. `trackers` come beside TensorBoard.
    """

    def __init__(
        self,
        cluster: Cluster,
        save_dir: Path,
        tensorboard_dir: Path,
        log_interval: int,
        total_steps: int,
        step: int,
        *,
        categories: Sequence[str] = (),
        tokens_by_category: Mapping[str, int] | None = None,
        trackers: Sequence[Tracker] = (),
    ) -> None:
        self._active = cluster.is_main
        self._log_interval, self._total_steps = log_interval, total_steps
        self._categories = categories
        self.cost: StepCost | None = None
        """What the steps from the next `start_clock` on take; another amount in each stage."""
        self._log = main_rank_logger(__name__)
        self.tokens_by_category: dict[str, int] = dict(tokens_by_category or {})
        """Loss-bearing tokens of each category trained on, as of the last flush; on rank 0."""
        self.row_chain = FIRST_LINK
        """Of the rows read up to the last flush; on rank 0. Set it to that of a run that goes on."""
        self._pending: list[dict[str, Any]] = []
        self._seconds_a_step: deque[float] = deque(maxlen=INTERVALS_REMEMBERED)
        self._interval_start = time.perf_counter()
        self._has_named_peak = False
        if self._active:
            names = ("metrics", "evaluations", "row_health")
            self._steps, self._evaluations, self._health = (Journal(save_dir / f"{name}.jsonl", step) for name in names)
            self._trackers: list[Tracker] = [TensorBoard(tensorboard_dir, step), *trackers]

    def record(self, values: dict[str, Any]) -> None:
        """Take the values of one step; they may be tensors. Written when the log interval is full.

        `category_nats` (summed loss) and `category_tokens` (loss-bearing tokens), both [categories], are added up over
        the interval; the chain over `row_ids` [rows] is written for every step; other values are single numbers.
        """
        if not self._active:
            return
        self._pending.append(values)
        if values["step"] % self._log_interval == 0:
            self.flush()

    def flush(self) -> None:
        """Write what is pending."""
        if not self._active or not self._pending:
            return
        pending, self._pending = self._pending, []
        rows = [_numbers(values) for values in pending]
        categories = self._add_categories(pending)
        now = time.perf_counter()
        seconds = now - self._interval_start
        self._interval_start = now
        self._seconds_a_step.append(seconds / len(rows))
        shared = self._speed(sum(row["num_tokens"] for row in rows), seconds, len(rows))
        for row, values in zip(rows, pending, strict=True):
            if ROW_IDS in values:
                self.row_chain = row["row_chain"] = extended(self.row_chain, map(int, values[ROW_IDS].tolist()))
            row.update(shared)
        if categories:
            rows[-1]["categories"] = categories
        self._write(self._steps, rows)
        self._log.info(self._line(rows[-1]))

    def record_evaluation(self, step: int, results: dict[str, dict[str, Any]]) -> None:
        """Take the held-out numbers of each evaluation set after `step`; its time is not counted as training."""
        if not self._active:
            return
        self._write(self._evaluations, [{"step": step, "eval": results}])
        for name, values in results.items():
            numbers = {key: value for key, value in values.items() if not isinstance(value, dict)}
            text = ", ".join(f"{key} {_readable(value)}" for key, value in numbers.items())
            self._log.info(f"step {step} | {name}: {text}")

    def has_evaluated(self, step: int) -> bool:
        """Whether a run that goes on after `step` had evaluated it before it stopped; on rank 0."""
        return step in self._evaluations.first_steps

    def record_row_health(self, step: int, health: dict[str, Any], line: str) -> None:
        """Take the health of the new rows in the checkpoint of `step`, and how the log says it."""
        if not self._active:
            return
        self._write(self._health, [{"step": step, "row_health": health}])
        self._log.info(f"step {step} | {line}")

    def leave_out_time_since(self, start: float) -> None:
        """Do not count the time since `start` (time.perf_counter) as training."""
        self._interval_start += time.perf_counter() - start

    def start_clock(self) -> None:
        """Training begins now: at first, or with another stage, which has a speed of its own."""
        self._interval_start = time.perf_counter()
        self._seconds_a_step.clear()
        if self.cost is not None and self.cost.peak is not None and not self._has_named_peak:
            self._has_named_peak = True
            self._log.info(f"MFU is measured against {self.cost.peak.source}")

    def close(self) -> None:
        """Write what is pending and close the files."""
        self.flush()
        if self._active:
            for tracker in self._trackers:
                with self._no_end_of_the_run(tracker):
                    tracker.close()

    def _speed(self, num_tokens: int, seconds: float, num_steps: int) -> dict[str, float]:
        """Figures that all steps of an interval share. Tokens bear loss; positions are all, padding included."""
        shared = {
            "step_seconds": seconds / num_steps,
            "tokens_per_second": num_tokens / seconds,
            "memory_bytes": memory_bytes(),
        }
        if self.cost is not None:
            shared["positions_per_second"] = self.cost.positions * num_steps / seconds
            mfu = self.cost.mfu(seconds / num_steps)
            if mfu is not None:
                shared["mfu"] = mfu
        return shared

    def _add_categories(self, pending: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
        """{category: tokens consumed in all, and mean loss in this interval if it had tokens}."""
        if not self._categories or CATEGORY_SUMS[0] not in pending[0]:
            return {}
        nats, tokens = (torch.stack([values[name] for values in pending]) for name in CATEGORY_SUMS)
        is_finite = nats.isfinite()  # one bad step must not hide the others
        sums = (nats.where(is_finite, 0.0).sum(0), (tokens * is_finite).sum(0), tokens.sum(0))
        figures: dict[str, dict[str, float]] = {}
        for name, *figures_of_one in zip(self._categories, *(values.tolist() for values in sums), strict=True):
            category_nats, num_scored, num_tokens = figures_of_one
            seen = self.tokens_by_category.get(name, 0) + int(num_tokens)
            self.tokens_by_category[name] = seen
            figures[name] = {"num_tokens_seen": seen}
            if num_scored:
                figures[name]["loss"] = category_nats / num_scored
        return figures

    def _write(self, journal: Journal, rows: list[dict[str, Any]]) -> None:
        journal.append(rows)
        for tracker in self._trackers:
            with self._no_end_of_the_run(tracker):
                for row in rows:
                    tracker.log(_flat(row), row["step"])

    @contextmanager
    def _no_end_of_the_run(self, tracker: Tracker) -> Iterator[None]:
        """A curve is no reason to end a run, and the other ranks would wait for this one for ever."""
        try:
            yield
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            self._log.warning(f"{tracker.name}: {reason}; the run goes on, and metrics.jsonl has what is missing there")

    def _line(self, row: dict[str, Any]) -> str:
        left = (self._total_steps - row["step"]) * statistics.median(self._seconds_a_step)
        words = [
            f"step {row['step']}/{self._total_steps}",
            f"loss {row['loss']:.4f}",
            f"lr {row['lr']:.2e}",
            f"grad norm {row['grad_norm']:.3f}",
            f"{row['tokens_per_second']:,.0f} tokens/s",
            *([f"MFU {row['mfu']:.1%}"] if "mfu" in row else []),
            f"{row['memory_bytes'] / GIGABYTE:.1f} GB",
            f"{_duration(left)} left",
        ]
        categories = row.get("categories", {})
        if 1 < len(categories) <= LOGGED_CATEGORIES:
            losses = [f"{name} {figures['loss']:.3f}" for name, figures in categories.items() if "loss" in figures]
            words.append("loss of " + ", ".join(losses))
        return " | ".join(words)


def _duration(seconds: float) -> str:
    """Training time in the unit that a person would choose; evaluations and checkpoints come on top."""
    if seconds < 2 * MINUTE:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR:
        return f"{seconds / MINUTE:.0f} min"
    return f"{seconds / HOUR:.1f} h" if seconds < 2 * DAY else f"{seconds / DAY:.1f} days"


def _readable(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """A step's single numbers, read from the device."""
    return {
        name: value.item() if isinstance(value, torch.Tensor) else value
        for name, value in values.items()
        if name not in (*CATEGORY_SUMS, ROW_IDS)
    }


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """{"step": 4, "loss": 1, "eval": {"zh": {"loss": 2}}} -> {"loss": 1, "eval/zh/loss": 2}."""
    pairs: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            pairs |= _flat(value, f"{prefix}{name}/")
        elif name != "step" and not isinstance(value, str):
            pairs[prefix + name] = value
    return pairs
