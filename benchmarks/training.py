"""train.py beside a bare PyTorch loop and transformers.Trainer: tokens a second, waiting for rows, ranks, start-up.

In each round every loop of loops.py has its turn of a few steps, so that what disturbs the machine disturbs all; same
Llama of 25 million parameters, same rows of stage 3. Ratios are taken round by round, and medians count.

    python benchmarks/training.py [--rounds 7] [--data TEXT_DIR] [--json]
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_engine import given_texts, package_texts, write_text, write_tokenizer
from loops import LENGTH, ROOT, ROWS, Contender, Inputs, Loop, bare_loop, hugging_face_trainer, train_py, train_words
from tqdm import tqdm

from tokenizer_tools.command import UserError, command

TEXT_BYTES = 2 * 10**6
POLL_SECONDS = 0.005
START_UPS = 3
MODEL = {
    **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False},
    **{"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 8},
    "max_position_embeddings": LENGTH,
}
TINY_MODEL = {**MODEL, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure what Booster and this project cost on top of a bare loop, and what they win over a trainer."""

    rounds: int = 7
    """Rounds; in each every loop has its turn."""
    steps: int = 3
    """Steps of a turn."""
    data: Path | None = None
    """Directory of .jsonl text, default: the files of the installed packages."""
    json: bool = False
    """Print one JSON document in place of the table."""


@dataclass(frozen=True)
class Figure:
    """One measured quantity: median, least and greatest of all rounds."""

    name: str
    median: float
    low: float
    high: float
    wanted: str = ""


@command(BenchmarkConfig)
def main(config: BenchmarkConfig) -> None:
    """Measure and print."""
    if config.rounds < 1 or config.steps < 1:
        raise UserError(f"--rounds {config.rounds} --steps {config.steps}: must both be at least 1")
    with tempfile.TemporaryDirectory(prefix="training_benchmark.") as name:
        work = Path(name)
        tokenizer, bins = prepare(config.data, work)
        inputs = Inputs(make_model(MODEL, tokenizer, work / "model"), bins, work)
        tiny = Inputs(make_model(TINY_MODEL, tokenizer, work / "tiny"), bins, work)
        figures = [*start_up(tiny), *compare(inputs, config.rounds, config.steps)]
    if config.json:
        print(json.dumps({"rounds": config.rounds, "figures": [asdict(figure) for figure in figures]}))
    else:
        show(figures, config.rounds)


def show(figures: list[Figure], rounds: int) -> None:
    """Print the table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    title = f"medians of {rounds} rounds, {os.cpu_count()} CPUs"
    table = Table("", "median", "from", "to", "wanted", title=title, box=box.SIMPLE, pad_edge=False)
    for figure in figures:
        table.add_row(
            figure.name, *(f"{value:,.4g}" for value in (figure.median, figure.low, figure.high)), figure.wanted
        )
    Console().print(table)


def figure(name: str, values: list[float], wanted: str = "") -> Figure:
    """The figure of one value a round."""
    return Figure(name, statistics.median(values), min(values), max(values), wanted)


# --- what they work on ------------------------------------------------------------------------------------------------


def prepare(data: Path | None, work: Path) -> tuple[Path, Path]:
    """(tokenizer directory, bins of stage 3)."""
    tokenizer = write_tokenizer(work / "tokenizer")
    texts = package_texts() if data is None else given_texts(data)
    write_text(texts, work / "text", TEXT_BYTES, TEXT_BYTES)
    flags = ("--data_input_dirs", work / "text", "--tokenizer_dir", tokenizer, "--data_arrow_output_dir", work / "bins")
    run("data_tools/prepare_pretrain_dataset.py", *flags, "--max_length", LENGTH, "--num_spliced_dataset_bins", 1)
    return tokenizer, work / "bins"


def make_model(shape: dict[str, Any], tokenizer: Path, target: Path) -> Path:
    """A model with random weights, as stage 2 makes it from nothing."""
    config = target.with_suffix(".json")
    config.write_text(json.dumps(shape))
    flags = ("--from_config", config, "--target_tokenizer_path", tokenizer, "--target_model_path", target)
    run("tokenizer_tools/init_model.py", *flags, "--dtype", "float32", "--seed", 7)
    return target


def run(script: str, *words: object) -> None:
    """Run one of the project's commands. Raises UserError if it fails."""
    arguments = [sys.executable, str(ROOT / script), *map(str, words)]
    done = subprocess.run(arguments, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise UserError(f"{script}: failed; {done.stderr[-500:]}")


# --- start-up ---------------------------------------------------------------------------------------------------------


def start_up(tiny: Inputs) -> list[Figure]:
    """Seconds of `train.py --help`, and from the command to the first line of metrics.jsonl."""
    helped, first_steps = [], []
    for number in range(START_UPS):
        start = time.perf_counter()
        run("train.py", "--help")
        helped.append(time.perf_counter() - start)
        first_steps.append(seconds_to_first_step(tiny, tiny.directory / f"start-{number}"))
    return [
        figure("train.py --help, s", helped, "under 1"),
        figure("first step of a tiny model, s", first_steps, "under 15"),
    ]


def seconds_to_first_step(tiny: Inputs, save_dir: Path) -> float:
    """From the command to the first line of metrics.jsonl."""
    words = train_words(tiny, save_dir, log_interval=1)
    start = time.perf_counter()
    with stopped_at_the_end(
        subprocess.Popen([sys.executable, str(ROOT / "train.py"), *words], stderr=subprocess.PIPE, text=True)
    ) as process:
        lines = save_dir / "metrics.jsonl"
        while not (lines.is_file() and lines.stat().st_size):
            if process.poll() is not None:
                raise UserError(f"train.py: failed; {process.communicate()[1][-500:]}")
            time.sleep(POLL_SECONDS)
        return time.perf_counter() - start


@contextlib.contextmanager
def stopped_at_the_end(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Kill it when the block is left."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def compare(inputs: Inputs, rounds: int, steps: int) -> list[Figure]:
    """Tokens a second of all loops, and the ratios that count."""
    cpus = os.cpu_count() or 1
    half = max(1, cpus // 2)
    contenders: dict[str, Contender] = {}
    rates: dict[str, list[float]] = {}
    waits: list[float] = []
    plan: dict[str, tuple[Loop, int, int]] = {
        "bare loop": (bare_loop, 1, cpus),
        "zero2": (train_py, 1, cpus),
        "transformers.Trainer": (hugging_face_trainer, 1, cpus),
        "zero2, half the CPUs": (train_py, 1, half),
        "zero2, two processes": (partial(train_py, micro_batch_size=ROWS // 2), 2, half),
    }
    try:
        for name, (loop, ranks, threads) in plan.items():
            contenders[name] = Contender(loop, ranks, threads, inputs, steps)
        for _ in tqdm(range(rounds), desc="rounds", disable=None):
            for name, contender in contenders.items():
                seconds, waited = contender.turn()
                rates.setdefault(name, []).append(steps * ROWS * LENGTH / seconds)
                if name == "zero2":
                    waits.append(100 * waited / seconds)
    finally:
        for process in (process for contender in contenders.values() for process in contender.processes):
            process.kill()

    def ratio(one: str, other: str) -> list[float]:
        return [a / b for a, b in zip(rates[one], rates[other], strict=True)]

    return [
        *(figure(f"{name}, tokens/s", values) for name, values in rates.items()),
        figure("zero2 / bare loop", ratio("zero2", "bare loop"), "at least 0.95"),
        figure("zero2 / transformers.Trainer", ratio("zero2", "transformers.Trainer"), "above 1"),
        figure("waiting for rows, % of a step", waits, "about 0"),
        figure("two processes / one, all CPUs", ratio("zero2, two processes", "zero2")),
        figure("two processes / one, half of them", ratio("zero2, two processes", "zero2, half the CPUs")),
    ]


if __name__ == "__main__":
    sys.exit(main())
