"""Flags -> the parts of a run, joined: data, model, plugin, optimizer, and the place where the run goes on."""

from __future__ import annotations

import hashlib
import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from colossal_llama import model, optim, plugins
from colossal_llama.batches import BatchReader, Shape
from colossal_llama.checkpoint import Checkpoint, CheckpointWriter, latest_checkpoint, load_optimizer, open_checkpoint
from colossal_llama.cluster import Cluster, main_rank_logger, on_main, together
from colossal_llama.config import TrainConfig
from colossal_llama.host import refuse_on_host
from colossal_llama.metrics import Metrics
from colossal_llama.progress import Progress
from colossal_llama.step import Stepper
from data_tools.bins import Bins, open_bins
from tokenizer_tools.command import UserError
from tokenizer_tools.outputs import write_json
from tokenizer_tools.tokenizer import fingerprint, load_tokenizer

RUN_CONFIG = "train_config.json"
PAD_ID = 0  # any id will do: padding carries no label and is never attended to by a token


@dataclass(frozen=True)
class Plan:
    """The schedule of a run, all of it known before the first step."""

    total_steps: int
    warmup_steps: int
    peak_lr: float
    end_row: int
    rows_per_step: int

    def lr_at(self, step: int) -> float:
        """Learning rate of the step after `step` steps are done."""
        return optim.lr_at(step, self.total_steps, self.warmup_steps, self.peak_lr)


@dataclass(frozen=True)
class Run:
    """Everything the loop needs."""

    config: TrainConfig
    cluster: Cluster
    progress: Progress
    plan: Plan
    num_rows: int
    reader: BatchReader
    eval_readers: dict[str, BatchReader]
    stepper: Stepper
    writer: CheckpointWriter
    metrics: Metrics


@dataclass(frozen=True)
class Start:
    """Where the weights come from and where the rows go on."""

    model_dir: Path
    checkpoint: Checkpoint | None


def build(config: TrainConfig, cluster: Cluster) -> Run:
    """Join the parts. Raises UserError, on all ranks together, for anything that cannot become a run."""
    together(lambda: refuse_on_host(config.mixed_precision))
    start = on_main(lambda: find_start(config))
    tokenizer = together(lambda: load_tokenizer(start.model_dir))
    bins = together(lambda: open_data(config.dataset, tokenizer, config.max_length))
    eval_bins = together(
        lambda: {name: open_data([path], tokenizer, config.max_length) for name, path in config.eval_sets.items()}
    )
    planned = Progress(
        seed=config.seed,
        data_fingerprint=data_fingerprint(bins),
        tokenizer_fingerprint=bins.tokenizer_fingerprint,
        trained="embeds" if config.freeze_non_embeds_params else "all",
    )
    progress = together(lambda: _progress(start, planned))
    row_length = max(one.max_length for one in (bins, *eval_bins.values()))

    stepper = boost(config, cluster, start, row_length)
    shape = shape_of(config, stepper)
    plan = together(lambda: make_plan(config, progress, bins.num_rows, shape.rows_per_step))

    def reader_of(data: Bins, end_row: int) -> BatchReader:
        return BatchReader(data, shape, config.seed, row_length, PAD_ID, end_row)

    on_main(lambda: _open_save_dir(config))
    tensorboard_dir = config.tensorboard_dir or config.save_dir / "tensorboard"
    return Run(
        config=config,
        cluster=cluster,
        progress=progress,
        plan=plan,
        num_rows=bins.num_rows,
        reader=reader_of(bins, plan.end_row),
        eval_readers={name: reader_of(data, data.num_rows) for name, data in eval_bins.items()},
        stepper=stepper,
        writer=CheckpointWriter(
            stepper.booster, stepper.model, stepper.optimizer, tokenizer, config.save_dir, config.keep_checkpoints
        ),
        metrics=together(
            lambda: Metrics(
                cluster, config.save_dir, tensorboard_dir, config.log_interval, plan.total_steps, progress.step
            )
        ),
    )


def find_start(config: TrainConfig) -> Start:
    """The same command line starts a run and resumes it: a complete checkpoint in --save_dir wins over everything else.

    Then --load_checkpoint: a whole checkpoint goes on, any other model directory gives its weights alone. Then
    --pretrained. Raises UserError if --save_dir holds something that is not a run.
    """
    if config.save_dir.is_dir() and any(config.save_dir.iterdir()) and not _is_run(config.save_dir):
        raise UserError(f"--save_dir {config.save_dir}: is not empty and holds no run; choose another directory")
    checkpoint = None if config.overwrite else latest_checkpoint(config.save_dir)
    given = config.load_checkpoint
    if given is not None and _is_run(given):
        raise UserError(f"--load_checkpoint {given}: is a run; name one of its epoch-E_step-S folders")
    if checkpoint is None and given is not None and (given / "running_states.json").is_file():
        checkpoint = open_checkpoint(given)
    if checkpoint is not None:
        return Start(checkpoint.modeling, checkpoint)
    return Start(given or config.pretrained, None)


def _is_run(directory: Path) -> bool:
    """Whether train.py has written this directory."""
    return (directory / RUN_CONFIG).is_file()


def _open_save_dir(config: TrainConfig) -> None:
    """The last thing before the first step: with --overwrite the old run goes only now that the new one can begin."""
    if config.overwrite and config.save_dir.is_dir():
        shutil.rmtree(config.save_dir)
    write_json(config.save_dir / RUN_CONFIG, config.as_json())
    if config.config_file is not None:
        write_json(config.config_file, config.as_json())


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


def _progress(start: Start, planned: Progress) -> Progress:
    if start.checkpoint is None:
        return planned
    start.checkpoint.progress.check_continues(planned)
    return start.checkpoint.progress


def boost(config: TrainConfig, cluster: Cluster, start: Start, row_length: int) -> Stepper:
    """Load the model and let Booster take it over, with the optimizer's state of the checkpoint if there is one."""
    dtype = plugins.model_dtype(config)
    attention = together(lambda: plugins.attention_implementation(config))
    base = together(lambda: model.load_model(start.model_dir, dtype, attention, config.use_grad_checkpoint))
    together(lambda: plugins.check_world(config, cluster.world_size, base.config.vocab_size, row_length))
    if config.freeze_non_embeds_params:
        model.freeze_non_embeddings(base)
    plugin = plugins.make_plugin(config, model.num_parameters(base), base.config.hidden_size)
    if config.plugin == "ddp":
        base = base.to(cluster.device)
    optimizer = optim.make_optimizer(base, config.lr, config.weight_decay, config.plugin.startswith("gemini"))
    booster, boosted, optimizer = plugins.boost(plugin, base, optimizer)
    if start.checkpoint is not None:
        load_optimizer(start.checkpoint, booster, boosted, optimizer)
    return Stepper(
        booster,
        boosted,
        optimizer,
        plugins.layout_of(plugin),
        cluster.device,
        config.max_grad_norm,
        autocast_bf16=config.plugin == "ddp" and config.mixed_precision == "bf16",
    )


def shape_of(config: TrainConfig, stepper: Stepper) -> Shape:
    """How the rows of a step are shared among the ranks."""
    layout = stepper.layout
    return Shape(config.micro_batch_size, config.accumulation_steps, layout.dp_size, layout.dp_rank)


def make_plan(config: TrainConfig, progress: Progress, num_rows: int, rows_per_step: int) -> Plan:
    """Every row --num_epochs times: the last step is filled up with blank rows. Raises UserError if nothing fits."""
    end_row = num_rows * config.num_epochs
    total_steps = progress.step + math.ceil((end_row - progress.num_rows_seen) / rows_per_step)
    if config.max_steps is not None:
        total_steps = min(total_steps, config.max_steps)
    warmup_steps = config.warmup_steps
    if warmup_steps is None:
        warmup_steps = optim.default_warmup_steps(total_steps)
    if warmup_steps > total_steps:
        raise UserError(f"--warmup_steps {warmup_steps}: the run has only {total_steps} steps; warm up for fewer")
    return Plan(total_steps, warmup_steps, config.lr, end_row, rows_per_step)


def describe(run: Run) -> None:
    """Log the resolved plan before the first step."""
    log, plan = main_rank_logger(__name__), run.plan
    count = model.num_parameters(run.stepper.model)
    log.info(
        f"{run.config.plugin}, {run.cluster.world_size} process(es), {run.config.mixed_precision}: "
        f"{run.num_rows:,} rows x {run.config.num_epochs} epoch(s), {plan.rows_per_step} rows a step, "
        f"{plan.total_steps:,} steps, {plan.warmup_steps} of warm-up; {count:,} parameters on this rank"
    )
    if run.progress.step:
        log.info(f"going on after step {run.progress.step}, row {run.progress.num_rows_seen:,}")


def advance(progress: Progress, run: Run) -> Progress:
    """The position after one more step; the last step of a run may hold fewer rows."""
    seen = min(progress.num_rows_seen + run.plan.rows_per_step, run.plan.end_row)
    return replace(progress, step=progress.step + 1, epoch=seen // run.num_rows, num_rows_seen=seen)
