"""The saves of one stage: when one begins, what goes into it beside weights and optimizer, and what follows when it is
on the disk."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from colossal_llama.background import in_background
from colossal_llama.build import Run
from colossal_llama.cluster import main_rank_logger
from colossal_llama.control import Agreement
from colossal_llama.engine import Engine
from colossal_llama.loss_scale import loss_scale_state
from colossal_llama.metrics import Metrics
from colossal_llama.probe import MOST_TOKENS, Probe, probe_row, write_probe
from colossal_llama.progress import Progress
from colossal_llama.row_health import health_line, row_health, write_seen_ids
from colossal_llama.start import RUN_CONFIG
from colossal_llama.stopping import StopRequests
from colossal_llama.trainer_probe import trainer_probe
from colossal_llama.watch import NO_PULSE, SAVING, Pulse
from tokenizer_tools.command import UserError
from tokenizer_tools.lineage import LINEAGE
from tokenizer_tools.outputs import write_json


@contextmanager
def saving(run: Run, engine: Engine, metrics: Metrics, stop: StopRequests, pulse: Pulse) -> Iterator[Saver]:
    """The saves of a stage. A UserError, which all ranks raise together, waits until the open checkpoint is whole."""
    saver = Saver(run, engine, metrics, stop, pulse)
    try:
        yield saver
    except UserError:
        saver.close()
        raise


class Saver:
    """Saves one stage of a run. All ranks call each method of it, after the same step."""

    def __init__(self, run: Run, engine: Engine, metrics: Metrics, stop: StopRequests, pulse: Pulse = NO_PULSE) -> None:
        self._run, self._engine, self._metrics, self._stop, self._pulse = run, engine, metrics, stop, pulse
        self._seen: Any = None
        self._open: Progress | None = None
        self._began = 0.0
        self._health: Future[dict[str, Any] | None] | None = None
        self._health_step = 0

    def begin(self, progress: Progress) -> None:
        """Take a complete checkpoint of this position; it is written while the training goes on."""
        start = time.perf_counter()
        self._pulse.at(SAVING)
        if self._open is not None:
            main_rank_logger(__name__).info("the checkpoint before this one is still being written: waiting for it")
            self.finish()
        self._began = time.perf_counter()
        self._stop.save_begins()
        run, engine, metrics = self._run, self._engine, self._metrics
        metrics.flush()
        seen = run.seen_ids.merged(run.cluster.device)
        loss = engine.stepper.guard.running_loss()
        progress = replace(
            progress,
            tokens_by_category=dict(metrics.tokens_by_category),
            loss_weighted_sum=loss.weighted_sum,
            loss_weight=loss.weight,
            row_chain=metrics.row_chain,
            loss_scale=loss_scale_state(engine.stepper.optimizer),
        )
        config = run.config
        probe = _probe(run, engine)

        def write_more(aside: Path) -> None:
            write_json(aside / "lr_scheduler", run.plan.schedule_after(progress.step))
            write_json(aside / RUN_CONFIG, config.as_json())
            write_json(aside / LINEAGE, run.lineage)
            write_seen_ids(aside, seen)
            if probe is not None:
                write_probe(probe, aside)

        engine.writer.begin(progress, write_more)
        self._open, self._seen = progress, seen
        metrics.leave_out_time_since(start)

    def look(self, agreement: Agreement) -> None:
        """After each step: finish the open checkpoint if every rank has written its part, or if one never will."""
        if self._open is not None and (agreement.all_saved or agreement.any_failed):
            start = time.perf_counter()
            self._pulse.at(SAVING)
            self.finish()
            self._metrics.leave_out_time_since(start)
        if self._health is not None and self._health.done():
            self._record_health()

    def finish(self) -> Path | None:
        """Wait until the open checkpoint is complete. Its path, or None if none is open. Raises as the writer does."""
        path = self._engine.writer.finish()
        if path is None or self._open is None:
            return None
        self._stop.save_took(time.perf_counter() - self._began)
        progress, seen, self._open = self._open, self._seen, None
        if self._run.cluster.is_main:
            self._record_health()
            pretrained = self._run.config.pretrained
            self._health = in_background(lambda: row_health(pretrained, path / "modeling", seen))
            self._health_step = progress.step
        return path

    def close(self) -> Path | None:
        """Wait for all that is still being done. The path of a checkpoint that was open until now."""
        self._pulse.at(SAVING)
        path = self.finish()
        self._record_health()
        self._engine.writer.close()
        return path

    def _record_health(self) -> None:
        """How the new rows fare in the checkpoint before, as the background has found it."""
        if self._health is None:
            return
        health, self._health = self._health.result(), None
        if health is not None:
            self._metrics.record_row_health(self._health_step, health, health_line(health))


def _probe(run: Run, engine: Engine) -> Probe | None:
    """What the model as it trains makes of a fixed text, for the readers of its files; on rank 0.

    One short row: the training waits for it. A pipeline keeps the shapes that it has seen.
    """
    config, stepper = run.config, engine.stepper
    num_rows = config.micro_batch_size if stepper.is_pipeline else 1
    length = run.row_length if stepper.is_pipeline or config.sp > 1 else min(run.row_length, MOST_TOKENS)
    row = probe_row(run.tokenizer, length)
    return trainer_probe(stepper, row, num_rows, config.accumulation_steps, run.cluster.device)
