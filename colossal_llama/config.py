"""The flags of train.py: what each one means. `checks.py` says which values fit together.

No torch here: `train.py --help` and a wrong flag answer before anything heavy is imported.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from simple_parsing import field, flag

from colossal_llama.hosts.board import Limits
from colossal_llama.stopping import seconds_of

Trained = Literal["all", "embeds", "new_rows"]
LrSchedule = Literal["cosine", "wsd", "linear", "constant"]
AnomalyPolicy = Literal["skip", "stop", "ignore"]
Plugin = Literal["gemini", "gemini_auto", "zero2", "zero2_cpu", "3d", "ddp"]
Precision = Literal["fp16", "bf16", "fp32"]
SpMode = Literal["all_to_all", "split_gather", "ring", "ring_attn"]

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LORA_MODULES_TO_SAVE = ("embed_tokens", "lm_head")
TP_SHARED_SP_MODES = ("split_gather", "ring")  # these two split the sequence over the tensor-parallel group


@dataclass(frozen=True)
class TrainConfig:
    """Continue the pre-training of a LLaMA-family model on bucket bins.

    The same command line starts a run and, after a kill, goes on from the newest checkpoint in --save_dir.
    A single argument that names a .yaml or .json file holds the same names as these flags.
    SIGTERM, SIGUSR1, Ctrl-C and --time_limit end the step in progress, save and leave; a second signal leaves at once.
    Exit codes: 0 finished; 75 stopped as asked and saved, the same command goes on; 2 your input is at fault, in one
    line; 130 interrupted before there was anything to save, or twice; 1 anything else.
    """

    pretrained: Path
    """Hugging Face model directory with its tokenizer, as init_model writes it."""
    dataset: list[Path]
    """Bucket directories of prepare_pretrain_dataset, or their parent."""

    plugin: Plugin = "gemini"
    """How Booster shares the work: zero2 for up to ~13B, gemini when memory is short, 3d for tp/pp/sp."""
    load_checkpoint: Path | None = None
    """A checkpoint, or a run for its newest one, to go on from (weights, optimizer, position); a model or adapter
    directory, such as a checkpoint's `modeling`, for the weights alone. --save_dir's own checkpoints come first."""
    save_dir: Path = Path("checkpoints")
    """Checkpoints, metrics.jsonl and, at the end, the finished model in `modeling/`."""
    save_interval: int = 1000
    """Steps between checkpoints. The last step is always saved."""
    keep_checkpoints: int = 0
    """Keep this many newest checkpoints and delete older ones; 0 keeps all."""
    time_limit: str | None = None
    """Save and leave before the process has run this long: 90s, 45m, 4h, 1h30m, 04:00:00, 1-12:00:00 (as Slurm's)."""
    lost_after: str = "30s"
    """End the run, naming the rank and its host, if a rank has not been heard of for so long: its host, its network or
    the process has stopped."""
    stall_limit: str = "30m"
    """End the run, naming who is behind, if a step takes so long, and ten times as long as any before it."""
    restart_data: bool = flag(default=False)
    """If --dataset or --seed is not the checkpoint's: read it from its first row. Without this it is refused."""
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
    global_batch_size: int | None = None
    """Rows of one optimizer step over all ranks, whatever their number: --accumulation_steps then follows from it. For
    runs that may go on with fewer hosts. Default: micro-batch times accumulation times data-parallel ranks."""
    max_length: int = 4096
    """Longest row accepted, in tokens. A dataset made with a longer --max_length is refused."""
    seed: int = 42
    """Seed of the row order."""

    train: Trained = "all"
    """What learns: everything, the input and output embeddings, or only their new rows (which never decay then)."""
    freeze_non_embeds_params: bool = flag(default=False)
    """The familiar name of --train embeds: the warm-up of a new vocabulary."""
    stages: list[str] = field(default_factory=list)
    """A schedule of stages, one word each: new_rows,steps=200,lr=1e-3 embeds,steps=1000 all,optimizer=reset (also
    embeds_lr, warmup_steps, lr_schedule). What a stage does not say is this run's flag; the last takes the rest."""
    lr: float = 3e-4
    """Peak learning rate."""
    embeds_lr: float | None = None
    """Peak learning rate of the embeddings; default: --lr."""
    lr_schedule: LrSchedule = "cosine"
    """After the warm-up: cosine or linear down to the floor, wsd (stable, then a linear decay at the end), constant."""
    lr_floor: float = 0.1
    """Share of the peak at which a schedule ends."""
    lr_decay_share: float = 0.2
    """wsd: share of the steps, at the end, that decay."""
    warmup_steps: int | None = field(default=None, alias=["-s"])
    """Steps of linear warm-up; default: 0.025 of the steps of the run or stage."""
    weight_decay: float = field(default=0.1, alias=["-w"])
    """AdamW's decay; never on norms and biases."""
    gradient_clipping: float = field(default=1.0, alias=["--grad_clip"])
    """Largest global gradient norm; 0 turns clipping off."""
    mixed_precision: Precision = "bf16"
    """Number format of the forward and backward pass; the optimizer keeps fp32 weights where the plugin can."""
    document_mask: bool = flag(default=False)
    """Documents of one row do not see each other, and positions restart at each; refused where a plugin cannot."""
    on_anomaly: AnomalyPolicy = "skip"
    """A step with NaN, an infinity or a leap of the loss: leave the weights alone and go on, or stop, or train."""
    spike_threshold: float = 2.0
    """Nats a token above the running mean of the loss that make a leap; 0: only NaN and infinity count."""

    lora_rank: int = 0
    """Train low-rank adapters of this rank (peft) instead of all weights; 0: none."""
    lora_alpha: float | None = None
    """Scale of the adapters, times 1 / rank; default: twice the rank."""
    lora_targets: list[str] = field(default_factory=lambda: [*LORA_TARGETS])
    """Names of the linear layers that get adapters."""
    lora_modules_to_save: list[str] = field(default_factory=lambda: [*LORA_MODULES_TO_SAVE])
    """Modules beside the adapters that train whole: the embeddings, for a new vocabulary."""

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
    """Steps between evaluations; the first and the last step are always evaluated."""
    max_eval_samples: int | None = None
    """Rows of each evaluation set, spread over all of it; default: every row."""
    watch: list[str] = field(default_factory=list)
    """NAME=BOUND: warn when this evaluation set costs so many bits a byte more than at first: the old language."""
    log_interval: int = 10
    """Steps between log lines; metrics.jsonl has one line for every step whatever this is."""
    peak_tflops: float | None = None
    """Peak of one device in TFLOP/s, for the MFU; default: known GPUs by their name."""
    wandb_project: str | None = None
    """Log to this Weights & Biases project too (`pip install wandb`)."""
    overwrite: bool = flag(default=False)
    """Start anew although --save_dir holds another run; that run is deleted."""
    rehearse: bool = flag(default=False)
    """Do not train: run this very command line on the CPU with a shrunken model and the real data, kill it, let it go
    on, and say whether all of that works. Nothing is written into --save_dir. Start it without a launcher."""

    @property
    def max_grad_norm(self) -> float:
        """The clipping bound in the plugins' terms: infinity, under which the norm is still computed, for 'off'."""
        return self.gradient_clipping or float("inf")

    @property
    def time_limit_seconds(self) -> float | None:
        """--time_limit in seconds. Raises ValueError, as `stopping.seconds_of` does; `checks.check` has seen it."""
        return None if self.time_limit is None else seconds_of(self.time_limit)

    @property
    def limits(self) -> Limits:
        """--lost_after and --stall_limit. Raises ValueError as `stopping.seconds_of`; `checks.check` has seen it."""
        return Limits(seconds_of(self.lost_after), seconds_of(self.stall_limit))

    @property
    def trained(self) -> Trained:
        """What learns where --stages does not say so."""
        return "embeds" if self.freeze_non_embeds_params else self.train

    @property
    def eval_sets(self) -> dict[str, Path]:
        """--eval_dataset as {name: path}; `checks.check` has seen that each has the form NAME=PATH."""
        return {name: Path(path) for name, _, path in (item.partition("=") for item in self.eval_dataset)}

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values under the flags' names: --config_file, and again an argument of train.py."""
        values = dataclasses.asdict(self)
        for permission in ("overwrite", "restart_data", "rehearse"):  # for once: the same file used again just goes on
            del values[permission]
        return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
