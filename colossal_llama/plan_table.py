"""What a run is going to do, before its first step: its data and stages come in, lines of text go out."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from colossal_llama.stages import ResolvedStage

if TYPE_CHECKING:
    from rich.table import Table

WIDTH_CHARACTERS = 120
SECONDS_PER_HOUR = 3600


@dataclass(frozen=True)
class RunData:
    """What there is to read. Tokens are those of one epoch: all but padding, and those with a label.

    The first token of a row is never predicted, so what bears loss may be one token a row less than the labels.
    """

    num_rows: int
    num_epochs: int
    rows_per_step: int
    row_length: int
    num_tokens: int
    num_loss_tokens: int
    num_rows_seen: int = 0
    """Rows of the steps that are done, which may have been of another size."""


def plan_text(
    stages: Sequence[ResolvedStage], data: RunData, steps_done: int = 0, seconds_per_step: float | None = None
) -> str:
    """Two tables and a line of what is left to do; hours are named where a step has been measured. No last break."""
    total_steps = stages[-1].end_step
    num_left = max(0, total_steps - steps_done)
    left = f"{num_left:,} of {total_steps:,} steps to do"
    if seconds_per_step is not None:
        left += f": {num_left * seconds_per_step / SECONDS_PER_HOUR:,.3g} hours at {seconds_per_step:.3g} s a step"
    return "\n".join([*_lines(_data_table(total_steps, num_left, data)), *_lines(_stage_table(stages)), left])


def _data_table(total_steps: int, num_left: int, data: RunData) -> Table:
    """Steps, rows, tokens that bear loss, all tokens, and positions, which is what is computed, padding included."""
    from rich.table import Table

    table = Table(box=None)
    table.add_column("")
    for name in ("steps", "rows", "loss tokens", "tokens", "positions"):
        table.add_column(name, justify="right")
    read = min(data.num_rows_seen + num_left * data.rows_per_step, data.num_rows * data.num_epochs)
    for name, num_steps, num_rows in (
        ("a step", 1, data.rows_per_step),
        ("an epoch", math.ceil(data.num_rows / data.rows_per_step), data.num_rows),
        (f"the run ({read / data.num_rows:.3g} epochs)", total_steps, read),
    ):
        of_each = (data.num_loss_tokens, data.num_tokens, data.num_rows * data.row_length)
        counts = (num_steps, num_rows, *(round(number * num_rows / data.num_rows) for number in of_each))
        table.add_row(name, *(f"{count:,}" for count in counts))
    return table


def _stage_table(stages: Sequence[ResolvedStage]) -> Table:
    """Steps are numbered from 1 here, as log lines have them."""
    from rich.table import Table

    table = Table(box=None)
    for name in ("stage", "trains", "steps", "warm-up", "lr", "embeddings' lr", "schedule", "optimizer"):
        table.add_column(name)
    for index, stage in enumerate(stages):
        last = stage.end_step - 1
        lr = f"{stage.lr:.2e} -> {stage.lr_at(last):.2e}"
        embeds_lr = f"{stage.embeds_lr:.2e} -> {stage.embeds_lr_at(last):.2e}"
        table.add_row(
            str(index + 1),
            stage.train,
            f"{stage.first_step + 1:,} - {stage.end_step:,}",
            f"{stage.warmup_steps:,}",
            lr,
            embeds_lr if embeds_lr != lr else "the same",
            stage.schedule.name,
            "carried on" if stage.carries_optimizer else "fresh",
        )
    return table


def _lines(table: Table) -> list[str]:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=WIDTH_CHARACTERS, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]
