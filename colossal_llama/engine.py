"""A run and a place to start from -> the boosted model of one stage and what feeds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from colossalai.booster import Booster
from transformers import PretrainedConfig, PreTrainedModel

from colossal_llama import lora, mends, model, optim, plugins
from colossal_llama.batches import BatchReader, Shape
from colossal_llama.build import PAD_ID, Run
from colossal_llama.checkpoint import load_optimizer
from colossal_llama.checkpoint_writer import CheckpointWriter
from colossal_llama.cluster import together
from colossal_llama.document_mask import DocumentMask, attach_block_mask, document_mask
from colossal_llama.flops import StepCost, flops_per_position, trained_and_added
from colossal_llama.guard import Guard
from colossal_llama.head import attach_loss_head, mask_old_rows
from colossal_llama.host import has_accelerator, peak
from colossal_llama.loss_scale import load_loss_scale
from colossal_llama.progress import Progress
from colossal_llama.saved_parts import Shapes
from colossal_llama.stages import EMBEDDINGS_ONLY, ResolvedStage, stage_at
from colossal_llama.start import Start
from colossal_llama.step import Stepper, StepSettings
from colossal_llama.weights import ModelFiles, adapter_files, merged_files, model_files
from data_tools.bins import Bins


@dataclass(frozen=True)
class Engine:
    """One stage: from `progress` to the stage's end."""

    stage: ResolvedStage
    progress: Progress
    cost: StepCost
    stepper: Stepper
    writer: CheckpointWriter
    final_files: Callable[[], ModelFiles]
    """The files of the finished model; with adapters merged in, it trains no more after this."""
    reader: BatchReader
    eval_readers: dict[str, BatchReader]


@dataclass(frozen=True)
class Boosted:
    """What Booster made of a model, and names and shapes of its optimizer's parameters in Booster's id order."""

    booster: Booster
    model: Any
    optimizer: Any
    trained: Shapes
    cost: StepCost


def board(run: Run, start: Start) -> Engine:
    """Load the model of `start`, let Booster take it over for its stage, with the optimizer's state that goes on."""
    config = run.config
    progress = start.checkpoint.progress if start.checkpoint is not None else run.progress
    stage = stage_at(run.plan.stages, progress.step)
    number = run.plan.stages.index(stage)
    goes_on = start.checkpoint is not None and progress.stage == number
    if start.checkpoint is not None:
        together(lambda: progress.check_stage(number, stage.train, begins=progress.step == stage.first_step))
    boosted = _boost(run, stage, together(lambda: _load(run, start, stage)))
    if start.checkpoint is not None:
        with_moments = goes_on or stage.carries_optimizer
        booster, optimizer = boosted.booster, boosted.optimizer
        load_optimizer(start.checkpoint, booster, boosted.model, optimizer, boosted.trained, with_moments)
        load_loss_scale(optimizer, progress.loss_scale)
        run.seen_ids.load(start.checkpoint.path)
    stepper = _stepper(run, stage, progress, boosted)
    layout = stepper.layout
    shape = Shape(
        config.micro_batch_size, config.accumulation_steps, layout.dp_size, layout.dp_rank, config.global_batch_size
    )

    is_adapted = stage.train == "lora"
    files = adapter_files(boosted.model) if is_adapted else model_files(boosted.booster, boosted.model)

    before = start.checkpoint_in(config.save_dir)

    def reader_of(data: Bins, end_row: int) -> BatchReader:
        return BatchReader(data, shape, config.seed, run.row_length, PAD_ID, end_row, config.document_mask)

    return Engine(
        stage=stage,
        progress=progress,
        cost=boosted.cost,
        stepper=stepper,
        writer=CheckpointWriter(
            boosted.booster,
            boosted.model,
            boosted.optimizer,
            boosted.trained,
            files,
            run.tokenizer_files,
            config.save_dir,
            config.keep_checkpoints,
            None if before is None else before.name,
        ),
        final_files=lambda: merged_files(boosted.model) if is_adapted else files,
        reader=reader_of(run.bins, run.plan.end_row),
        eval_readers={name: reader_of(data, data.num_rows) for name, data in run.eval_bins.items()},
    )


def _boost(run: Run, stage: ResolvedStage, base: Any) -> Boosted:
    config = run.config
    plugin = plugins.make_plugin(config, model.num_parameters(base), run.model_config.hidden_size)
    if config.plugin == "ddp":
        base = base.to(run.cluster.device)
    optimizer = optim.make_optimizer(
        base,
        stage.lr,
        config.weight_decay,
        config.plugin.startswith("gemini"),
        stage.embeds_lr,
        decay_embeddings=stage.train != "new_rows",
    )
    trained, cost = optim.trained_shapes(base, optimizer), _cost(run, stage, base)
    boosted = Boosted(*plugins.boost(plugin, base, optimizer), trained, cost)
    if config.accumulation_steps > 1:
        mends.add_gradients_in_fp32(boosted.optimizer)
    return boosted


def _stepper(run: Run, stage: ResolvedStage, progress: Progress, boosted: Boosted) -> Stepper:
    config, device = run.config, run.cluster.device
    layout = plugins.layout_of(boosted.booster.plugin)
    first_trained_row = run.num_old_rows if stage.train == "new_rows" else 0
    if first_trained_row:
        mask_old_rows(boosted.model, first_trained_row)
    head = together(lambda: attach_loss_head(boosted.model, layout.tp_group, first_trained_row))
    is_active = config.on_anomaly != "ignore"
    guard = Guard(boosted.optimizer, config.spike_threshold, is_active, device, progress.running_loss)
    settings = StepSettings(
        max_grad_norm=config.max_grad_norm,
        autocast_bf16=config.plugin == "ddp" and config.mixed_precision == "bf16",
        document_mask=_document_mask(run, boosted.model),
        room_per_step=config.micro_batch_size * config.accumulation_steps * layout.dp_size,
        num_categories=len(run.bins.categories),
    )
    return Stepper(boosted.booster, boosted.model, boosted.optimizer, head, guard, layout, device, settings)


def _load(run: Run, start: Start, stage: ResolvedStage) -> PreTrainedModel:
    config = run.config
    dtype, attention = plugins.model_dtype(config), plugins.attention_implementation(config)
    if stage.train == "lora":
        settings = lora.LoraSettings(
            rank=config.lora_rank,
            alpha=2.0 * config.lora_rank if config.lora_alpha is None else config.lora_alpha,
            targets=tuple(config.lora_targets),
            dropout=0.0,
            modules_to_save=tuple(config.lora_modules_to_save),
            seed=config.seed,
        )
        # its hashes say that --pretrained is the base of a run that goes on, unless --load_checkpoint gave the weights
        is_base = start.checkpoint is not None and "weights" not in run.lineage["made_from"]
        base = config.pretrained if is_base else None
        return model.load_lora_model(start.model_dir, dtype, attention, config.use_grad_checkpoint, settings, base)
    loaded = model.load_model(start.model_dir, dtype, attention, config.use_grad_checkpoint)
    if stage.train in EMBEDDINGS_ONLY:
        model.freeze_non_embeddings(loaded)
    return loaded


def _document_mask(run: Run, boosted: Any) -> DocumentMask:
    """How documents are kept apart; a mask that the model itself has to make is attached to it."""
    config = run.config
    if not config.document_mask:
        return "none"
    how = document_mask(config.plugin, config.use_flash_attn, has_accelerator())
    if how == "block_mask":
        attach_block_mask(boosted, plugins.model_dtype(config), _sliding_window(run.model_config))
    return how


def _sliding_window(model_config: PretrainedConfig) -> int | None:
    """How far back a token sees; Qwen2 keeps the number in its config also where it is not used."""
    is_used = getattr(model_config, "use_sliding_window", True)
    return getattr(model_config, "sliding_window", None) if is_used else None


def _cost(run: Run, stage: ResolvedStage, base: PreTrainedModel) -> StepCost:
    config = run.config
    positions = run.plan.rows_per_step * run.row_length
    num_trained, num_added = trained_and_added(base)
    if stage.train == "new_rows":
        num_trained -= run.num_old_rows * run.model_config.hidden_size
    flops = flops_per_position(run.model_config, run.row_length, num_trained, num_added)
    return StepCost(
        positions, flops * positions, peak(config.mixed_precision, run.cluster.world_size, config.peak_tflops)
    )
