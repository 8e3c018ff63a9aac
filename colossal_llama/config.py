"""The flags of train.py: what each one means, what it may be, and which of them fit together.

No torch here: `train.py --help` and a wrong flag answer before anything heavy is imported.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from simple_parsing import field, flag

from tokenizer_tools.command import UserError

Plugin = Literal["gemini", "gemini_auto", "zero2", "zero2_cpu", "3d", "ddp"]
Precision = Literal["fp16", "bf16", "fp32"]
SpMode = Literal["all_to_all", "split_gather", "ring", "ring_attn"]

TP_SHARED_SP_MODES = ("split_gather", "ring")  # these two split the sequence over the tensor-parallel group


@dataclass(frozen=True)
class TrainConfig:
    """Continue the pre-training of a LLaMA-family model on bucket bins.

    The same command line starts a run and, after a kill, goes on from the newest checkpoint in --save_dir.
    A single argument that names a .yaml or .json file holds the same names as these flags.
    """

    pretrained: Path
    """Hugging Face model directory with its tokenizer, as init_model writes it."""
    dataset: list[Path]
    """Bucket directories of prepare_pretrain_dataset, or their parent."""

    plugin: Plugin = "gemini"
    """How Booster shares the work: zero2 for up to ~13B, gemini when memory is short, 3d for tp/pp/sp."""
    load_checkpoint: Path | None = None
    """A checkpoint to go on from (weights, optimizer, position), or its `modeling` folder for the weights alone."""
    save_dir: Path = Path("checkpoints")
    """Checkpoints, metrics.jsonl and, at the end, the finished model in `modeling/`."""
    save_interval: int = 1000
    """Steps between checkpoints. The last step is always saved."""
    keep_checkpoints: int = 0
    """Keep this many newest checkpoints and delete older ones; 0 keeps all."""
    tensorboard_dir: Path | None = None
    """TensorBoard files; default: `tensorboard` inside --save_dir."""
    config_file: Path | None = None
    """Where the resolved configuration is written too; --save_dir always has it as `train_config.json`."""

    num_epochs: int = 1
    """Times every row is seen."""
    max_steps: int | None = None
    """Stop, and end the schedule, after this many steps even if rows are left."""
    micro_batch_size: int = field(default=1, alias=["--batch_size"])
    """Rows a rank takes through the model at once."""
    accumulation_steps: int = 1
    """Micro-batches a rank adds up before one optimizer step; under --pp they are the pipeline's micro-batches."""
    max_length: int = 4096
    """Longest row accepted, in tokens. A dataset made with a longer --max_length is refused."""
    seed: int = 42
    """Seed of the row order."""

    lr: float = 3e-4
    """Peak learning rate."""
    warmup_steps: int | None = field(default=None, alias=["-s"])
    """Steps of linear warm-up; default: 0.025 of all steps. Then cosine down to 0.1 of the peak."""
    weight_decay: float = field(default=0.1, alias=["-w"])
    """AdamW's decay; never on norms and biases."""
    gradient_clipping: float = field(default=1.0, alias=["--grad_clip"])
    """Largest global gradient norm; 0 turns clipping off."""
    mixed_precision: Precision = "bf16"
    """Number format of the forward and backward pass; the optimizer keeps fp32 weights where the plugin can."""
    freeze_non_embeds_params: bool = flag(default=False)
    """Train only the input and output embeddings: the warm-up of a new vocabulary."""

    use_grad_checkpoint: bool = flag(default=False)
    """Recompute activations in the backward pass: less memory, about a third more time."""
    use_flash_attn: bool = flag(default=False)
    """Flash-attention kernels (`pip install flash-attn`); on a CPU PyTorch's own SDPA stands in."""
    tp: int = 1
    """Tensor-parallel size (3d)."""
    pp: int = 1
    """Pipeline stages (3d)."""
    sp: int = 1
    """Sequence-parallel size (3d); with split_gather and ring it must equal --tp."""
    sp_mode: SpMode = "all_to_all"
    """How the sequence is split when --sp is above 1."""
    zero: int = field(default=1, alias=["--zero_stage"])
    """ZeRO stage under 3d: 0, 1 or 2."""

    eval_dataset: list[str] = field(default_factory=list)
    """NAME=PATH of bucket bins to measure the loss on during training, as many as wanted."""
    eval_interval: int = 1000
    """Steps between evaluations; the last step is always evaluated."""
    log_interval: int = 10
    """Steps between log lines; metrics.jsonl has one line for every step whatever this is."""
    overwrite: bool = flag(default=False)
    """Start anew although --save_dir holds another run; that run is deleted."""

    @property
    def max_grad_norm(self) -> float:
        """The clipping bound in the plugins' terms: infinity, under which the norm is still computed, for 'off'."""
        return self.gradient_clipping or float("inf")

    @property
    def eval_sets(self) -> dict[str, Path]:
        """--eval_dataset as {name: path}; `check` has seen that each has the form NAME=PATH."""
        return {name: Path(path) for name, _, path in (item.partition("=") for item in self.eval_dataset)}

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values under the flags' names: --config_file, and again an argument of train.py."""
        values = dataclasses.asdict(self)
        del values["overwrite"]  # a permission for once: the same file used again must go on, not delete
        return {name: _plain(value) for name, value in values.items()}

    def check(self) -> None:
        """Raise one UserError that names every problem visible without torch, ranks or data."""
        problems = [*self._check_numbers(), *self._check_paths(), *self._check_plugin()]
        if problems:
            raise UserError("; ".join(problems))

    def _check_numbers(self) -> list[str]:
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
            f"--{name} {getattr(self, name)}: must be at least {bound}"
            for name, bound in at_least.items()
            if getattr(self, name) < bound
        ]
        for name in ("max_steps", "warmup_steps"):
            value, bound = getattr(self, name), 1 if name == "max_steps" else 0
            if value is not None and value < bound:
                problems.append(f"--{name} {value}: must be at least {bound}, or left away for the default")
        for name in ("weight_decay", "gradient_clipping"):
            if not 0 <= getattr(self, name) < float("inf"):
                problems.append(f"--{name} {getattr(self, name)}: must be 0 or a positive number")
        if not 0 <= self.seed < 2**32:
            problems.append(f"--seed {self.seed}: must be a whole number from 0 to {2**32 - 1}")
        if not 0 < self.lr < float("inf"):
            problems.append(f"--lr {self.lr}: must be a positive number, such as 3e-4")
        return problems

    def _check_paths(self) -> list[str]:
        problems = []
        if not self.pretrained.is_dir():
            problems.append(f"--pretrained {self.pretrained}: no such directory; name the output of init_model")
        for path in self.dataset:
            if not path.is_dir():
                problems.append(f"--dataset {path}: no such directory; name the output of prepare_pretrain_dataset")
        if self.load_checkpoint is not None and not self.load_checkpoint.is_dir():
            problems.append(f"--load_checkpoint {self.load_checkpoint}: no such directory; name a checkpoint")
        for item in self.eval_dataset:
            name, _, directory = item.partition("=")
            if not name or not directory:
                problems.append(f"--eval_dataset {item}: must be NAME=PATH, such as zh=data/zh_arrow")
            elif not Path(directory).is_dir():
                problems.append(f"--eval_dataset {item}: {directory} is no directory; name bucket bins")
        names = [item.partition("=")[0] for item in self.eval_dataset]
        for name in sorted({name for name in names if names.count(name) > 1}):
            problems.append(f"--eval_dataset {name}=...: is named twice; give each set a name of its own")
        inputs = [self.pretrained, *self.dataset, *self.eval_sets.values()]
        problems += [
            f"--save_dir {self.save_dir}: is the input {path}; choose another directory"
            for path in inputs
            if path.resolve() == self.save_dir.resolve()
        ]
        if self.overwrite:
            inputs += [] if self.load_checkpoint is None else [self.load_checkpoint]
            problems += [
                f"--overwrite would delete {path} with --save_dir {self.save_dir}; choose another --save_dir"
                for path in inputs
                if path.resolve().is_relative_to(self.save_dir.resolve())
            ]
        return problems

    def _check_plugin(self) -> list[str]:
        problems = []
        if self.zero not in (0, 1, 2):
            problems.append(f"--zero {self.zero}: must be 0, 1 or 2")
        if self.plugin != "3d" and (self.tp, self.pp, self.sp) != (1, 1, 1):
            problems.append(f"--tp/--pp/--sp above 1 need --plugin 3d, not {self.plugin}")
        if self.plugin == "3d":
            problems += self._check_3d()
        if self.mixed_precision == "fp32" and self.plugin.startswith("gemini"):
            problems.append(f"--mixed_precision fp32: {self.plugin} has only fp16 and bf16; use zero2 or ddp for fp32")
        if self.mixed_precision == "fp16" and self.plugin == "ddp":
            problems.append("--mixed_precision fp16: ddp has no loss scaling here; use bf16, or zero2 for fp16")
        return problems

    def _check_3d(self) -> list[str]:
        problems = []
        if self.pp > 1 and self.zero == 2:
            problems.append("--zero 2 with --pp above 1: Booster allows ZeRO 0 or 1 under a pipeline; use --zero 1")
        if self.mixed_precision == "fp32" and self.zero > 0:
            problems.append(f"--mixed_precision fp32 with --zero {self.zero}: 3d has fp32 only with --zero 0")
        if self.sp > 1 and self.sp_mode in TP_SHARED_SP_MODES and self.sp != self.tp:
            problems.append(
                f"--sp {self.sp} with --sp_mode {self.sp_mode} shares the tensor-parallel group; set --tp {self.sp}"
            )
        if self.sp > 1 and self.sp_mode == "ring_attn":
            problems.append(
                "--sp_mode ring_attn: its zigzag order needs flash-attn's own backward and cannot be right on a CPU, "
                "and no GPU run has proved it here; use all_to_all, split_gather or ring"
            )
        if self.pp > 2 and self.freeze_non_embeds_params:
            problems.append(
                f"--freeze_non_embeds_params with --pp {self.pp}: a middle stage has nothing to train; use --pp 2"
            )
        if self.pp > 1 and self.micro_batch_size * self.accumulation_steps < self.pp:
            problems.append(
                f"--pp {self.pp} needs at least {self.pp} micro-batches a step, but --accumulation_steps "
                f"{self.accumulation_steps} x --micro_batch_size {self.micro_batch_size} gives fewer rows; "
                f"use --accumulation_steps {self.pp}"
            )
        return problems


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
