"""What is said before the first step: the plan of the run, and how long it takes at the speed of a measured pass."""

from __future__ import annotations

import time

from colossal_llama import model, plugins
from colossal_llama.build import Run
from colossal_llama.cluster import main_rank_logger, on_main
from colossal_llama.engine import Engine
from colossal_llama.held_out import evaluate, is_evaluated_after, spelled_by
from colossal_llama.metrics import Metrics
from colossal_llama.plan_table import RunData, plan_text

FORWARD_PASSES_A_STEP = 3
"""A backward pass costs two forward passes; activations that are computed again cost one more."""


def announce(run: Run, engine: Engine, metrics: Metrics) -> None:
    """Log the resolved plan, and before the first step of a run what later evaluations are compared with."""
    log, config, progress = main_rank_logger(__name__), run.config, engine.progress
    log.info(
        f"{config.plugin}, {run.cluster.world_size} process(es), {config.mixed_precision}: "
        f"{model.num_parameters(engine.stepper.model):,} parameters on this rank"
    )
    data = RunData(
        num_rows=run.bins.num_rows,
        num_epochs=config.num_epochs,
        rows_per_step=run.plan.rows_per_step,
        row_length=run.row_length,
        num_tokens=sum(one.num_tokens for one in run.bins.bins),
        num_loss_tokens=sum(one.num_loss_tokens for one in run.bins.bins),
        num_rows_seen=progress.num_rows_seen,
    )
    can_evaluate = plugins.can_evaluate_first(config)
    seconds = seconds_per_step(run, engine) if can_evaluate else None
    log.info(plan_text(run.plan.stages, data, progress.step, seconds))
    if progress.step:
        log.info(f"going on after step {progress.step}, row {progress.num_rows_seen:,}")
        is_due = can_evaluate and is_evaluated_after(run, progress.step)
        if is_due and not on_main(lambda: metrics.has_evaluated(progress.step)):  # it stopped before it could
            evaluate(run, engine, metrics, progress.step)
    elif run.eval_bins and can_evaluate:
        evaluate(run, engine, metrics, 0)


def seconds_per_step(run: Run, engine: Engine) -> float | None:
    """What a step should take, from one forward pass over the first step's rows; None if none are left."""
    micro_batches = next(engine.reader.steps_from(engine.progress.num_rows_seen), None)
    if micro_batches is None or engine.progress.step >= run.plan.total_steps:
        return None
    text = spelled_by(run)
    for _ in range(2):  # the first pass pays for what is allocated and compiled
        start = time.perf_counter()
        engine.stepper.evaluate(micro_batches, len(run.bins.categories), text).cpu()
    return (time.perf_counter() - start) * (FORWARD_PASSES_A_STEP + run.config.use_grad_checkpoint)
