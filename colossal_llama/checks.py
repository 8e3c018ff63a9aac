"""Which flags of train.py fit together: a config comes in, every problem that needs no torch and no data goes out."""

from __future__ import annotations

import math
from pathlib import Path

from colossal_llama.config import TP_SHARED_SP_MODES, TrainConfig
from colossal_llama.stages import Stage, parse_stages
from colossal_llama.stopping import seconds_of
from colossal_llama.trackers import missing_package
from tokenizer_tools.command import UserError

LEAST_LOST_SECONDS = 3


def check(config: TrainConfig) -> None:
    """Raise one UserError that names every problem."""
    rules = (_numbers, _durations, _paths, _evaluation, plugin_problems, learning_problems)
    problems = [problem for rule in rules for problem in rule(config)]
    if problems:
        raise UserError("; ".join(problems))


def stages_of(config: TrainConfig) -> list[Stage]:
    """The stages of --stages, or the one that the plain flags describe. Raises UserError with all that is wrong."""
    whole_run = Stage(
        train="lora" if config.lora_rank else config.trained,
        steps=None,
        lr=config.lr,
        embeds_lr=config.embeds_lr,
        warmup_steps=config.warmup_steps,
        lr_schedule=config.lr_schedule,
        lr_floor=config.lr_floor,
        lr_decay_share=config.lr_decay_share,
    )
    return parse_stages(config.stages, whole_run)


def _numbers(config: TrainConfig) -> list[str]:
    at_least = {
        "save_interval": 1,
        "keep_checkpoints": 0,
        "num_epochs": 1,
        "micro_batch_size": 1,
        "accumulation_steps": 1,
        "max_length": 2,
        "eval_interval": 1,
        "log_interval": 1,
        "tp": 1,
        "pp": 1,
        "sp": 1,
    }
    problems = [
        f"--{name} {getattr(config, name)}: must be at least {bound}"
        for name, bound in at_least.items()
        if getattr(config, name) < bound
    ]
    for name in ("max_steps", "global_batch_size", "warmup_steps"):
        value, bound = getattr(config, name), 0 if name == "warmup_steps" else 1
        if value is not None and value < bound:
            problems.append(f"--{name} {value}: must be at least {bound}, or left away for the default")
    for name in ("weight_decay", "gradient_clipping", "spike_threshold"):
        if not 0 <= getattr(config, name) < float("inf"):
            problems.append(f"--{name} {getattr(config, name)}: must be 0 or a positive number")
    if not 0 <= config.seed < 2**32:
        problems.append(f"--seed {config.seed}: must be a whole number from 0 to {2**32 - 1}")
    for name, example in (("lr", "3e-4"), ("embeds_lr", "1e-3"), ("peak_tflops", "312"), ("lora_alpha", "32")):
        value = getattr(config, name)
        if value is not None and not 0 < value < float("inf"):
            problems.append(f"--{name} {value}: must be a positive number, such as {example}")
    if not 0 <= config.lr_floor <= 1:
        problems.append(f"--lr_floor {config.lr_floor}: must be a share of the peak from 0 to 1, such as 0.1")
    if not 0 < config.lr_decay_share <= 1:
        problems.append(f"--lr_decay_share {config.lr_decay_share}: must be a share of the steps, such as 0.2")
    return problems


def _durations(config: TrainConfig) -> list[str]:
    problems = []
    for name in ("time_limit", "lost_after", "stall_limit"):
        value = getattr(config, name)
        try:
            seconds = None if value is None else seconds_of(value)
        except ValueError as error:
            problems.append(f"--{name} {value}: {error}")
            continue
        if name == "lost_after" and seconds is not None and seconds < LEAST_LOST_SECONDS:
            problems.append(
                f"--lost_after {value}: must be at least {LEAST_LOST_SECONDS}s, or a busy rank counts as lost"
            )
    return problems


def learning_problems(config: TrainConfig) -> list[str]:
    """What the flags of who trains when cannot mean, together or under --plugin."""
    problems = []
    if config.freeze_non_embeds_params and config.train == "new_rows":
        problems.append("--freeze_non_embeds_params is --train embeds; leave it away with --train new_rows")
    if config.stages and (config.trained != "all"):
        given = "--freeze_non_embeds_params" if config.freeze_non_embeds_params else f"--train {config.train}"
        problems.append(f"--stages says what trains when; leave {given} away")
    try:
        stages = stages_of(config)
    except UserError as error:
        return [*problems, str(error)]
    kinds = {stage.train for stage in stages}
    subsets = sorted(kinds - {"all", "lora"})
    if config.pp > 2 and subsets:
        problems.append(f"training {subsets[0]} with --pp {config.pp}: a middle stage has nothing to train; use --pp 2")
    if config.pp > 2 and config.zero and any(stage.embeds_lr not in (None, stage.lr) for stage in stages):
        problems.append(
            f"--embeds_lr with --pp {config.pp}: a middle stage holds no embeddings, and ZeRO would wait for it for "
            f"ever; use --zero 0, --pp 2, or the same learning rate"
        )
    if config.lora_rank:
        problems += _lora(config)
        if kinds != {"lora"} or config.trained != "all":
            problems.append("--lora_rank trains adapters in the whole run; leave --train and other stages away")
    elif "lora" in kinds:
        problems.append("--stages lora: say how large the adapters are with --lora_rank")
    problems += missing_package(config.wandb_project)
    return problems


def _lora(config: TrainConfig) -> list[str]:
    problems = []
    if config.lora_rank < 0:
        problems.append(f"--lora_rank {config.lora_rank}: must be a positive number, or 0 for no adapters")
    if config.plugin.startswith("gemini"):
        problems.append(f"--lora_rank with --plugin {config.plugin}: Booster refuses adapters under gemini; use zero2")
    if (config.tp, config.pp, config.sp) != (1, 1, 1):
        problems.append("--lora_rank with --tp, --pp or --sp above 1: colossalai cannot split adapters; use zero2")
    if not config.lora_targets:
        problems.append("--lora_targets: names no layer; name some, such as q_proj v_proj, or leave the flag away")
    return problems


def _paths(config: TrainConfig) -> list[str]:
    problems = []
    if not config.pretrained.is_dir():
        problems.append(f"--pretrained {config.pretrained}: no such directory; name the output of init_model")
    for path in config.dataset:
        if not path.is_dir():
            problems.append(f"--dataset {path}: no such directory; name the output of prepare_pretrain_dataset")
    if config.load_checkpoint is not None and not config.load_checkpoint.is_dir():
        problems.append(f"--load_checkpoint {config.load_checkpoint}: no such directory; name a checkpoint")
    if config.save_dir.exists() and not config.save_dir.is_dir():
        problems.append(f"--save_dir {config.save_dir}: is a file; name a directory")
    inputs = [config.pretrained, *config.dataset, *config.eval_sets.values()]
    problems += [
        f"--save_dir {config.save_dir}: is the input {path}; choose another directory"
        for path in inputs
        if path.resolve() == config.save_dir.resolve()
    ]
    if config.overwrite:
        inputs += [] if config.load_checkpoint is None else [config.load_checkpoint]
        problems += [
            f"--overwrite would delete {path} with --save_dir {config.save_dir}; choose another --save_dir"
            for path in inputs
            if path.resolve().is_relative_to(config.save_dir.resolve())
        ]
    return problems


def _evaluation(config: TrainConfig) -> list[str]:
    problems = []
    for item in config.eval_dataset:
        name, _, directory = item.partition("=")
        if not name or not directory:
            problems.append(f"--eval_dataset {item}: must be NAME=PATH, such as zh=data/zh_arrow")
        elif not Path(directory).is_dir():
            problems.append(f"--eval_dataset {item}: {directory} is no directory; name bucket bins")
    names = [item.partition("=")[0] for item in config.eval_dataset]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"--eval_dataset {name}=...: is named twice; give each set a name of its own")
    if config.max_eval_samples is not None and config.max_eval_samples < 1:
        problems.append(f"--max_eval_samples {config.max_eval_samples}: must be at least 1, or left away for all rows")
    for item in config.watch:
        name, _, bound = item.partition("=")
        if name not in names or not _is_number(bound):
            problems.append(f"--watch {item}: must be NAME=BOUND of an --eval_dataset, such as en=0.05 (bits per byte)")
    return problems


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def plugin_problems(config: TrainConfig) -> list[str]:
    """What --plugin cannot do under the other flags, whatever the model and the data."""
    problems = []
    if config.zero not in (0, 1, 2):
        problems.append(f"--zero {config.zero}: must be 0, 1 or 2")
    if config.plugin != "3d" and (config.tp, config.pp, config.sp) != (1, 1, 1):
        problems.append(f"--tp/--pp/--sp above 1 need --plugin 3d, not {config.plugin}")
    if config.plugin == "3d":
        problems += _three_d(config)
    if config.mixed_precision == "fp32" and config.plugin.startswith("gemini"):
        problems.append(f"--mixed_precision fp32: {config.plugin} has only fp16 and bf16; use zero2 or ddp for fp32")
    if config.mixed_precision == "fp16" and config.plugin == "ddp":
        problems.append("--mixed_precision fp16: ddp has no loss scaling here; use bf16, or zero2 for fp16")
    return problems


def _three_d(config: TrainConfig) -> list[str]:
    problems = []
    if config.pp > 1 and config.zero == 2:
        problems.append("--zero 2 with --pp above 1: Booster allows ZeRO 0 or 1 under a pipeline; use --zero 1")
    if config.mixed_precision == "fp32" and config.zero > 0:
        problems.append(f"--mixed_precision fp32 with --zero {config.zero}: 3d has fp32 only with --zero 0")
    if config.sp > 1 and config.sp_mode in TP_SHARED_SP_MODES and config.sp != config.tp:
        problems.append(
            f"--sp {config.sp} with --sp_mode {config.sp_mode} shares the tensor-parallel group; set --tp {config.sp}"
        )
    if config.sp > 1 and config.sp_mode == "ring_attn":
        problems.append(
            "--sp_mode ring_attn: its zigzag order needs flash-attn's own backward and cannot be right on a CPU, "
            "and no GPU run has proved it here; use all_to_all, split_gather or ring"
        )
    num_rows = config.global_batch_size or config.micro_batch_size * config.accumulation_steps
    if config.pp > 1 and num_rows < config.pp:
        problems.append(
            f"--pp {config.pp} needs at least {config.pp} micro-batches a step, but --accumulation_steps "
            f"{config.accumulation_steps} x --micro_batch_size {config.micro_batch_size} gives fewer rows; "
            f"use --accumulation_steps {config.pp}"
        )
    return problems
