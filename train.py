"""Stage 4: continue the pre-training of a LLaMA-family model. `python train.py --help` lists every flag."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from colossal_llama.background import leave
from colossal_llama.checks import check
from colossal_llama.config import TrainConfig
from tokenizer_tools.command import command
from tokenizer_tools.parent import end_with_parent


@command(TrainConfig)
def main(config: TrainConfig) -> None:
    """Check the flags, join the other ranks, train."""
    started = time.monotonic()  # --time_limit counts from here
    if "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun that is killed leaves its workers; they have to notice
        end_with_parent(os.getppid(), signal.SIGTERM)
    if config.rehearse:
        from colossal_llama.rehearse import rehearse, start_processes

        rehearse(config, start_processes(Path(__file__)))
        return
    check(config)
    # bitsandbytes imports torch's compiler, which would start idle workers that outlive a killed rank
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    # Seconds of imports, and the device of a rank must be set before the rest of colossalai is imported.
    from colossal_llama.cluster import launch

    with launch(config.seed) as cluster:
        from colossal_llama.loop import train

        train(config, cluster, started)


if __name__ == "__main__":
    leave(main())
