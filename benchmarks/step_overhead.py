"""Tokens per second of train.py's step under zero2 against a bare PyTorch loop: same model, rows, dtype and kernels.

One process each, in turn, several rounds; what counts is the ratio (timings on shared machines drift).
`make bench` or `python benchmarks/step_overhead.py --rounds 5`
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizer_tools.command import command

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

VOCAB_SIZE, HIDDEN_SIZE, LAYERS, ROWS, LENGTH, LR = 8000, 256, 8, 4, 512, 1e-4


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure what Booster and this project cost on top of a bare loop."""

    rounds: int = 5
    """Rounds; each measures both loops."""
    steps: int = 4
    """Steps of a loop in a round."""


@command(BenchmarkConfig)
def main(config: BenchmarkConfig) -> None:
    """Print tokens/s of both loops and the ratio of each round."""
    from colossal_llama.cluster import launch

    with launch(seed=0) as cluster:
        import torch

        torch.manual_seed(0)
        loops = {"bare loop": bare_step(), "zero2": zero2_step(cluster.device)}
        for step in loops.values():
            seconds_of(step, 1)
        rates: dict[str, list[float]] = {name: [] for name in loops}
        for _ in range(config.rounds):
            for name, step in loops.items():
                rates[name].append(config.steps * ROWS * LENGTH / seconds_of(step, config.steps))
        ratios = [ours / bare for ours, bare in zip(rates["zero2"], rates["bare loop"], strict=True)]
        for name, values in rates.items():
            print(f"{name:10} {statistics.median(values):8,.0f} tokens/s (median of {config.rounds})")
        print(f"ratio      {statistics.median(ratios):8.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")


def seconds_of(step: Callable[[], None], steps: int) -> float:
    """Wall time of so many steps."""
    start = time.perf_counter()
    for _ in range(steps):
        step()
    return time.perf_counter() - start


def new_model() -> LlamaForCausalLM:
    """A Llama of about 10 million parameters in bf16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN_SIZE,
        intermediate_size=4 * HIDDEN_SIZE,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        use_cache=False,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16).train()


def bare_step() -> Callable[[], None]:
    """bf16 weights, fp32 masters, fused AdamW, clipping: what zero2 does on one process, written out."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    model = new_model()
    masters = [parameter.detach().float().requires_grad_() for parameter in model.parameters()]
    optimizer = torch.optim.AdamW(masters, lr=LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    input_ids = torch.randint(VOCAB_SIZE, (ROWS, LENGTH))

    def step() -> None:
        logits = model(input_ids=input_ids).logits[:, :-1]
        F.cross_entropy(logits.flatten(0, 1).float(), input_ids[:, 1:].flatten()).backward()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            master.grad = parameter.grad.float()
            parameter.grad = None
        torch.nn.utils.clip_grad_norm_(masters, 1.0)
        optimizer.step()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            parameter.data.copy_(master.data)

    return step


def zero2_step(device: torch.device) -> Callable[[], None]:
    """The same through plugins, optim and step."""
    import torch

    from colossal_llama import optim, plugins
    from colossal_llama.batch import Batch
    from colossal_llama.config import TrainConfig
    from colossal_llama.model import num_parameters
    from colossal_llama.step import Stepper

    config = TrainConfig(pretrained=Path(), dataset=[], plugin="zero2")
    model = new_model()
    plugin = plugins.make_plugin(config, num_parameters(model), HIDDEN_SIZE)
    optimizer = optim.make_optimizer(model, LR, 0.1, for_gemini=False)
    booster, boosted, optimizer = plugins.boost(plugin, model, optimizer)
    stepper = Stepper(booster, boosted, optimizer, plugins.layout_of(plugin), device, 1.0, autocast_bf16=False)
    ids = torch.randint(VOCAB_SIZE, (ROWS, LENGTH))
    position_ids = torch.arange(LENGTH).expand(ROWS, LENGTH)
    batch = Batch(ids, ids, position_ids, torch.zeros_like(ids), list(range(ROWS)))

    def step() -> None:
        stepper.train([batch], LR)

    return step


if __name__ == "__main__":
    sys.exit(main())
