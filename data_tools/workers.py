"""Runs one function on many tasks: here, in processes, or on a Ray cluster. Results come as they are ready."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from tokenizer_tools.command import UserError
from tokenizer_tools.parent import end_with_parent

Task = TypeVar("Task")
Result = TypeVar("Result")
RAY_TIMEOUT_SECONDS = 5
TASKS_A_WORKER = 2  # waiting or running: none waits for its next task, and few results are held


def num_cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(
    function: Callable[[Task], Result], tasks: Sequence[Task], num_workers: int, ray_address: str | None = None
) -> Iterator[tuple[int, Result]]:
    """(index of the task, its result) of each task, in any order.

    With one worker everything happens in this process. An exception of a task ends all. Raises UserError if a worker
    process dies, or if there is no Ray cluster at `ray_address`.
    """
    if ray_address is not None:
        yield from _on_ray(function, tasks, ray_address)
    elif min(num_workers, len(tasks)) <= 1:
        yield from ((index, function(task)) for index, task in enumerate(tasks))
    else:
        yield from _in_processes(function, tasks, min(num_workers, len(tasks)))


def _in_processes(
    function: Callable[[Task], Result], tasks: Sequence[Task], num_workers: int
) -> Iterator[tuple[int, Result]]:
    """Forked, so that the tokenizers that are loaded here need not be loaded again."""
    context = multiprocessing.get_context("fork")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=_begin, initargs=(os.getpid(),))
    running: dict[Future[Result], int] = {}
    left = iter(enumerate(tasks))
    try:
        while True:
            while len(running) < num_workers * TASKS_A_WORKER and (item := next(left, None)) is not None:
                running[pool.submit(function, item[1])] = item[0]
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, most likely because memory ran out; run the same command again with a "
            "smaller --num_workers, it goes on where it stopped"
        ) from None
    finally:
        if running:  # something went wrong: what is being done is not wanted any more
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(parent: int) -> None:
    """Ctrl-C reaches every process of the terminal: the parent alone decides, and ends its workers.

    Where the system can (Linux), a worker ends with its parent, however that ends: it holds the lock of the run, too.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent(parent, signal.SIGKILL)


def _on_ray(function: Callable[[Task], Result], tasks: Sequence[Task], address: str) -> Iterator[tuple[int, Result]]:
    """Tasks and results travel; the files they name have to lie on a file system that all nodes share."""
    import ray
    from ray.exceptions import RayTaskError

    _join_cluster(address)
    remote = ray.remote(function)
    num_slots = max(1, int(ray.cluster_resources().get("CPU", 1))) * TASKS_A_WORKER
    running: dict[object, int] = {}
    left = iter(enumerate(tasks))
    try:
        while True:
            while len(running) < num_slots and (item := next(left, None)) is not None:
                running[remote.remote(item[1])] = item[0]
            if not running:
                break
            ready, _ = ray.wait(list(running), num_returns=1)
            yield running.pop(ready[0]), ray.get(ready[0])
    except RayTaskError as error:
        raise error.cause from None  # as the task raised it
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _join_cluster(address: str) -> None:
    """Raises UserError if no cluster answers; Ray itself would go on asking for minutes."""
    import ray

    if ray.is_initialized():
        return
    try:
        if ":" in address:
            host, _, port = address.removeprefix("ray://").rpartition(":")
            socket.create_connection((host, int(port)), RAY_TIMEOUT_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"--ray_address {address}: no Ray cluster answers ({reason}); start one with `ray start --head`"
        ) from None
