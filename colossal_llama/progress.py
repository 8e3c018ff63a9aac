"""Where a run stands: everything a killed run needs to know to go on, as JSON."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

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
    """Loss-bearing tokens trained on."""
    seed: int = 0
    """Seed of the row order."""
    data_fingerprint: str = ""
    """sha256 over the bins' own hashes, in order."""
    tokenizer_fingerprint: str = ""
    trained: str = "all"
    """`all` or `embeds`: which parameters the optimizer's state belongs to."""

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
            "trained": "--freeze_non_embeds_params",
        }
        for name, flag in reasons.items():
            before, now = getattr(self, name), getattr(other, name)
            if before != now:
                raise UserError(
                    f"the checkpoint was made with another {flag} ({name} {str(before)[:16]}, now {str(now)[:16]}); "
                    f"keep the same {flag} to go on, or pass the checkpoint's `modeling` folder to --load_checkpoint "
                    f"with a new --save_dir to start anew from its weights"
                )
