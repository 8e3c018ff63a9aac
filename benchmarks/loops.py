"""Training loops that take turns: each a process, or ranks, of its own that works some steps and then waits.

Imported by training.py. A loop is given `Inputs` and a `Pace` and meets the pace after every step; what it prints goes
into a file of its own. Same rows in the same number a step, bf16, fused AdamW with fp32 weights, clipping.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tokenizer_tools.freed_memory import keep_freed_memory

ROOT = Path(__file__).resolve().parent.parent
ROWS, LENGTH, LR, CLIP = 4, 512, 1e-4, 1.0
STEPS_OF_A_RUN = 10**6  # more than will be asked for: each loop goes on until it is stopped
TURN_TIMEOUT_SECONDS = 600
FREED_AHEAD_BYTES = 2**28


@dataclass(frozen=True)
class Inputs:
    """What every loop is given."""

    model: Path
    bins: Path
    directory: Path
    """For its outputs."""


def train_words(inputs: Inputs, save_dir: Path, **more: object) -> list[str]:
    """The words of train.py's command line."""
    flags = {
        **{"pretrained": inputs.model, "dataset": inputs.bins, "save_dir": save_dir, "plugin": "zero2"},
        **{"max_length": LENGTH, "micro_batch_size": ROWS, "lr": LR, "warmup_steps": 0, "gradient_clipping": CLIP},
        **{"max_steps": STEPS_OF_A_RUN, "num_epochs": STEPS_OF_A_RUN, "save_interval": STEPS_OF_A_RUN},
    }
    return [word for name, value in {**flags, **more}.items() for word in (f"--{name}", str(value))]


class Pace:
    """Lets a loop work a turn of so many steps at a time; between turns it waits inside `step_done`."""

    def __init__(self, pipe: Connection, steps: int) -> None:
        self._pipe, self._steps = pipe, steps
        self._done, self._waited = 0, 0.0
        self._start = self._last = time.perf_counter()

    def rows_arrived(self) -> None:
        """The loop has the rows of its next step: the time since its last one was spent waiting for them."""
        self._waited += time.perf_counter() - self._last

    def step_done(self) -> None:
        """One more step is done; after the last of a turn, report (seconds, seconds waited) and wait for the next."""
        self._done += 1
        if self._done == self._steps:
            self._pipe.send((time.perf_counter() - self._start, self._waited))
            self._pipe.recv()
            self._done, self._waited, self._start = 0, 0.0, time.perf_counter()
        self._last = time.perf_counter()


def bare_loop(inputs: Inputs, pace: Pace) -> None:
    """zero2 on one process, written out: bf16 weights, fp32 masters, fused AdamW, clipping; rows in memory."""
    import torch
    import torch.nn.functional as F  # noqa: N812
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(inputs.model, torch_dtype=torch.bfloat16)
    model.config.use_cache = False
    masters = [parameter.detach().float().requires_grad_() for parameter in model.parameters()]
    groups = [
        {"params": [master for master in masters if master.dim() == 2], "weight_decay": 0.1},
        {"params": [master for master in masters if master.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), fused=True)
    for rows in itertools.cycle(rows_of(inputs).split(ROWS)):
        logits = model(input_ids=rows).logits[:, :-1].flatten(0, 1)
        F.cross_entropy(logits.float(), rows[:, 1:].flatten()).backward()
        for master, parameter in zip(masters, model.parameters(), strict=True):
            master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters, CLIP)
        optimizer.step()
        with torch.no_grad():
            for master, parameter in zip(masters, model.parameters(), strict=True):
                parameter.copy_(master)
        pace.step_done()


def hugging_face_trainer(inputs: Inputs, pace: Pace) -> None:
    """transformers.Trainer: bf16 as it does it (autocast of fp32 weights), fused AdamW, clipping. Rows in memory."""
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    class Paced(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            pace.step_done()

    arguments = TrainingArguments(
        output_dir=str(inputs.directory / "trainer"),
        **{"use_cpu": True, "bf16": True, "optim": "adamw_torch_fused", "max_grad_norm": CLIP, "weight_decay": 0.1},
        **{"learning_rate": LR, "per_device_train_batch_size": ROWS, "max_steps": STEPS_OF_A_RUN},
        **{"save_strategy": "no", "report_to": [], "disable_tqdm": True, "logging_steps": 10},
    )
    rows = [{"input_ids": row, "labels": row} for row in rows_of(inputs)]
    model = AutoModelForCausalLM.from_pretrained(inputs.model)
    Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Paced()]).train()


def rows_of(inputs: Inputs) -> Any:
    """input_ids [rows, LENGTH] of all rows that are full."""
    import torch

    from data_tools.bins import open_bins

    (only,) = open_bins([inputs.bins]).bins
    rows = [only.row(number).input_ids for number in range(only.num_rows)]
    return torch.tensor([list(map(int, row)) for row in rows if len(row) == LENGTH])


def train_py(inputs: Inputs, pace: Pace, micro_batch_size: int = ROWS) -> None:
    """train.py itself; it meets `pace` where a step's rows have been read and where its figures are recorded."""
    from colossal_llama import host

    host.install_if_needed()  # before anything else of colossalai is imported
    from colossal_llama.metrics import Metrics
    from colossal_llama.step import Stepper

    take, record = Stepper.train, Metrics.record

    def paced_take(self: Stepper, *rows: Any, **more: Any) -> Any:
        pace.rows_arrived()
        return take(self, *rows, **more)

    def paced_record(self: Metrics, *values: Any) -> None:
        record(self, *values)
        pace.step_done()

    Stepper.train, Metrics.record = paced_take, paced_record  # type: ignore[method-assign]
    sys.path.insert(0, str(ROOT))
    import train

    save_dir = inputs.directory / f"run-{os.environ['MASTER_PORT']}"
    raise RuntimeError(
        f"train.py ended: {train.main(train_words(inputs, save_dir, micro_batch_size=micro_batch_size))}"
    )


Loop = Callable[[Inputs, Pace], None]


def rank(loop: Loop, inputs: Inputs, pipe: Connection, steps: int, environment: dict[str, str], log: Path) -> None:
    """One process of a loop: its environment, its output in `log`, then steps for ever."""
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)  # before torch is imported
    keep_freed_memory(FREED_AHEAD_BYTES)  # as train.py does: the loops are compared, not glibc's settings
    loop(inputs, Pace(pipe, steps))


class Contender:
    """A loop on `ranks` processes of `threads` threads each, ready and waiting for its turn."""

    def __init__(self, loop: Loop, ranks: int, threads: int, inputs: Inputs, steps: int) -> None:
        context = multiprocessing.get_context("spawn")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {"OMP_NUM_THREADS": str(threads), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        if ranks > 1:
            shared["WORLD_SIZE"] = str(ranks)
        self._pipes, self.processes = [], []
        for number in range(ranks):
            own = {"RANK": str(number), "LOCAL_RANK": str(number)} if ranks > 1 else {}
            self._log = inputs.directory / f"{port}-{number}.log"
            pipe, its_end = context.Pipe()
            arguments = (loop, inputs, its_end, steps, shared | own, self._log)
            process = context.Process(target=rank, args=arguments, daemon=True)
            process.start()
            its_end.close()
            self._pipes.append(pipe)
            self.processes.append(process)
        self._result()  # the first turn warms up

    def turn(self) -> tuple[float, float]:
        """(seconds, seconds waited for rows) of one turn, of the slowest rank."""
        for pipe in self._pipes:
            pipe.send(None)
        return self._result()

    def _result(self) -> tuple[float, float]:
        results = []
        for pipe in self._pipes:
            try:
                if not pipe.poll(TURN_TIMEOUT_SECONDS):
                    raise EOFError
                results.append(pipe.recv())
            except EOFError as error:
                raise RuntimeError(f"a loop has stopped:\n{self._log.read_text()[-2000:]}") from error
        return max(results)
