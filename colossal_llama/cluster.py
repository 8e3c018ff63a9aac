"""The ranks of a run: launched, numbered, talking, and raising together.

Import this before anything of colossalai: gemini's checkpoint code reads the current device while it is imported
(colossalai/zero/gemini/gemini_optimizer.py), so each rank must own its device by then.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from colossal_llama import host
from colossal_llama.hosts.interface import interface_variables
from tokenizer_tools.command import Stopped, UserError
from tokenizer_tools.outputs import disk_fault_of

Result = TypeVar("Result")

GLOO_SETTLE_SECONDS = 0.5
RANK_LOGGER = "colossal_llama.rank"  # speaks on every rank
LOST_RANK_WORDS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket Timeout")  # gloo's
LOST_RANK_SECONDS = 3  # for the rank that failed to leave first: torchrun's report is about that one
COLLECTIVE_TIMEOUT = timedelta(hours=1)
"""NCCL's own 10 minutes are less than rank 0 needs to write and hash a large checkpoint while the others wait."""


@dataclass(frozen=True)
class Cluster:
    """Who this rank is. `device` is where its tensors live."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Rank 0 writes the logs and the small files."""
        return self.rank == 0


@dataclass(frozen=True)
class Layout:
    """What this rank holds of a step, as the plugin divides it.

    Data-parallel rank `dp_rank` of `dp_size` says which rows; tensor-, sequence- and pipeline-parallel ranks of one
    data-parallel rank read the same rows. Gradients are averaged over `num_averaged` ranks.
    """

    dp_rank: int
    dp_size: int
    num_averaged: int
    tp_group: dist.ProcessGroup | None = None
    """Set if each rank of the group holds a slice of the vocabulary's logits."""
    sequence_rank: int = 0
    sequence_size: int = 1
    """Above 1 if each rank's logits are a slice of the sequence."""
    owns_loss: bool = True
    """True on exactly one rank for every (row, slice of the sequence): sums over all ranks count each token once."""
    owns_rows: bool = True
    """True on exactly one rank for every row."""


@contextmanager
def launch(seed: int) -> Iterator[Cluster]:
    """Join the process group (torchrun's or Slurm's environment; alone without either) and leave it at the end."""
    _fill_environment()
    chosen = interface_variables(os.environ["MASTER_ADDR"], os.environ) if spans_hosts() else {}
    os.environ.update(chosen)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # Booster reads its optimizer files as pickles that may run code
    with _advice_left_out():
        on_host = host.install_if_needed()
        from colossalai.accelerator import get_accelerator

        if not on_host:
            # Slurm may show each task its own device only, as number 0
            os.environ["LOCAL_RANK"] = str(int(os.environ["LOCAL_RANK"]) % get_accelerator().device_count())
            get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
        import colossalai.booster.plugin
    colossalai.logging.get_dist_logger().set_level("ERROR")
    distributed_c10d.default_pg_timeout = distributed_c10d.default_pg_nccl_timeout = COLLECTIVE_TIMEOUT
    colossalai.launch_from_torch(seed=seed, verbose=False)
    device = torch.device("cpu") if on_host else get_accelerator().get_current_device()
    if chosen:
        words = ", ".join(f"{name}={value}" for name, value in chosen.items())
        main_rank_logger(__name__).info(f"the way to {os.environ['MASTER_ADDR']}, the same on every host: {words}")
    if on_host:
        main_rank_logger(__name__).info("no accelerator found: running on CPU with gloo")
    try:
        yield Cluster(dist.get_rank(), dist.get_world_size(), device)
    except (UserError, Stopped):  # raised by all ranks together
        _leave()
        raise
    except Exception as error:
        if has_lost_a_rank(error):
            leave_lost(error, LOST_RANK_SECONDS)
        _report(error)
        raise
    else:
        _leave()
    # After any other error this rank just ends: leaving in good order could wait for ranks that wait for this one.


def has_lost_a_rank(error: Exception) -> bool:
    """Whether this rank only fell because another one was gone."""
    return isinstance(error, dist.DistBackendError) or any(words in str(error) for words in LOST_RANK_WORDS)


def leave_lost(error: Exception, seconds: float) -> NoReturn:
    """Say that another rank is gone, and end this process with exit code 1 after so many seconds."""
    logging.getLogger(RANK_LOGGER).error(
        f"rank {dist.get_rank()}: another process of this run has ended ({' '.join(str(error).split())[:200]}); "
        f"what ended it is said where it ran. The same command goes on from the newest checkpoint"
    )
    time.sleep(max(seconds, LOST_RANK_SECONDS))
    sys.stdout.flush()
    os._exit(1)  # gloo's threads and the interpreter's end could wait for each other for ever


def _report(error: Exception) -> None:
    """Say what ended this rank alone, before the other ranks' broken connections bury it.

    torchrun closes its report with the traceback of the rank that failed first. An OSError has no traceback, and
    `command` says it on the first rank of a host only, because most are raised together.
    """
    get_error_handler().record_exception(error)
    if isinstance(error, OSError):
        where = f"{socket.gethostname()} (rank {dist.get_rank()})" if spans_hosts() else f"rank {dist.get_rank()}"
        logging.getLogger(RANK_LOGGER).error(f"{where}: {error}")


def _leave() -> None:
    settle()
    gc.collect()  # Booster's plugins destroy their groups when they are collected, and need the default one for it
    dist.destroy_process_group()


def release(holder: list[Any]) -> None:
    """Empty `holder`, which must have the last references to a boosted run, so that another can begin in its place.

    Model, optimizer and plugin refer to each other in circles, so only a collection frees them; with the plugin go its
    process groups. All ranks call it, and only when none is still talking in one of these groups.
    """
    from colossalai.accelerator import get_accelerator
    from colossalai.zero.gemini.gemini_mgr import GeminiManager
    from colossalai.zero.gemini.placement_policy import AutoPlacementPolicy

    dist.barrier()
    settle()
    holder.clear()
    # Caches of the process that hold every gemini model it has trained, with all its weights (gemini_mgr.py:138)
    GeminiManager._get_layout_info.cache_clear()
    AutoPlacementPolicy._sort_can_evict_chunks.cache_clear()
    for _ in range(2):  # the first runs the `__del__`s that take away the hooks by which parameters are still held
        gc.collect()
    get_accelerator().empty_cache()


def settle() -> None:
    """Wait until gloo's threads have let go of their last tensors; call it before anything drops a process group.

    torch 2.5's gloo joins its threads with the GIL held, and a thread that is just dropping a tensor waits for the GIL:
    without this moment about every third run hung for ever at its very end (pytorch pull request 154976).
    """
    if dist.get_backend() == "gloo":
        time.sleep(GLOO_SETTLE_SECONDS)


@contextmanager
def _advice_left_out() -> Iterator[None]:
    """Import colossalai without its advice about apex, tensornvme and TorchScript, which every rank would print."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.showwarning = lambda *_, **__: None  # no filter: torch/distributed/optim sets its own to "always"
        yield


def _fill_environment() -> None:
    """Give torch.distributed its variables where no torchrun did: from Slurm's, or for one process alone."""
    if "RANK" in os.environ:
        return
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))  # of this srun; SLURM_NTASKS is also set in sbatch itself
    if tasks > 1:
        if "MASTER_ADDR" not in os.environ:
            raise UserError("MASTER_ADDR is not set: under srun, export the first host's name as MASTER_ADDR first")
        names = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "LOCAL_RANK": "SLURM_LOCALID"}
        os.environ.update({name: os.environ[slurm] for name, slurm in names.items()})
        os.environ.setdefault("MASTER_PORT", "29500")
        os.environ["LOCAL_WORLD_SIZE"] = str(tasks // int(os.environ.get("SLURM_STEP_NUM_NODES", "1")))
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))


def spans_hosts() -> bool:
    """Whether the run has ranks on other hosts, as its launcher says."""
    world_size = os.environ["WORLD_SIZE"]
    return int(world_size) > int(os.environ.get("LOCAL_WORLD_SIZE", world_size))


def together(action: Callable[[], Result]) -> Result:
    """Run `action` on every rank; if it fails on any of them, all ranks raise, so that nobody waits for ever.

    A UserError or OSError of any rank becomes one UserError on all, which names its host if the run has several and
    not all have failed; another error is raised as it is where it arose and as RuntimeError elsewhere. What a broken
    disk has said is noted down for the launcher.
    """
    error: Exception | None = None
    try:
        result = action()
    except Exception as caught:
        error = caught
        disk_fault = disk_fault_of(caught)
        if disk_fault is not None:
            get_error_handler().record_exception(disk_fault)
    messages: list[tuple[bool, str, str] | None] = [None] * dist.get_world_size()
    own = None if error is None else (isinstance(error, UserError | OSError), socket.gethostname(), f"{error}")
    dist.all_gather_object(messages, own)
    failures = [(rank, *message) for rank, message in enumerate(messages) if message is not None]
    if not failures:
        return result
    if error is not None and not isinstance(error, UserError | OSError):
        raise error
    rank, is_users, host_name, text = failures[0]
    if is_users:
        is_one_hosts = spans_hosts() and len(failures) < len(messages)
        raise UserError(f"{host_name} (rank {rank}): {text}" if is_one_hosts else text) from error
    raise RuntimeError(f"rank {rank} failed: {text}")


def on_main(action: Callable[[], Result]) -> Result:
    """Run `action` on rank 0 alone; all ranks get its result, or raise its error together."""
    result = together(lambda: action() if dist.get_rank() == 0 else None)
    box: list[Any] = [result]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum of `values` over all ranks, in place; no host sync on an accelerator."""
    dist.all_reduce(values, op=dist.ReduceOp.SUM)
    return values


def main_rank_logger(name: str) -> logging.Logger:
    """A logger that speaks on rank 0 only."""
    logger = logging.getLogger(name)
    logger.disabled = dist.is_initialized() and dist.get_rank() != 0
    return logger
