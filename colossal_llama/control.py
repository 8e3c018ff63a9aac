"""What ranks tell each other beside the training: small numbers, once a step, by the hosts and not by the devices.

A signal reaches one rank, a disk fills up on one host: every rank must act on it after the same step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Agreement:
    """What the ranks say, taken together."""

    reason: int
    """The largest of their reasons to stop; 0 if none has any."""
    all_saved: bool
    """Every rank's part of the open checkpoint lies on its disk."""
    any_failed: bool
    """Some rank's part of the open checkpoint could not be written."""


class Control:
    """A gloo group of its own, so that no device is waited for. All ranks make it together."""

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo") if dist.get_world_size() > 1 else None

    def agree(self, reason: int, is_saved: bool, has_failed: bool) -> Agreement:
        """The same answer on every rank. All ranks call it after the same step."""
        words = torch.tensor([reason, not is_saved, has_failed], dtype=torch.int32)
        if self._group is not None:
            dist.all_reduce(words, op=dist.ReduceOp.MAX, group=self._group)
        reason, any_unsaved, any_failed = words.tolist()
        return Agreement(reason, not any_unsaved, bool(any_failed))
