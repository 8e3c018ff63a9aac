"""What a model makes of one fixed text, the losses of its tokens and a few rows of logits, for readers to compare.

A trainer writes them beside every checkpoint's weights (`trainer_probe.py`); whoever reads the weights later computes
them anew. Rounding differs between readers, so two probes are compared in units of the logits' own spread.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  the name everybody knows
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tokenizer_tools.command import UserError
from tokenizer_tools.tokenizer import PROBE_TEXT

PROBE = "probe.safetensors"
MOST_TOKENS = 1024
"""Longer rows are scored whole by the trainer, and compared up to here: on a CPU a reader pays for every token."""
NUM_LOGIT_ROWS = 8
SCORED_AT_ONCE = 128  # positions; a vocabulary of 128,256 takes 66 MB of fp32 logits then
TEXT = PROBE_TEXT + (
    " Continual pre-training goes on where a finished model stopped, with text that it has seldom seen: laws, poems, "
    "weather reports, recipes and source code.\n"
    "继续预训练让模型学会新的词汇。今天天气很好，我们去公园散步；这本书的内容非常丰富，值得每一位学生认真阅读。"
    "经济发展需要稳定的社会环境，也需要不断创新的技术。\n"
)


@dataclass(frozen=True)
class Probe:
    """A text of `length` tokens and what a model makes of it; on the CPU."""

    input_ids: torch.Tensor
    """int64 [length]."""
    nats: torch.Tensor
    """-log p of each next token, fp32 [length - 1]."""
    positions: torch.Tensor
    """int64 [rows]: where whole rows of logits were taken."""
    logits: torch.Tensor
    """fp32 [rows, vocabulary]."""


@dataclass(frozen=True)
class Difference:
    """How far two probes of one text lie apart."""

    nats: float
    """The largest difference of a token's loss, in nats."""
    mean_nats: float
    """The mean of these differences' sizes."""
    relative: float
    """Root mean square of all differences, of the losses or of the logits, whichever is larger, divided by the logits'
    standard deviation: what rounding does is about as large for a model that knows much as for one that knows nothing.
    """

    def __str__(self) -> str:
        return f"{self.relative:.2g} of the logits' spread, up to {self.nats:.2g} nats a token"


def probe_row(tokenizer: Any, length: int) -> torch.Tensor:
    """TEXT over and over, int64 [length]."""
    ids = tokenizer(TEXT)["input_ids"]
    return torch.tensor((ids * (length // len(ids) + 1))[:length])


def probe_positions(length: int) -> torch.Tensor:
    """Where whole rows of logits are taken in a text of `length` tokens: evenly, the last position among them."""
    return torch.tensor(sorted({(i + 1) * length // NUM_LOGIT_ROWS - 1 for i in range(NUM_LOGIT_ROWS)} - {-1}))


@torch.inference_mode()
def model_probe(model: Any, input_ids: torch.Tensor, positions: torch.Tensor) -> Probe:
    """What a transformers model, in eval mode and whole in this process, makes of `input_ids` [length]."""
    logits = model(input_ids=input_ids[None].to(model.device), use_cache=False).logits[0]
    targets = input_ids[1:].to(logits.device)
    nats = [
        F.cross_entropy(some.float(), wanted, reduction="none")
        for some, wanted in zip(logits[:-1].split(SCORED_AT_ONCE), targets.split(SCORED_AT_ONCE), strict=True)
    ]
    return Probe(input_ids, torch.cat(nats).cpu(), positions, logits[positions].float().cpu())


def difference(first: Probe, second: Probe) -> Difference:
    """Between two probes of the same ids. A NaN in either makes every figure NaN, which no bound allows."""
    nats, logits = (first.nats - second.nats).double(), (first.logits - second.logits).double()
    # a constant added to a whole row of logits changes no probability
    logits = logits - logits.mean(-1, keepdim=True)
    spread = first.logits.double().std(-1).mean()
    largest = torch.stack([nats.square().mean().sqrt(), logits.square().mean().sqrt()]).max()
    return Difference(nats.abs().max().item(), nats.abs().mean().item(), (largest / spread).item())


def are_identical(first: Probe, second: Probe) -> bool:
    """Whether two probes are the same bit for bit; a NaN is like the same NaN."""
    return all(
        torch.equal(one.view(torch.uint8), other.view(torch.uint8))
        for one, other in zip(vars(first).values(), vars(second).values(), strict=True)
    )


def write_probe(probe: Probe, directory: Path) -> None:
    """Write probe.safetensors into an existing directory."""
    save_file(vars(probe), directory / PROBE)


def read_probe(directory: Path) -> Probe:
    """The probe of a checkpoint. Raises UserError if it holds none."""
    try:
        return Probe(**load_file(directory / PROBE))
    except (OSError, SafetensorError, TypeError) as error:
        raise UserError(
            f"{directory / PROBE}: not the scores that training wrote beside its weights ({error}); "
            f"take another checkpoint"
        ) from error
