"""Where a step's random numbers (dropout, if a model has any) come from: its own place in the run, and nothing before.

So they need not be saved: a resumed run draws what an undisturbed one would have drawn.
"""

from __future__ import annotations

import numpy as np
import torch


def seed_step(seed: int, step: int, dp_rank: int) -> None:
    """Seed torch, on the host and on every device, for the step after `step`.

    Ranks that read the same rows draw alike, as tensor parallelism needs it; the others do not.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, step, dp_rank]).generate_state(1, np.uint64)[0] >> 1))
