"""Where a run stands: everything a killed run needs to know to go on, as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from typing import Any

from colossal_llama.guard import RunningLoss
from colossal_llama.row_chain import FIRST_LINK
from tokenizer_tools.command import UserError

START_ANEW = (
    "or pass the checkpoint's `modeling` folder to --load_checkpoint with a new --save_dir to start anew from its "
    "weights"
)


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
    row_chain: str = FIRST_LINK
    """`row_chain.extended` over the rows that the ranks have read so far."""
    loss_scale: dict[str, float] = field(default_factory=dict)
    """fp16's, as `loss_scale.loss_scale_state` gives it."""

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

    def going_on(self, now: Progress, restarts_data: bool) -> Progress:
        """This position, in a run whose seed, data and tokenizer are those of `now`.

        Other data or another seed begin with their first row if `restarts_data` allows it; what is trained and counted
        so far stays. Raises UserError if it does not, and for another tokenizer.
        """
        if now.tokenizer_fingerprint != self.tokenizer_fingerprint:
            raise UserError(_another("tokenizer", "tokenizer_fingerprint", self, now, START_ANEW))
        for name, flag in (("data_fingerprint", "--dataset"), ("seed", "--seed")):
            if getattr(self, name) != getattr(now, name) and not restarts_data:
                way_out = f"add --restart_data to go on with it from its first row, {START_ANEW}"
                raise UserError(_another(flag, name, self, now, way_out))
        if (self.data_fingerprint, self.seed) == (now.data_fingerprint, now.seed):
            return self
        return replace(self, epoch=0, num_rows_seen=0, data_fingerprint=now.data_fingerprint, seed=now.seed)

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
                f"go on, {START_ANEW}"
            )


def _another(what: str, name: str, before: Progress, now: Progress, way_out: str) -> str:
    old, new = (str(getattr(progress, name))[:16] for progress in (before, now))
    return f"the checkpoint was made with another {what} ({name} {old}, now {new}); keep the same {what}, {way_out}"
