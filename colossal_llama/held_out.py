"""Evaluation during training: a boosted model and the rows kept aside come in; figures, and warnings, go out.

Every figure is a ratio of sums over all ranks, so it does not depend on how the rows are shared out.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from colossal_llama.batch import Batch
from colossal_llama.build import Run
from colossal_llama.cluster import main_rank_logger
from colossal_llama.engine import Engine
from colossal_llama.metrics import Metrics
from colossal_llama.step import Stepper
from colossal_llama.text_bytes import TextBytes, text_bytes

EVALUATIONS = "evaluations.jsonl"
NATS_PER_BIT = math.log(2)
LARGEST_EXPONENT = 700.0  # e**710 is no float any more

Figures = dict[str, float]


def is_evaluated_after(run: Run, step: int) -> bool:
    """Whether a run evaluates after `step` steps: at each --eval_interval, and at the end of each stage."""
    ends_a_stage = any(step == stage.end_step for stage in run.plan.stages)
    return bool(run.eval_bins) and (ends_a_stage or step % run.config.eval_interval == 0)


def evaluate(run: Run, engine: Engine, metrics: Metrics, step: int) -> None:
    """Measure every evaluation set after `step` steps, write the figures, warn of a watched set that loses too much."""
    metrics.flush()
    start = time.perf_counter()
    text = spelled_by(run)
    results: dict[str, dict[str, Any]] = {}
    for name, reader in engine.eval_readers.items():
        categories = run.eval_bins[name].categories
        progress = tqdm(
            reader.steps_from(0),
            desc=f"evaluating {name}",
            unit="step",
            leave=False,
            disable=None if run.cluster.is_main else True,
        )
        results[name] = figures_of(_sums(engine.stepper, progress, len(categories), text), categories)
    metrics.record_evaluation(step, results)
    if run.cluster.is_main and run.config.watch:
        at_first = first_bits_per_byte(run.config.save_dir / EVALUATIONS)
        for warning in warnings(bounds_of(run.config.watch), at_first, results):
            main_rank_logger(__name__).warning(warning)
    metrics.leave_out_time_since(start)


def figures_of(sums: torch.Tensor, categories: Sequence[str]) -> dict[str, Any]:
    """`sums` float64 [categories, tokens | nats | correct | text_nats | bytes] -> figures of the set.

    {loss (nats a token), perplexity, accuracy, bits_per_byte, tokens, bytes}, and under `categories` the same for each
    category that has tokens. Bits per byte leave out what control tokens cost; the loss does not.
    """
    per_category = {name: _figures(row) for name, row in zip(categories, sums.tolist(), strict=True) if row[0]}
    return {**_figures(sums.sum(0).tolist()), "categories": per_category}


def _figures(sums: Sequence[float]) -> Figures:
    tokens, nats, correct, text_nats, num_bytes = sums
    loss = nats / max(1, tokens)
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, LARGEST_EXPONENT)),
        "accuracy": correct / max(1, tokens),
        "bits_per_byte": text_nats / NATS_PER_BIT / max(1, num_bytes),
        "tokens": int(tokens),
        "bytes": int(num_bytes),
    }


def bounds_of(watch: Sequence[str]) -> dict[str, float]:
    """--watch as {name: bits per byte that it may lose}; `checks.check` has seen that each has the form NAME=BOUND."""
    return {name: float(bound) for name, _, bound in (item.partition("=") for item in watch)}


def first_bits_per_byte(evaluations: Path) -> dict[str, float]:
    """Bits per byte of each set in the first line of evaluations.jsonl that has it; {} without a file."""
    first: dict[str, float] = {}
    if evaluations.is_file():
        for line in evaluations.read_text(encoding="utf-8").splitlines():
            for name, figures in json.loads(line)["eval"].items():
                if figures["bits_per_byte"] is not None:
                    first.setdefault(name, figures["bits_per_byte"])
    return first


def warnings(
    bounds: Mapping[str, float], at_first: Mapping[str, float], now: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """A line for each watched set whose bits per byte have grown by more than its bound since the first evaluation."""
    for name, bound in bounds.items():
        before, after = at_first.get(name), now[name]["bits_per_byte"]
        if before is not None and not after - before <= bound:  # so that NaN warns too
            yield (
                f"--watch {name}={bound:g}: {after:.4f} bits a byte, {after - before:+.4f} since the first evaluation; "
                f"what the model knew is being lost: put more text like it into --dataset, or lower --lr"
            )


def _sums(stepper: Stepper, steps: Iterable[list[Batch]], num_categories: int, text: TextBytes) -> torch.Tensor:
    total = torch.zeros(num_categories, 5, dtype=torch.float64)
    for micro_batches in steps:
        total += stepper.evaluate(micro_batches, num_categories, text).cpu()
    return total


def spelled_by(run: Run) -> TextBytes:
    """What the ids of the run's tokenizer spell, on its device; made once, in a second for a large vocabulary."""
    return _text_bytes(run.tokenizer, run.cluster.device)


@lru_cache(maxsize=1)
def _text_bytes(tokenizer: Any, device: torch.device) -> TextBytes:
    return text_bytes(tokenizer).to(device)
