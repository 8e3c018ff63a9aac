"""What one sees of a run: a line each log interval; metrics.jsonl, a line a step; evaluations.jsonl; TensorBoard.

Values arrive as tensors on the device and are read only when a log line is due, so that no step waits for the device.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from colossal_llama.cluster import Cluster, main_rank_logger


class Metrics:
    """Rank 0 writes; on the other ranks every call is empty."""

    def __init__(
        self, cluster: Cluster, save_dir: Path, tensorboard_dir: Path, log_interval: int, total_steps: int, step: int
    ) -> None:
        self._active = cluster.is_main
        self._log_interval, self._total_steps = log_interval, total_steps
        self._log = main_rank_logger(__name__)
        self._pending: list[dict[str, Any]] = []
        self._interval_start, self._run_start, self._first_step = time.perf_counter(), time.perf_counter(), step
        if self._active:
            self._steps_file, self._evaluations_file = save_dir / "metrics.jsonl", save_dir / "evaluations.jsonl"
            _drop_after(self._steps_file, step)
            _drop_after(self._evaluations_file, step)
            self._tensorboard = SummaryWriter(str(tensorboard_dir), purge_step=step + 1)

    def record(self, values: dict[str, Any]) -> None:
        """Take the values of one step; they may be tensors. Written when the log interval is full."""
        if not self._active:
            return
        self._pending.append(values)
        if values["step"] % self._log_interval == 0:
            self.flush()

    def flush(self) -> None:
        """Write what is pending."""
        if not self._active or not self._pending:
            return
        rows = [{name: _number(value) for name, value in values.items()} for values in self._pending]
        now = time.perf_counter()
        seconds = now - self._interval_start
        self._interval_start = now
        tokens_per_second = sum(row["num_tokens"] for row in rows) / seconds
        for row in rows:
            row.update(step_seconds=seconds / len(rows), tokens_per_second=tokens_per_second)
        self._pending = []
        self._append(self._steps_file, rows)
        self._log.info(self._line(rows[-1]))

    def record_evaluation(self, step: int, results: dict[str, dict[str, float]]) -> None:
        """Take the held-out numbers of each evaluation set after `step`; its time is not counted as training."""
        if not self._active:
            return
        self._append(self._evaluations_file, [{"step": step, "eval": results}])
        for name, values in results.items():
            self._log.info(f"step {step} | {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in values.items()))

    def leave_out_time_since(self, start: float) -> None:
        """Do not count the time since `start` (time.perf_counter) as training."""
        self._interval_start += time.perf_counter() - start

    def close(self) -> None:
        """Write what is pending and close the files."""
        self.flush()
        if self._active:
            self._tensorboard.close()

    def _append(self, path: Path, rows: list[dict[str, Any]]) -> None:
        """A disk that is full for a moment must not end a run, and the other ranks would wait for this one for ever."""
        try:
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
            for row in rows:
                for name, value in _flat(row):
                    self._tensorboard.add_scalar(name, value, row["step"])
        except OSError as error:
            self._log.warning(f"{path}: {error.strerror}; metrics of {len(rows)} line(s) were not written")

    def _line(self, row: dict[str, Any]) -> str:
        seconds_a_step = (time.perf_counter() - self._run_start) / (row["step"] - self._first_step)
        minutes_left = (self._total_steps - row["step"]) * seconds_a_step / 60
        return (
            f"step {row['step']}/{self._total_steps} | loss {row['loss']:.4f} | lr {row['lr']:.2e} | "
            f"grad norm {row['grad_norm']:.3f} | {row['tokens_per_second']:,.0f} tokens/s | {minutes_left:.1f} min left"
        )


def _number(value: Any) -> float | int:
    return value.item() if hasattr(value, "item") else value


def _flat(row: dict[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """{"loss": 1, "eval": {"zh": {"loss": 2}}} -> [("loss", 1), ("eval/zh/loss", 2)]; without the step itself."""
    pairs: list[tuple[str, float]] = []
    for name, value in row.items():
        if isinstance(value, dict):
            pairs += _flat(value, f"{prefix}{name}/")
        elif name != "step":
            pairs.append((prefix + name, value))
    return pairs


def _drop_after(path: Path, step: int) -> None:
    """Keep the lines up to `step`: a resumed run writes the later ones again."""
    if not path.exists():
        return
    kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
    aside = path.with_suffix(".partial")
    aside.write_text("".join(line + "\n" for line in kept))
    aside.replace(path)


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):  # a line cut off by the kill
        return float("inf")
