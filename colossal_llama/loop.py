"""The run itself: stage after stage, step, log, evaluate, save, until every row has been seen."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch

from colossal_llama.anomalies import Anomalies
from colossal_llama.build import Logs, Run, build, open_logs
from colossal_llama.checkpoint import too_old
from colossal_llama.checkpoint_files import delete, hide, remove_leftovers
from colossal_llama.cluster import Cluster, main_rank_logger, on_main, release, settle
from colossal_llama.config import TrainConfig
from colossal_llama.control import Control
from colossal_llama.engine import Engine, board
from colossal_llama.forecast import announce
from colossal_llama.held_out import evaluate, is_evaluated_after
from colossal_llama.host import has_accelerator
from colossal_llama.prefetch import prefetched
from colossal_llama.progress import Progress
from colossal_llama.randomness import seed_step
from colossal_llama.run_lock import RunLock
from colossal_llama.saving import saving
from colossal_llama.start import Start, latest_start
from colossal_llama.step import StepResult
from colossal_llama.stopping import Reason, StopRequests, stop_requests
from colossal_llama.watch import AGREEING, EVALUATING, Pulse, watched
from tokenizer_tools.command import Stopped
from tokenizer_tools.lineage import seal_model


@dataclass(frozen=True)
class Watch:
    """What accompanies all stages of a run."""

    logs: Logs
    control: Control
    stop: StopRequests
    pulse: Pulse


def train(config: TrainConfig, cluster: Cluster, started: float) -> None:
    """Build a run of `config`, or find where it stopped, and take it to its end, stage after stage.

    started: `time.monotonic()` of when the process began, for --time_limit. Raises Stopped, on all ranks, if a signal
    or the time limit ends the run before that.
    """
    with watched(cluster, config.limits) as pulse, RunLock(config.save_dir) as lock:
        _train_locked(config, cluster, started, pulse, lock)


def _train_locked(config: TrainConfig, cluster: Cluster, started: float, pulse: Pulse, lock: RunLock) -> None:
    on_main(lock.take_if_there)
    run, start = build(config, cluster)
    engines = [board(run, start)]
    on_main(lock.take)
    logs = open_logs(run)
    on_main(lock.take)  # --overwrite has taken the other one away
    on_main(lambda: _tidy(config, start))
    if run.progress.step < run.plan.total_steps:
        engines[0].writer.check_space()
    logs.metrics.row_chain = run.progress.row_chain
    announce(run, engines[0], logs.metrics)
    try:
        with stop_requests(config.time_limit_seconds, started) as stop:
            watch = Watch(logs, Control(), stop, pulse)
            while not train_stage(run, engines[0], watch):
                release(engines)
                engines.append(board(run, on_main(lambda: latest_start(config))))
    except Stopped:
        logs.metrics.close()
        settle()
        raise
    logs.metrics.close()
    settle()  # the groups of the plugin go with the last stage


def _tidy(config: TrainConfig, start: Start) -> None:
    """Delete what a killed run was just writing, and what it had not yet deleted."""
    remove_leftovers(config.save_dir)
    newest = start.checkpoint_in(config.save_dir)
    if newest is not None:
        delete([hide(old) for old in too_old(newest, config.keep_checkpoints)])


def train_stage(run: Run, engine: Engine, watch: Watch) -> bool:
    """Train one stage to its end. Returns whether it was the last. Raises Stopped once all is saved if it has to."""
    config, stage, progress = run.config, engine.stage, engine.progress
    metrics = watch.logs.metrics
    anomalies = Anomalies(config.on_anomaly, watch.logs.anomalies, engine.reader)
    tokens_seen = torch.tensor(progress.num_tokens_seen, device=run.cluster.device)
    reason = Reason.NONE
    watch.pulse.begin_stage(progress.step)
    metrics.cost = engine.cost
    metrics.start_clock()
    with (
        saving(run, engine, metrics, watch.stop, watch.pulse) as saver,
        prefetched(engine.reader.steps_from(progress.num_rows_seen), pin=has_accelerator()) as steps,
    ):
        for micro_batches in watch.pulse.reading(steps):
            if progress.step >= stage.end_step:
                break
            lr, embeds_lr = stage.lr_at(progress.step), stage.embeds_lr_at(progress.step)
            first_row = progress.num_rows_seen
            engine.stepper.set_learning_rates(lr, embeds_lr)
            seed_step(config.seed, progress.step, engine.stepper.layout.dp_rank)
            result = engine.stepper.train(micro_batches, first_row)
            progress = run.plan.after_step(progress)
            tokens_seen = tokens_seen + result.num_tokens
            run.seen_ids.update(torch.cat([batch.input_ids for batch in micro_batches]))
            anomalies.take(progress.step, first_row, result)
            metrics.record(_record(progress, result, lr, embeds_lr, tokens_seen))
            watch.pulse.at(AGREEING, progress.step)
            agreed = watch.control.agree(
                watch.stop.reason_after_step(), engine.writer.is_saved, engine.writer.has_failed
            )
            saver.look(agreed)
            reason = Reason(agreed.reason)
            is_last = progress.step == stage.end_step
            evaluates = is_evaluated_after(run, progress.step) and not reason  # what is left out now, a resume does
            saves = is_last or bool(reason) or progress.step % config.save_interval == 0
            if evaluates or saves or progress.step % config.log_interval == 0:
                anomalies.read()
            if saves:
                saver.begin(dataclasses.replace(progress, num_tokens_seen=int(tokens_seen)))
            if evaluates:
                watch.pulse.at(EVALUATING)
                evaluate(run, engine, metrics, progress.step)
            if reason:
                break
    path = saver.close()
    is_finished = stage is run.plan.stages[-1] and progress.step >= stage.end_step
    if reason and not is_finished:
        raise Stopped(
            f"stopped by {reason.words} after step {progress.step}, saved in {path}; "
            f"the same command goes on from there"
        )
    if is_finished:
        _save_model(run, engine, progress.step, anomalies.num_bad)
    return is_finished


def _save_model(run: Run, engine: Engine, num_steps: int, num_bad: int) -> None:
    final = engine.writer.save_final_model(
        engine.final_files(), lambda model_dir: seal_model(model_dir, run.lineage, run.bins.tokenizer_fingerprint)
    )
    main_rank_logger(__name__).info(
        f"finished: {num_steps} steps{f', {num_bad} of them bad' if num_bad else ''}, model in {final}"
    )


def _record(
    progress: Progress, result: StepResult, lr: float, embeds_lr: float, tokens_seen: torch.Tensor
) -> dict[str, Any]:
    """A step's line of metrics.jsonl, its figures still on the device."""
    return {
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
        "row_ids": result.row_ids,
        "is_bad": result.is_bad,
        "category_nats": result.category_nats,
        "category_tokens": result.category_tokens,
    }
