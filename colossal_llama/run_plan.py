"""The plan of a run, all of it known before the first step: flags and a position come in, steps and stages go out."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from colossal_llama.checks import stages_of
from colossal_llama.config import TrainConfig
from colossal_llama.progress import Progress
from colossal_llama.stages import ResolvedStage, resolve, stage_at


@dataclass(frozen=True)
class Plan:
    """Which rows make a step, and which step belongs to which stage."""

    num_rows: int
    """Rows of one epoch."""
    end_row: int
    """The run ends before this row of the endless order."""
    rows_per_step: int
    total_steps: int
    stages: list[ResolvedStage]

    def after_step(self, before: Progress) -> Progress:
        """The position after one more step; the last step of a run may hold fewer rows."""
        stage = stage_at(self.stages, before.step)
        num_seen = min(before.num_rows_seen + self.rows_per_step, self.end_row)
        return replace(
            before,
            step=before.step + 1,
            epoch=num_seen // self.num_rows,
            num_rows_seen=num_seen,
            stage=self.stages.index(stage),
            trained=stage.train,
        )

    def check_goes_on(self, before: Progress) -> None:
        """Raise UserError unless the step after `before`, a checkpoint's position, goes on in its stage."""
        stage = stage_at(self.stages, before.step)
        before.check_stage(self.stages.index(stage), stage.train, begins=before.step == stage.first_step)

    def schedule_after(self, step: int) -> dict[str, Any]:
        """Where the learning rate stands after `step` steps, as a checkpoint says it."""
        stage = stage_at(self.stages, step)
        return {
            "step": step,
            "total_steps": self.total_steps,
            "stage": self.stages.index(stage),
            "trained": stage.train,
            "stage_steps": [stage.first_step, stage.end_step],
            "warmup_steps": stage.warmup_steps,
            "peak_lr": stage.lr,
            "next_lr": stage.lr_at(step),
            "next_embeds_lr": stage.embeds_lr_at(step),
        }


def make_plan(config: TrainConfig, progress: Progress, num_rows: int, rows_per_step: int) -> Plan:
    """Every row --num_epochs times, from `progress` on: the last step is filled up with blank rows.

    A position behind the end of --num_epochs or --max_steps is the end: `total_steps` is never below `progress.step`.
    Raises UserError if the stages do not fit into the steps that there are.
    """
    end_row = num_rows * config.num_epochs
    num_left = math.ceil(max(0, end_row - progress.num_rows_seen) / rows_per_step)
    if config.max_steps is not None:
        num_left = min(num_left, max(0, config.max_steps - progress.step))
    total_steps = progress.step + num_left
    return Plan(num_rows, end_row, rows_per_step, total_steps, resolve(stages_of(config), total_steps))
