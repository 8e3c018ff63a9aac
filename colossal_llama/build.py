"""Flags -> a run without its model: data and plan, and at last the logs. `engine.py` adds the model of each stage."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PretrainedConfig

from colossal_llama import model
from colossal_llama.architectures import check_architecture
from colossal_llama.cluster import Cluster, main_rank_logger, on_main, together
from colossal_llama.config import TrainConfig
from colossal_llama.division import accumulating, check_world, dp_size
from colossal_llama.document_mask import refuse_document_mask
from colossal_llama.eval_rows import spread_rows
from colossal_llama.host import refuse_on_host
from colossal_llama.journal import Journal
from colossal_llama.made_from import Origin, find_origin, refuse_other_data, write_origin
from colossal_llama.metrics import Metrics
from colossal_llama.progress import Progress
from colossal_llama.row_health import SeenIds, num_old_rows
from colossal_llama.run_plan import Plan, make_plan
from colossal_llama.shared_dir import refuse_separate_disks
from colossal_llama.start import Start, check_changes, find_start, going_on, open_save_dir, sound_start
from colossal_llama.trackers import open_wandb
from data_tools.bins import Bins, open_bins
from tokenizer_tools.command import UserError
from tokenizer_tools.lineage import TOKENIZER_FILES, Record, refuse_swapped
from tokenizer_tools.tokenizer import fingerprint, load_tokenizer
from tokenizer_tools.tokenizer_files import read_files

PAD_ID = 0  # any id will do: padding carries no label and is never attended to by a token


@dataclass(frozen=True)
class Run:
    """All of a run but the model, which is another one in each stage."""

    config: TrainConfig
    cluster: Cluster
    tokenizer: Any
    tokenizer_files: dict[str, bytes]
    """What lies beside every saved model, byte for byte; --keep_checkpoints may delete where it came from."""
    model_config: PretrainedConfig
    num_old_rows: int
    """Embedding rows of the old vocabulary; 0 if no stage needs to know."""
    bins: Bins
    eval_bins: dict[str, Bins]
    row_length: int
    plan: Plan
    progress: Progress
    """Where this process began."""
    seen_ids: SeenIds
    origin: Origin

    @property
    def lineage(self) -> Record:
        """What the run was made from, for lineage.json."""
        return self.origin.lineage


@dataclass(frozen=True)
class Logs:
    """What a run writes beside its checkpoints. Only rank 0 writes."""

    metrics: Metrics
    anomalies: Journal | None


def build(config: TrainConfig, cluster: Cluster) -> tuple[Run, Start]:
    """Join all but the model. Raises UserError, on all ranks together, for anything that cannot become a run."""
    together(lambda: refuse_on_host(config.mixed_precision))
    refuse_separate_disks(config.save_dir)
    found = sound_start(on_main(lambda: find_start(config)))
    on_main(lambda: refuse_swapped(found.model_dir, "tokenizer"))
    tokenizer = together(lambda: load_tokenizer(found.model_dir))
    bins = together(lambda: open_data(config.dataset, tokenizer, config.max_length))
    eval_bins = together(
        lambda: {
            name: spread_rows(open_data([path], tokenizer, config.max_length), config.max_eval_samples)
            for name, path in config.eval_sets.items()
        }
    )
    row_length = max(one.max_length for one in (bins, *eval_bins.values()))
    if row_length > bins.max_length:
        main_rank_logger(__name__).warning(
            f"--eval_dataset has rows of {row_length} tokens: training rows of {bins.max_length} are padded to it; "
            f"prepare it with --max_length {bins.max_length}"
        )
    model_config = together(lambda: model.load_config(found.model_dir))
    together(lambda: _check_model(config, cluster, model_config, row_length))
    fresh = Progress(
        seed=config.seed,
        data_fingerprint=data_fingerprint(bins),
        tokenizer_fingerprint=bins.tokenizer_fingerprint,
    )
    on_main(lambda: refuse_other_data(config, found, bins))
    start = together(lambda: going_on(found, fresh, config.restart_data))
    progress = fresh if start.checkpoint is None else start.checkpoint.progress
    num_readers = dp_size(config, cluster.world_size)
    config = accumulating(config, num_readers)
    room_per_step = config.micro_batch_size * config.accumulation_steps * num_readers
    rows_per_step = config.global_batch_size or room_per_step
    plan = together(lambda: make_plan(config, progress, bins.num_rows, rows_per_step))
    together(lambda: check_changes(start, config, plan, cluster.world_size))
    num_old = together(lambda: _num_old_rows(config, plan))
    run = Run(
        config=config,
        cluster=cluster,
        tokenizer=tokenizer,
        tokenizer_files=together(lambda: read_files(found.model_dir, TOKENIZER_FILES)),
        model_config=model_config,
        num_old_rows=num_old,
        bins=bins,
        eval_bins=eval_bins,
        row_length=row_length,
        plan=plan,
        progress=progress,
        seen_ids=SeenIds(model_config.vocab_size, torch.device("cpu")),
        origin=find_origin(config, start, bins.tokenizer_fingerprint, bins, eval_bins),
    )
    return run, start


def _check_model(config: TrainConfig, cluster: Cluster, model_config: PretrainedConfig, row_length: int) -> None:
    check_world(config, cluster.world_size, model_config.vocab_size, row_length)
    reason = refuse_document_mask(config.use_flash_attn, config.plugin, config.sp) if config.document_mask else None
    if reason is not None:
        raise UserError(f"--document_mask: {reason}")
    for warning in check_architecture(model_config, config, row_length):
        main_rank_logger(__name__).warning(warning)


def _num_old_rows(config: TrainConfig, plan: Plan) -> int:
    """Embedding rows of the old vocabulary, for the stages that train the others. Raises UserError if nobody knows."""
    if all(stage.train != "new_rows" for stage in plan.stages):
        return 0
    num_old = num_old_rows(config.pretrained)
    if num_old is None:
        raise UserError(
            f"--pretrained {config.pretrained}: no manifest.json of init_model says which rows are new; "
            f"name the directory that init_model wrote, or train embeds in place of new_rows"
        )
    return num_old


def open_logs(run: Run) -> Logs:
    """Open --save_dir and what is written there while the run goes on: the last thing before its first step."""
    config = run.config
    step = run.progress.step or -1  # of a run that was stopped before its first checkpoint nothing is kept
    on_main(lambda: open_save_dir(config))
    on_main(lambda: write_origin(config.save_dir, run.origin))

    def opened() -> Logs:
        trackers = open_wandb(config.wandb_project, config.save_dir, config.as_json()) if run.cluster.is_main else []
        metrics = Metrics(
            run.cluster,
            config.save_dir,
            config.tensorboard_dir or config.save_dir / "tensorboard",
            config.log_interval,
            run.plan.total_steps,
            step,
            categories=run.bins.categories,
            tokens_by_category=run.progress.tokens_by_category,
            trackers=trackers,
        )
        return Logs(metrics, Journal(config.save_dir / "anomalies.jsonl", step) if run.cluster.is_main else None)

    return together(opened)


def open_data(paths: list[Path], tokenizer: Any, max_length: int) -> Bins:
    """Bins that were made with the very tokenizer of the model. Raises UserError that names both sides if not."""
    bins = open_bins(paths)
    names = ", ".join(map(str, paths))
    own = fingerprint(tokenizer)
    if bins.tokenizer_fingerprint != own:
        raise UserError(
            f"{names}: made with tokenizer {bins.tokenizer_fingerprint[:16]}, the model's is {own[:16]}; "
            f"prepare the data with the model's own tokenizer directory"
        )
    if bins.max_length > max_length:
        raise UserError(f"{names}: rows of up to {bins.max_length} tokens; set --max_length {bins.max_length} or more")
    if bins.num_rows == 0:
        raise UserError(f"{names}: holds no rows; prepare it from text that is not empty")
    return bins


def data_fingerprint(bins: Bins) -> str:
    """sha256 over the bins' own hashes, in order."""
    return hashlib.sha256("".join(one.sha256 for one in bins.bins).encode()).hexdigest()
