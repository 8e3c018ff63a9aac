"""Steps are read in the background: an iterator of steps comes in, the same steps go out without waiting for the disk.

The reader's work is numpy's, which lets other threads run; while a step computes, one thread reads the next ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from colossal_llama.batch import Batch

STEPS_AHEAD = 2


@contextmanager
def prefetched(steps: Iterator[list[Batch]], pin: bool) -> Iterator[Iterator[list[Batch]]]:
    """Yield the same steps in the same order, STEPS_AHEAD of them read ahead by a thread that ends with the block.

    `pin` puts them into page-locked memory, which needs an accelerator. What `steps` raises is raised where its step is
    asked for, with its traceback.
    """
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch")

    def read() -> list[Batch] | None:
        step = next(steps, None)
        return [batch.pin() for batch in step] if step is not None and pin else step

    def taken() -> Iterator[list[Batch]]:
        waiting = deque(thread.submit(read) for _ in range(STEPS_AHEAD))
        while (step := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(read))
            yield step

    try:
        yield taken()
    finally:
        thread.shutdown(wait=True, cancel_futures=True)
