"""How long a checkpoint stops the training: written in the background against waiting for it, in turns, on one state.

train.py's own loop, written out: zero2 and ddp on one and two processes, a Llama of 134 million parameters. In each
round a save that is waited for, some undisturbed steps, and a save in the background with the steps that it disturbs.
A pause is all that the loop waits for: the copy into host memory, and later the manifest and the rename.

    python benchmarks/saving.py [--rounds 3] [--json]
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import resource
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from data_engine import package_texts, write_text, write_tokenizer
from loops import ROOT
from tqdm import tqdm
from training import Figure, figure, make_model, run, show

from tokenizer_tools.command import UserError, command

LENGTH = 64
TEXT_BYTES = 10**6
GIGABYTE = 10**9
RANK_TIMEOUT_SECONDS = 1800
PLANS = {"zero2": ("zero2", 1), "zero2, 2 processes": ("zero2", 2), "ddp": ("ddp", 1), "ddp, 2 processes": ("ddp", 2)}
MODEL = {
    **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "tie_word_embeddings": False},
    **{"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12},
    "max_position_embeddings": LENGTH,
}


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure how long a save stops the training, with and without the background."""

    rounds: int = 3
    """Rounds; in each both ways of saving have their turn."""
    steps: int = 5
    """Undisturbed steps of a round."""
    directory: Path | None = None
    """Where the checkpoints go, default: the directory of temporary files."""
    json: bool = False
    """Print one JSON document in place of the table."""


@dataclass(frozen=True)
class Round:
    """Seconds of one round on rank 0."""

    waited: float
    """A save that is waited for."""
    begun: float
    """The pause in which a background save begins."""
    published: float
    """The pause in which it gets its name."""
    written: float
    """From its beginning to its name."""
    step: float
    """An undisturbed step, median."""
    disturbed_step: float
    """A step while the background writes, median."""


@dataclass(frozen=True)
class Result:
    """What rank 0 of one plan has measured."""

    rounds: list[Round]
    checkpoint_bytes: int
    more_memory_bytes: int
    """Peak of resident memory, all ranks: steps with the first save beside them against steps before any save."""


@command(BenchmarkConfig)
def main(config: BenchmarkConfig) -> None:
    """Measure and print."""
    if config.rounds < 1 or config.steps < 1:
        raise UserError(f"--rounds {config.rounds} --steps {config.steps}: must both be at least 1")
    with tempfile.TemporaryDirectory(prefix="saving_benchmark.", dir=config.directory) as name:
        model, bins = prepare(Path(name))
        figures: list[Figure] = []
        for plan in tqdm(PLANS, desc="plans", disable=None):
            figures += figures_of(plan, measure(*PLANS[plan], model, bins, config))
    if config.json:
        print(json.dumps({"rounds": config.rounds, "figures": [asdict(one) for one in figures]}))
    else:
        show(figures, config.rounds)


def prepare(work: Path) -> tuple[Path, Path]:
    """(model, bins of stage 3)."""
    tokenizer = write_tokenizer(work / "tokenizer")
    write_text(package_texts(), work / "text", TEXT_BYTES, TEXT_BYTES)
    flags = ("--data_input_dirs", work / "text", "--tokenizer_dir", tokenizer, "--data_arrow_output_dir", work / "bins")
    run("data_tools/prepare_pretrain_dataset.py", *flags, "--max_length", LENGTH, "--num_spliced_dataset_bins", 1)
    return make_model(MODEL, tokenizer, work / "model"), work / "bins"


def figures_of(plan: str, result: Result) -> list[Figure]:
    """The lines of the table."""
    rounds = result.rounds

    def of(value: Callable[[Round], float]) -> list[float]:
        return [value(one) for one in rounds]

    return [
        figure(f"{plan}: a checkpoint, GB", [result.checkpoint_bytes / GIGABYTE]),
        figure(f"{plan}: pause if waited for, s", of(lambda one: one.waited)),
        figure(f"{plan}: pause in the background, s", of(lambda one: one.begun + one.published)),
        figure(
            f"{plan}: background / waited for", of(lambda one: (one.begun + one.published) / one.waited), "at most 0.25"
        ),
        figure(f"{plan}: until it is complete, s", of(lambda one: one.written)),
        figure(f"{plan}: a step meanwhile / before", of(lambda one: one.disturbed_step / one.step)),
        figure(f"{plan}: more memory, GB", [result.more_memory_bytes / GIGABYTE]),
    ]


def measure(plugin: str, num_ranks: int, model: Path, bins: Path, config: BenchmarkConfig) -> Result:
    """Run the ranks of one plan, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // num_ranks)
    shared = {"OMP_NUM_THREADS": threads, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": num_ranks}
    pipe, its_end = context.Pipe(duplex=False)
    save_dir = model.parent / f"run-{port}"
    processes = []
    for number in range(num_ranks):
        environment = {name: str(value) for name, value in {**shared, "RANK": number, "LOCAL_RANK": number}.items()}
        arguments = (environment, its_end, plugin, model, bins, save_dir, config)
        processes.append(context.Process(target=rank, args=arguments, daemon=True))
        processes[-1].start()
    its_end.close()
    try:
        if not pipe.poll(RANK_TIMEOUT_SECONDS):
            raise EOFError
        return pipe.recv()
    except EOFError:
        raise RuntimeError(f"{plugin} on {num_ranks} processes has ended without a result") from None
    finally:
        for process in processes:
            process.join(timeout=20)
            process.kill()


# --- in a rank --------------------------------------------------------------------------------------------------------


def rank(
    environment: dict[str, str],
    pipe: Connection,
    plugin: str,
    model: Path,
    bins: Path,
    save_dir: Path,
    config: BenchmarkConfig,
) -> None:
    """One process of a plan; rank 0 sends its Result."""
    os.environ.update(environment)  # before torch is imported
    sys.path.insert(0, str(ROOT))
    from colossal_llama.cluster import launch
    from colossal_llama.config import TrainConfig
    from colossal_llama.stopping import stop_requests

    flags: Any = {"plugin": plugin, "max_length": LENGTH, "keep_checkpoints": 1, "num_epochs": 10**6}
    settings = TrainConfig(pretrained=model, dataset=[bins], save_dir=save_dir, **flags)
    with launch(settings.seed) as cluster, stop_requests(None, time.monotonic()) as stop:
        from colossal_llama.build import build, open_logs
        from colossal_llama.control import Control
        from colossal_llama.engine import board
        from colossal_llama.saving import Saver

        run, start = build(settings, cluster)
        engine = board(run, start)
        saver = Saver(run, engine, open_logs(run).metrics, stop)
        loop = Loop(run, engine, saver, Control())
        more_memory = loop.more_memory(config.steps)
        rounds = [loop.round(config.steps) for _ in range(config.rounds)]
        if cluster.is_main:
            pipe.send(Result(rounds, engine.writer.num_bytes, more_memory))


class Loop:
    """train.py's loop with a clock beside it."""

    def __init__(self, run: Any, engine: Any, saver: Any, control: Any) -> None:
        self._run, self._engine, self._saver, self._control = run, engine, saver, control
        self._rows = engine.reader.steps_from(0)
        self._saves = itertools.count(1)

    def round(self, steps: int) -> Round:
        """Both ways of saving, with steps between them."""
        waited = self._begin() + seconds_of(self._saver.finish)
        step = statistics.median(seconds_of(self._step) for _ in range(steps))
        begun = self._begin()
        start = time.perf_counter()
        disturbed = []
        while True:
            disturbed.append(seconds_of(self._step))
            agreed = self._control.agree(0, self._engine.writer.is_saved, self._engine.writer.has_failed)
            if agreed.all_saved or agreed.any_failed:
                break
        published = seconds_of(lambda: self._saver.look(agreed))
        written = begun + time.perf_counter() - start
        return Round(waited, begun, published, written, step, statistics.median(disturbed))

    def more_memory(self, steps: int) -> int:
        """Bytes by which the first save of a process raises the peak of its steps, summed over the ranks."""
        for _ in range(steps):
            self._step()
        before = peak_bytes()
        self._begin()
        for _ in range(steps):
            self._step()
        self._saver.finish()
        return self._sum(peak_bytes() - before)

    def _begin(self) -> float:
        """Seconds for which a save in the background stops the loop."""
        progress = replace(self._run.progress, step=next(self._saves))
        return seconds_of(lambda: self._saver.begin(progress))

    def _step(self) -> None:
        self._engine.stepper.train(next(self._rows), 0)

    def _sum(self, value: int) -> int:
        import torch

        from colossal_llama.cluster import all_reduce_sum

        return int(all_reduce_sum(torch.tensor(value)))


def seconds_of(action: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def peak_bytes() -> int:
    """The most memory that this process has ever had, as Linux counts it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
