"""Memory and time of the output head with its loss, forward and backward: ours chunk by chunk against plain PyTorch.

Each is run in processes of its own. Memory is the peak of living tensors above what exists before (every operation's
results are weighed), with the growth of resident memory beside it; time is interleaved, and what counts is the ratio.
`python benchmarks/loss_memory.py --rounds 3`
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import psutil

from tokenizer_tools.command import command

if TYPE_CHECKING:
    import torch

MEBI = 2**20
NAMES = ("plain", "ours")


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure what the loss of a large vocabulary costs."""

    vocab_size: int = 69_104
    """Rows of the output matrix."""
    hidden_size: int = 1024
    """Its columns."""
    tokens: int = 4096
    """Tokens of a micro-batch, all of them with a label."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Number format of hidden states and weights."""
    chunk_tokens: int | None = None
    """Tokens that ours takes at once; default: the loss's own choice."""
    rounds: int = 3
    """Rounds of timing; 0: memory only."""


@command(BenchmarkConfig)
def main(config: BenchmarkConfig) -> None:
    """Print peak memory and time of both, and the ratios ours / plain."""
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for name in NAMES:
        with context.Pool(1) as pool:
            living, resident = pool.apply(peak_bytes, (name, config))
        peaks[name] = living
        print(f"{name}: {living / MEBI:7,.0f} MiB of tensors at the peak; resident memory +{resident / MEBI:,.0f} MiB")
    print(f"memory, ours / plain: {peaks['ours'] / peaks['plain']:.2f}")
    if config.rounds:
        with context.Pool(1) as pool:
            seconds = pool.apply(seconds_of, (config,))
        ratios = [ours / plain for ours, plain in zip(seconds["ours"], seconds["plain"], strict=True)]
        for name in NAMES:
            print(f"{name}: {statistics.median(seconds[name]):6.2f} s of processor time (median of {config.rounds})")
        print(f"time, ours / plain: {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")


def step_of(name: str, config: BenchmarkConfig) -> Callable[[], None]:
    """Forward and backward of one kind, on its own inputs."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    from colossal_llama.loss import linear_cross_entropy

    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[config.dtype]
    torch.manual_seed(0)
    hidden = torch.randn(1, config.tokens, config.hidden_size).to(dtype).requires_grad_()
    weight = (torch.randn(config.vocab_size, config.hidden_size) / config.hidden_size**0.5).to(dtype).requires_grad_()
    targets = torch.randint(config.vocab_size, (1, config.tokens))

    def plain() -> torch.Tensor:
        logits = (hidden @ weight.T).flatten(0, 1).float()
        return F.cross_entropy(logits, targets.flatten(), reduction="sum")

    def ours() -> torch.Tensor:
        return linear_cross_entropy(hidden, weight, targets, chunk_tokens=config.chunk_tokens)[0]

    def step() -> None:
        (plain if name == "plain" else ours)().backward()
        hidden.grad = weight.grad = None

    return step


def peak_bytes(name: str, config: BenchmarkConfig) -> tuple[int, int]:
    """Largest sum of tensors alive above those before the step, and growth of the process's peak memory, in bytes."""
    import resource

    step = step_of(name, config)
    before = psutil.Process().memory_info().rss
    with living_tensors() as living:
        step()
    return living.peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def living_tensors() -> Any:
    """A context that weighs every storage that operations make, until it is freed; `peak` is the most at once."""
    import weakref

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class LivingTensors(TorchDispatchMode):
        now = peak = 0

        def __init__(self) -> None:
            super().__init__()
            self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

        def _forget(self, num_bytes: int) -> None:
            self.now -= num_bytes

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            old = {leaf.untyped_storage() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
            result = func(*args, **(kwargs or {}))
            for leaf in tree_leaves(result):
                if isinstance(leaf, torch.Tensor) and (storage := leaf.untyped_storage()) not in self._known | old:
                    self._known.add(storage)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._forget, storage.nbytes())
            self.peak = max(self.peak, self.now)
            return result

    return LivingTensors()


def seconds_of(config: BenchmarkConfig) -> dict[str, list[float]]:
    """Processor time of each round, in turn, after one round to warm up."""
    steps = {name: step_of(name, config) for name in NAMES}
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(config.rounds + 1):
        for name, step in steps.items():
            start = time.process_time()
            step()
            seconds[name].append(time.process_time() - start)
    return {name: values[1:] for name, values in seconds.items()}


if __name__ == "__main__":
    sys.exit(main())
