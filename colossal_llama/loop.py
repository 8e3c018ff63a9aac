"""The run itself: step, log, evaluate, save, until every row has been seen."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch

from colossal_llama.batches import BatchReader
from colossal_llama.build import Run, advance, build, describe
from colossal_llama.cluster import Cluster, main_rank_logger, settle
from colossal_llama.config import TrainConfig
from colossal_llama.progress import Progress
from colossal_llama.step import Stepper


def train(config: TrainConfig, cluster: Cluster) -> None:
    """Build a run of `config`, or find where it stopped, and take it to its end."""
    run = build(config, cluster)
    describe(run)
    progress, plan = run.progress, run.plan
    tokens_seen = torch.tensor(progress.num_tokens_seen, device=cluster.device)
    for micro_batches in run.reader.steps_from(progress.num_rows_seen):
        if progress.step >= plan.total_steps:
            break
        lr = plan.lr_at(progress.step)
        result = run.stepper.train(micro_batches, lr)
        progress = advance(progress, run)
        tokens_seen = tokens_seen + result.num_tokens
        run.metrics.record(
            {
                "step": progress.step,
                "epoch": progress.epoch,
                "loss": result.loss,
                "lr": lr,
                "grad_norm": result.grad_norm,
                "num_tokens": result.num_tokens,
                "num_tokens_seen": tokens_seen,
                "num_rows_seen": progress.num_rows_seen,
            }
        )
        is_last = progress.step == plan.total_steps
        if run.eval_readers and (is_last or progress.step % config.eval_interval == 0):
            evaluate(run, progress.step)
        if is_last or progress.step % config.save_interval == 0:
            save(run, replace(progress, num_tokens_seen=int(tokens_seen)))
    run.metrics.close()
    final = run.writer.save_final_model()
    main_rank_logger(__name__).info(f"finished: {progress.step} steps, model in {final}")
    settle()  # the groups of the plugin go with `run`


def evaluate(run: Run, step: int) -> None:
    """Log loss and perplexity of every evaluation set, from sums over all ranks."""
    run.metrics.flush()
    start = time.perf_counter()
    results = {name: held_out_loss(run.stepper, reader) for name, reader in run.eval_readers.items()}
    run.metrics.record_evaluation(step, results)
    run.metrics.leave_out_time_since(start)


def held_out_loss(stepper: Stepper, reader: BatchReader) -> dict[str, float]:
    """Mean loss per token (natural logarithm) and perplexity over all rows of `reader`."""
    loss_sum, num_tokens = torch.zeros((), dtype=torch.float64), 0
    for micro_batches in reader.steps_from(0):
        loss, tokens = stepper.evaluate(micro_batches)
        loss_sum += loss.cpu()
        num_tokens += int(tokens)
    loss_mean = loss_sum.item() / max(1, num_tokens)
    return {"loss": loss_mean, "perplexity": math.exp(min(loss_mean, 700.0))}


def save(run: Run, progress: Progress) -> None:
    """A complete checkpoint at this position."""
    run.metrics.flush()
    start = time.perf_counter()
    plan = run.plan
    schedule = {
        "step": progress.step,
        "total_steps": plan.total_steps,
        "warmup_steps": plan.warmup_steps,
        "peak_lr": plan.peak_lr,
        "next_lr": plan.lr_at(progress.step),
    }
    run.writer.save(progress, schedule)
    run.metrics.leave_out_time_since(start)
