"""What a step costs: a model's config comes in, floating-point operations and the share of the peak (MFU) go out.

The count is that of PaLM, appendix B (arXiv:2204.02311): a matrix of n entries costs a position 2n operations forward,
2n for the gradient of its input and 2n for its own, so 6n in all; attention costs 12 x layers x width of the heads x
length, as if every position saw all others. Lookups, norms and activations are not counted, nor is what is computed
twice under --use_grad_checkpoint: MFU asks what the step achieved, not how busy the device was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Peak:
    """The most that all devices of a run can do together, and where the figure is from."""

    flops_per_second: float
    source: str


@dataclass(frozen=True)
class StepCost:
    """One optimizer step of the whole run: its positions, padding included, and its operations."""

    positions: int
    flops: float
    peak: Peak | None = None
    """None where nobody knows it: then there is no MFU."""

    def mfu(self, seconds: float) -> float | None:
        """Share of the peak (0 to 1) of a step that took `seconds`."""
        return None if self.peak is None else self.flops / seconds / self.peak.flops_per_second


def matrix_parameters(config: Any) -> tuple[int, int]:
    """(body, head): entries of the matrices that a position is multiplied with, of a LLaMA-style Hugging Face config.

    The input embedding is a lookup and no part of it. Biases and norms multiply no matrix.
    """
    hidden = config.hidden_size
    width = config.num_attention_heads * head_width(config)
    key_value_width = (config.num_key_value_heads or config.num_attention_heads) * head_width(config)
    attention = hidden * width + 2 * hidden * key_value_width + width * hidden
    feed_forward = 3 * hidden * config.intermediate_size
    return config.num_hidden_layers * (attention + feed_forward), config.vocab_size * hidden


def head_width(config: Any) -> int:
    """Entries of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def flops_per_position(config: Any, length: int, num_trained: int | None = None, num_added: int = 0) -> int:
    """Operations of one position, forward and backward, in rows of `length` positions.

    `num_trained` of the matrices' entries have a gradient of their own (None: all of them); the input's gradient passes
    through frozen ones too, on its way to the input embedding or the adapters. `num_added` are the entries of adapters
    (LoRA), which multiply beside the matrices; count them in `num_trained` as well.
    """
    num_multiplied = sum(matrix_parameters(config)) + num_added
    if num_trained is None:
        num_trained = num_multiplied
    width = config.num_attention_heads * head_width(config)
    return 4 * num_multiplied + 2 * num_trained + 12 * config.num_hidden_layers * width * length


def trained_and_added(model: nn.Module) -> tuple[int, int]:
    """(num_trained, num_added) of `flops_per_position`, counted in a model that is not split over ranks.

    Of its linear layers the entries that have a gradient, and those of LoRA's adapters as peft names them.
    """
    from torch import nn  # here, so that a plan needs no torch

    linear = [(name, module.weight) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    trained = sum(weight.numel() for _, weight in linear if weight.requires_grad)
    added = sum(weight.numel() for name, weight in linear if ".lora_" in name)
    return trained, added
