"""Where a run stands: everything a killed run needs to know to go on, as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from colossal_llama.guard import RunningLoss
from tokenizer_tools.command import UserError


@dataclass(frozen=True)
class Progress:
    """`num_rows_seen` is the position: the next step begins with that row of the global order."""

    step: int = 0
    """Optimizer steps done."""
    epoch: int = 0
    """Full passes over the rows done."""
    num_rows_seen: int = 0
    num_tokens_seen: int = 0
    """Loss-bearing tokens read, those of bad steps too."""
    tokens_by_category: dict[str, int] = field(default_factory=dict)
    """The same for each category."""
    seed: int = 0
    """Seed of the row order."""
    data_fingerprint: str = ""
    """sha256 over the bins' own hashes, in order."""
    tokenizer_fingerprint: str = ""
    stage: int = 0
    """Number of the stage, from 0, that the last step belonged to."""
    trained: str = "all"
    """What that stage trains, which is what the optimizer's state belongs to."""
    loss_weighted_sum: float = 0.0
    """With `loss_weight` the running mean of the loss, by which the guard knows a leap."""
    loss_weight: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain values, for running_states.json."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Progress:
        """The reverse of `as_json`. Raises UserError if a name is missing or unknown."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            raise UserError(f"running_states.json: holds {sorted(values)}, expected {sorted(names)}; another version?")
        return cls(**values)

    def check_continues(self, other: Progress) -> None:
        """Raise UserError if a run planned as `other` would not go on where this one stopped."""
        reasons = {
            "seed": "--seed",
            "data_fingerprint": "--dataset",
            "tokenizer_fingerprint": "tokenizer",
        }
        for name, flag in reasons.items():
            before, now = getattr(self, name), getattr(other, name)
            if before != now:
                raise UserError(
                    f"the checkpoint was made with another {flag} ({name} {str(before)[:16]}, now {str(now)[:16]}); "
                    f"keep the same {flag} to go on, or pass the checkpoint's `modeling` folder to --load_checkpoint "
                    f"with a new --save_dir to start anew from its weights"
                )

    @property
    def running_loss(self) -> RunningLoss:
        """For the guard."""
        return RunningLoss(self.loss_weighted_sum, self.loss_weight)

    def check_stage(self, number: int, trained: str, begins: bool) -> None:
        """Raise UserError unless the next step goes on in the same stage, or begins the next one.

        `number`, `trained`: the stage that the plan has for the next step; `begins`: whether that is its first.
        """
        goes_on = number == self.stage and trained == self.trained
        if not goes_on and not (number == self.stage + 1 and begins):
            raise UserError(
                f"step {self.step} of the checkpoint was trained in stage {self.stage + 1} ({self.trained}), the next "
                f"one would be in stage {number + 1} ({trained}); keep the same --train, --stages and --lora_rank to "
                f"go on, or pass the checkpoint's `modeling` folder to --load_checkpoint with a new --save_dir to "
                f"start anew from its weights"
            )
