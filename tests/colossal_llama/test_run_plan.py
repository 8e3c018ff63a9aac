"""Which rows and steps are left of a run that goes on otherwise than it began."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.batches import Shape
from colossal_llama.config import TrainConfig
from colossal_llama.progress import Progress
from colossal_llama.run_plan import Plan, make_plan
from tokenizer_tools.command import UserError


def planned(progress: Progress, num_rows: int, rows_per_step: int, **flags: Any) -> Plan:
    config = TrainConfig(pretrained=Path("m"), dataset=[Path("d")], **{"warmup_steps": 0, **flags})
    return make_plan(config, progress, num_rows, rows_per_step)


def train(plan: Plan, progress: Progress, shape: Shape, num_steps: int | None) -> tuple[list[int], Progress]:
    """The numbers of the rows that so many steps, or all that are left, read over all ranks, without blank rows."""
    rows: list[int] = []
    while progress.step < plan.total_steps and num_steps != 0:
        for rank in range(shape.dp_size):
            numbers = replace(shape, dp_rank=rank).row_numbers(progress.num_rows_seen)
            rows += [number for one in numbers for number in one if number < plan.end_row]
        progress = plan.after_step(progress)
        num_steps = None if num_steps is None else num_steps - 1
    return rows, progress


shapes = st.builds(Shape, st.integers(1, 5), st.integers(1, 3), st.integers(1, 4), st.just(0))
legs = st.lists(st.tuples(shapes, st.integers(1, 4), st.integers(0, 6)), max_size=4)
"""(batch, --num_epochs, steps until it is stopped) of each time that a run is stopped and goes on."""


@given(st.integers(1, 40), legs, shapes, st.integers(1, 4))
def test_every_row_that_is_left_comes_once_whatever_the_batch_and_the_epochs_were_before(
    num_rows: int, stopped: list[tuple[Shape, int, int]], last: Shape, num_epochs: int
) -> None:
    progress, rows = Progress(), []
    for shape, epochs, num_steps in stopped:
        plan = planned(progress, num_rows, shape.rows_per_step, num_epochs=epochs)
        more, progress = train(plan, progress, shape, num_steps)
        rows += more
    before = len(rows)
    plan = planned(progress, num_rows, last.rows_per_step, num_epochs=num_epochs)
    more, progress = train(plan, progress, last, None)
    assert sorted(rows + more) == list(range(max(before, num_rows * num_epochs)))
    assert progress.num_rows_seen == max(before, num_rows * num_epochs)
    assert progress.epoch == progress.num_rows_seen // num_rows


@given(st.integers(1, 40), st.integers(0, 90), st.integers(1, 9), st.integers(1, 100))
def test_max_steps_is_never_passed_and_never_behind_the_position(
    num_rows: int, num_rows_seen: int, rows_per_step: int, max_steps: int
) -> None:
    progress = Progress(step=11, num_rows_seen=num_rows_seen)
    total = planned(progress, num_rows, rows_per_step, num_epochs=2, max_steps=max_steps).total_steps
    without = planned(progress, num_rows, rows_per_step, num_epochs=2).total_steps
    assert total == max(11, min(max_steps, without))


FINISHED = Progress(step=25, epoch=1, num_rows_seen=100)


def test_a_finished_run_goes_on_with_more_epochs() -> None:
    assert planned(FINISHED, 100, 4, num_epochs=3).total_steps == 75
    assert planned(FINISHED, 100, 10, num_epochs=2).total_steps == 35  # and another batch
    assert planned(FINISHED, 100, 4, num_epochs=3, max_steps=30).total_steps == 30


@pytest.mark.parametrize("flags", [{"num_epochs": 1}, {"num_epochs": 3, "max_steps": 20}])
def test_behind_the_end_there_is_nothing_left(flags: dict[str, int]) -> None:
    assert planned(replace(FINISHED, epoch=2, num_rows_seen=201), 100, 4, **flags).total_steps == 25


def test_the_rate_is_that_of_a_run_of_the_new_length() -> None:
    """Not that of the old one, and not that of a run that begins here."""
    plan = planned(FINISHED, 100, 4, num_epochs=4, lr=1.0, lr_schedule="linear", lr_floor=0.0)
    assert plan.schedule_after(25)["next_lr"] == pytest.approx(1 - 25 / 99)


STAGES = ["embeds,steps=20", "all"]


@pytest.mark.parametrize(
    ("position", "stages", "goes_on"),
    [
        (Progress(10, stage=0, trained="embeds"), STAGES, True),
        (Progress(20, stage=0, trained="embeds"), STAGES, True),  # the next stage begins
        (Progress(10, stage=0, trained="embeds"), ["embeds,steps=15", "all"], True),
        (Progress(20, stage=0, trained="embeds"), ["embeds,steps=24", "all"], True),  # longer than it was
        (Progress(24, stage=1, trained="all"), ["embeds,steps=15", "all"], True),
        (Progress(18, stage=0, trained="embeds"), ["embeds,steps=15", "all"], False),  # over before it is over
        (Progress(22, stage=1, trained="all"), ["embeds,steps=24", "all"], False),  # back to the first
        (Progress(10, stage=0, trained="embeds"), ["all"], False),
        (Progress(24, stage=1, trained="all"), ["embeds,steps=20", "embeds"], False),
    ],
)
def test_a_stage_in_progress_is_not_exchanged(position: Progress, stages: list[str], goes_on: bool) -> None:
    position = replace(position, num_rows_seen=4 * position.step)
    plan = planned(position, 100, 4, num_epochs=2, stages=stages)
    if goes_on:
        plan.check_goes_on(position)
    else:
        with pytest.raises(UserError, match="keep the same --train, --stages and --lora_rank to go on"):
            plan.check_goes_on(position)
