"""The flags of the plan: those of train.py, and what is not yet there: the cluster, its price and its speed."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from simple_parsing import flag

from colossal_llama.config import TrainConfig
from tokenizer_tools.command import UserError

MAGNITUDES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}


@dataclass(frozen=True)
class PlanConfig(TrainConfig):
    """What a training run would need, before anything is booked: memory, hours, price, checkpoints.

    Takes the very command line of train.py (also a .yaml or .json file of its flags, first), and beside it the cluster:
    `python -m colossal_llama.plan runs/x/train_config.json --cluster "64 x A800-80G"`. Only config.json of --pretrained
    is read, and the manifest of --dataset; no GPU, no weights, no torch. All plugins are compared; --plugin is planned.
    """

    pretrained: Path
    """Hugging Face model directory, or its config.json alone."""
    dataset: list[Path] = field(default_factory=list)
    """Bucket directories of prepare_pretrain_dataset, or their parent; or give --num_tokens."""
    num_tokens: str | None = None
    """Tokens of one epoch where there is no --dataset yet: 8.5B, 850M, 1e9. Rows count as full."""

    cluster: str | None = None
    """The GPUs: "64 x A800-80G", or "8 x 8 x A800-80G" for 8 hosts of 8."""
    hostfile: Path | None = None
    """One host a line, as for the launcher, in place of --cluster; with --gpu and --gpus_per_host."""
    gpu: str | None = None
    """Which GPU the hosts of --hostfile have."""
    gpus_per_host: int = 8
    """GPUs of each host."""
    gpu_memory_gib: float | None = None
    """Memory of one GPU in GiB: for a GPU that is not known, with --peak_tflops, or in place of what is known."""
    reserve_gib: float | None = None
    """Memory that is left alone, in GiB: CUDA context, NCCL, fragmentation; default: 3 and a 20th of the GPU's."""

    mfu: float | None = None
    """Share of the GPUs' peak that the run will reach; default: 0.37, and less with --use_grad_checkpoint or --pp."""
    price_per_gpu_hour: float | None = None
    """What an hour of one GPU costs, in any currency."""
    disk_gb_per_second: float = 1.0
    """What the disk of --save_dir takes from all hosts together, in GB a second."""

    vocab_before: int | None = None
    """Vocabulary before the expansion; default: what init_model's manifest beside --pretrained says."""
    tokens_per_character: list[float] = field(default_factory=list)
    """Two numbers, with the old and the new tokenizer on the text that will be trained on: 1.160 0.784."""
    compared: Path | None = None
    """Output of `compare_tokenizers OLD NEW --data PATH --json`, for the two flags above."""
    json: bool = flag(default=False)
    """Print one JSON document instead of tables."""

    def checked(self) -> PlanConfig:
        """This config. Raises UserError, which names every number that no plan can be made with."""
        problems = []
        positive = ("gpu_memory_gib", "mfu", "price_per_gpu_hour", "disk_gb_per_second", "peak_tflops", "gpus_per_host")
        for name in positive:
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                problems.append(f"--{name} {value}: must be a positive number")
        if self.mfu is not None and self.mfu > 1:
            problems.append(f"--mfu {self.mfu}: is a share of the peak; give a number from 0 to 1, such as 0.4")
        if self.reserve_gib is not None and self.reserve_gib < 0:
            problems.append(f"--reserve_gib {self.reserve_gib}: must be 0 or more")
        if len(self.tokens_per_character) not in (0, 2) or any(value <= 0 for value in self.tokens_per_character):
            problems.append("--tokens_per_character: takes two positive numbers, before and after, such as 1.160 0.784")
        if bool(self.dataset) == (self.num_tokens is not None):
            problems.append("say how much there is to read: either --dataset DIR or --num_tokens, such as 8.5B")
        at_least_one = ("micro_batch_size", "accumulation_steps", "max_length", "num_epochs", "tp", "pp", "sp")
        problems += [
            f"--{name} {getattr(self, name)}: must be at least 1" for name in at_least_one if getattr(self, name) < 1
        ]
        if problems:
            raise UserError("; ".join(problems))
        return self


def count_of(text: str, flag_name: str) -> int:
    """8.5B -> 8,500,000,000. Raises UserError for what is no positive number."""
    match = re.fullmatch(r"\s*([\d_,]*\.?\d+(?:[eE]\d+)?)\s*([KMBT]?)\s*", text, re.IGNORECASE)
    count = round(float(match[1].replace(",", "").replace("_", "")) * MAGNITUDES[match[2].upper()]) if match else 0
    if count < 1:
        raise UserError(f"{flag_name} {text}: must be a number such as 8.5B, 850M or 1000000")
    return count
