"""How the learning rate goes: the number of a step comes in, a share of the peak goes out. Pure functions.

Every shape begins with a linear warm-up, never rises after it, and stays where it is beyond the last step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

ScheduleName = Literal["cosine", "wsd", "linear", "constant"]

WARMUP_SHARE = 0.025


@dataclass(frozen=True)
class Schedule:
    """A learning rate over `num_steps` steps, the first of which has the number 0.

    The peak is reached at step `warmup_steps - 1`, the floor at step `num_steps - 1`, if at least one step lies between
    the two; a run that is all warm-up ends at the peak.
    """

    name: ScheduleName
    num_steps: int
    warmup_steps: int
    floor: float = 0.1
    """Where the decay ends, as a share of the peak, 0 to 1; `constant` does not decay."""
    decay_share: float = 0.2
    """Share of all steps that `wsd` decays for, at the end; above 0, at most 1."""

    def share_at(self, step: int) -> float:
        """The learning rate of `step` as a share of the peak, at most 1; after the warm-up at least `floor`."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        num_later = max(1, self.num_steps - 1 - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / num_later)
        if self.name == "cosine":
            left = 0.5 * (1 + math.cos(math.pi * progress))
        elif self.name == "linear":
            left = 1 - progress
        elif self.name == "wsd":  # linear at the end: Hägele et al. 2024, arXiv:2405.18392
            num_decay = min(self.decay_share * self.num_steps, num_later)
            left = min(1.0, (1 - progress) * num_later / num_decay)
        else:
            left = 1.0
        return self.floor + (1 - self.floor) * left


def default_warmup_steps(num_steps: int) -> int:
    """0.025 of all steps, rounded down, as the pipeline's flag has always meant it."""
    return int(WARMUP_SHARE * num_steps)
