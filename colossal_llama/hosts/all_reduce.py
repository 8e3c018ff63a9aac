"""One rank of a sum over all ranks, by the backend that training will use: `python -m colossal_llama.hosts.all_reduce`.

The environment is torchrun's, ALL_REDUCE_BYTES, and ALL_REDUCE_PARENT: the number of the process without which this one
has nothing to do. The `Sum` that comes out is one line of JSON on stdout.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:
    import torch

NUM_BYTES, PARENT = "ALL_REDUCE_BYTES", "ALL_REDUCE_PARENT"
TIMEOUT = timedelta(seconds=60)
NUM_TIMES = 3
BYTES_PER_ELEMENT = 4


class Sum(TypedDict):
    """What a rank has seen of it. `seconds` is the best time of a few, of `num_bytes`."""

    backend: str
    device: str
    is_right: bool
    seconds: float
    num_bytes: int


def main() -> None:
    """Join the others, add up, tell. Any error ends this process with its traceback."""
    from tokenizer_tools.parent import end_with_parent

    end_with_parent(int(os.environ[PARENT]), signal.SIGKILL)
    print(json.dumps(add_up(int(os.environ[NUM_BYTES]))), flush=True)
    sys.stdout.flush()
    os._exit(0)  # gloo's threads and the interpreter's end could wait for each other for ever


def add_up(num_bytes: int) -> Sum:
    """Every rank puts in its number plus one, so that the sum is known."""
    import torch
    import torch.distributed as dist

    from colossal_llama import host
    from colossal_llama.hosts.interface import interface_variables

    if os.environ["WORLD_SIZE"] != os.environ["LOCAL_WORLD_SIZE"]:  # as `cluster.launch` does it
        os.environ.update(interface_variables(os.environ["MASTER_ADDR"], os.environ))
    backend, device = host.backend_and_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend, timeout=TIMEOUT)
    rank, world_size = dist.get_rank(), dist.get_world_size()
    expected = world_size * (world_size + 1) / 2
    is_right, seconds = True, float("inf")
    for _ in range(1 + NUM_TIMES):  # the first one opens the connections
        values = torch.full((max(1, num_bytes // BYTES_PER_ELEMENT),), float(rank + 1), device=device)
        _meet(device)
        began = time.perf_counter()
        dist.all_reduce(values)
        is_right &= bool((values == expected).all().item())  # which also waits for the device
        seconds = min(seconds, time.perf_counter() - began)
    _meet(device)
    return Sum(backend=backend, device=str(device), is_right=is_right, seconds=seconds, num_bytes=num_bytes)


def _meet(device: torch.device) -> None:
    """Wait for all ranks. NCCL's own barrier guesses a rank's device from its number."""
    import torch
    import torch.distributed as dist

    one = torch.ones(1, device=device)
    dist.all_reduce(one)
    one.item()


if __name__ == "__main__":
    main()
