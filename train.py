"""Stage 4: continue the pre-training of a LLaMA-family model. `python train.py --help` lists every flag."""

from __future__ import annotations

import sys

from colossal_llama.checks import check
from colossal_llama.config import TrainConfig
from tokenizer_tools.command import command


@command(TrainConfig)
def main(config: TrainConfig) -> None:
    """Check the flags, join the other ranks, train."""
    check(config)
    # Seconds of imports, and the device of a rank must be set before the rest of colossalai is imported.
    from colossal_llama.cluster import launch

    with launch(config.seed) as cluster:
        from colossal_llama.loop import train

        train(config, cluster)


if __name__ == "__main__":
    sys.exit(main())
