"""The run itself: stage after stage, step, log, evaluate, save, until every row has been seen."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from colossal_llama.anomalies import Anomalies
from colossal_llama.build import Logs, Run, build, open_logs
from colossal_llama.cluster import Cluster, main_rank_logger, release, settle
from colossal_llama.config import TrainConfig
from colossal_llama.engine import Engine, board
from colossal_llama.forecast import announce
from colossal_llama.held_out import evaluate
from colossal_llama.host import has_accelerator
from colossal_llama.metrics import Metrics
from colossal_llama.prefetch import prefetched
from colossal_llama.progress import Progress
from colossal_llama.row_health import health_line, row_health, write_seen_ids
from colossal_llama.start import latest_start


def train(config: TrainConfig, cluster: Cluster) -> None:
    """Build a run of `config`, or find where it stopped, and take it to its end, stage after stage."""
    run, start = build(config, cluster)
    engines = [board(run, start)]
    logs = open_logs(run)
    announce(run, engines[0], logs.metrics)
    while not train_stage(run, engines[0], logs):
        release(engines)
        engines.append(board(run, latest_start(config)))
    logs.metrics.close()
    settle()  # the groups of the plugin go with the last stage


def train_stage(run: Run, engine: Engine, logs: Logs) -> bool:
    """Train one stage to its end. Returns whether it was the last."""
    config, stage, progress = run.config, engine.stage, engine.progress
    anomalies = Anomalies(config.on_anomaly, logs.anomalies, engine.reader)
    tokens_seen = torch.tensor(progress.num_tokens_seen, device=run.cluster.device)
    metrics = logs.metrics
    metrics.cost = engine.cost
    metrics.start_clock()
    with prefetched(engine.reader.steps_from(progress.num_rows_seen), pin=has_accelerator()) as steps:
        for micro_batches in steps:
            if progress.step >= stage.end_step:
                break
            lr, embeds_lr = stage.lr_at(progress.step), stage.embeds_lr_at(progress.step)
            first_row = progress.num_rows_seen
            engine.stepper.set_learning_rates(lr, embeds_lr)
            result = engine.stepper.train(micro_batches, first_row)
            progress = run.plan.after_step(progress)
            tokens_seen = tokens_seen + result.num_tokens
            run.seen_ids.update(torch.cat([batch.input_ids for batch in micro_batches]))
            anomalies.take(progress.step, first_row, result)
            metrics.record(
                {
                    "step": progress.step,
                    "epoch": progress.epoch,
                    "stage": progress.stage + 1,
                    "loss": result.loss,
                    "lr": lr,
                    "embeds_lr": embeds_lr,
                    "grad_norm": result.grad_norm,
                    "num_tokens": result.num_tokens,
                    "num_tokens_seen": tokens_seen,
                    "num_rows_seen": progress.num_rows_seen,
                    "is_bad": result.is_bad,
                    "category_nats": result.category_nats,
                    "category_tokens": result.category_tokens,
                }
            )
            is_last = progress.step == stage.end_step
            evaluates = bool(run.eval_bins) and (is_last or progress.step % config.eval_interval == 0)
            saves = is_last or progress.step % config.save_interval == 0
            if evaluates or saves or progress.step % config.log_interval == 0:
                anomalies.read()
            if evaluates:
                evaluate(run, engine, metrics, progress.step)
            if saves:
                save(run, engine, metrics, replace(progress, num_tokens_seen=int(tokens_seen)))
    if stage is not run.plan.stages[-1]:
        return False
    final = engine.writer.save_final_model()
    main_rank_logger(__name__).info(
        f"finished: {progress.step} steps{f', {anomalies.num_bad} of them bad' if anomalies.num_bad else ''}, "
        f"model in {final}"
    )
    return True


def save(run: Run, engine: Engine, metrics: Metrics, progress: Progress) -> None:
    """A complete checkpoint at this position, and how the new rows fare in it."""
    metrics.flush()
    start = time.perf_counter()
    seen = run.seen_ids.merged(run.cluster.device)
    loss = engine.stepper.guard.running_loss()
    progress = replace(
        progress,
        tokens_by_category=metrics.tokens_by_category,
        loss_weighted_sum=loss.weighted_sum,
        loss_weight=loss.weight,
    )
    path = engine.writer.save(
        progress, run.plan.schedule_after(progress.step), lambda aside: write_seen_ids(aside, seen)
    )
    if run.cluster.is_main:
        health = row_health(run.config.pretrained, path / "modeling", seen)
        if health is not None:
            metrics.record_row_health(progress.step, health, health_line(health))
    metrics.leave_out_time_since(start)
