"""The schedules against their formulas written out, and against those of torch and transformers."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR
from transformers import get_wsd_schedule

from colossal_llama.schedule import Schedule, ScheduleName, default_warmup_steps

NAMES = get_args(ScheduleName)
TOTAL, WARMUP, FLOOR = 12, 3, 0.1
WARM = [1 / 3, 2 / 3, 1.0]
FORMULAS = {
    "cosine": [*WARM, *(0.1 + 0.9 * (1 + math.cos(math.pi * k / 8)) / 2 for k in range(9))],
    "linear": [*WARM, *(1 - 0.9 * k / 8 for k in range(9))],
    "constant": [*WARM, *[1.0] * 9],
    "wsd": [*WARM, *[1.0] * 5, 1.0 - 0.9 / 4, 1 - 0.9 / 2, 1 - 0.9 * 3 / 4, 0.1],  # a third of 12 steps
}


def shares(schedule: Schedule, num_steps: int) -> list[float]:
    return [schedule.share_at(step) for step in range(num_steps)]


@pytest.mark.parametrize("name", NAMES)
def test_a_schedule_is_its_formula(name: ScheduleName) -> None:
    schedule = Schedule(name, TOTAL, WARMUP, FLOOR, decay_share=1 / 3)
    assert shares(schedule, TOTAL) == pytest.approx(FORMULAS[name], rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_peak_and_floor_are_exact_and_kept_beyond_the_end(name: ScheduleName) -> None:
    schedule = Schedule(name, TOTAL, WARMUP, FLOOR)
    floor = 1.0 if name == "constant" else FLOOR
    assert schedule.share_at(0) == 1 / 3
    assert schedule.share_at(WARMUP - 1) == schedule.share_at(WARMUP) == 1.0
    assert schedule.share_at(TOTAL - 1) == schedule.share_at(TOTAL) == schedule.share_at(10**6) == floor


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("num_steps", "warmup_steps"), [(1, 0), (1, 1), (2, 1), (5, 5), (5, 4)])
def test_short_runs_reach_the_peak(name: ScheduleName, num_steps: int, warmup_steps: int) -> None:
    curve = shares(Schedule(name, num_steps, warmup_steps), num_steps)
    assert max(curve) == curve[max(0, warmup_steps - 1)] == 1.0


run_lengths = st.integers(1, 200).flatmap(lambda total: st.tuples(st.just(total), st.integers(0, total)))


@given(name=st.sampled_from(NAMES), lengths=run_lengths, floor=st.floats(0, 1), decay_share=st.floats(0.001, 1))
@example(name="wsd", lengths=(11, 0), floor=0.1, decay_share=0.3)
def test_rises_only_in_warm_up_and_never_leaves_its_bounds(
    name: ScheduleName, lengths: tuple[int, int], floor: float, decay_share: float
) -> None:
    total, warmup = lengths
    curve = shares(Schedule(name, total, warmup, floor, decay_share), total + 20)
    assert all(before < after for before, after in zip(curve[:warmup], curve[1:warmup], strict=False))
    later = curve[max(0, warmup - 1) :]
    assert all(before >= after for before, after in zip(later, later[1:], strict=False))
    assert later[0] == curve[warmup] == 1.0
    assert all(floor <= share <= 1 for share in later)
    assert all(0 < share <= 1 for share in curve[:warmup])


@given(name=st.sampled_from(NAMES), total=st.integers(20, 400), decay_share=st.floats(0.1, 1), place=st.floats(0, 1))
def test_one_step_more_or_less_changes_little(name: ScheduleName, total: int, decay_share: float, place: float) -> None:
    """The same point of the way has nearly the same learning rate: no schedule jumps where a length is rounded."""
    warmup = total // 10
    step = warmup + int(place * (total - warmup))
    before = Schedule(name, total, warmup, 0.0, decay_share).share_at(step)
    after = Schedule(name, total + 1, warmup, 0.0, decay_share).share_at(step)
    steepest = (
        math.pi / 2 / (total - 1 - warmup) if name == "cosine" else 1 / min(decay_share * total, total - 1 - warmup)
    )
    assert abs(after - before) <= 1.0001 * steepest


@pytest.mark.filterwarnings("ignore:The epoch parameter")  # torch calls itself so
@pytest.mark.parametrize("name", ["cosine", "linear"])
@settings(deadline=None)
@given(warmup=st.integers(2, 20), later=st.integers(2, 60), floor=st.floats(0.01, 0.9))
def test_torch_schedules_agree(name: ScheduleName, warmup: int, later: int, floor: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rise = LinearLR(optimizer, start_factor=1 / warmup, end_factor=1.0, total_iters=warmup - 1)
    fall: LRScheduler
    if name == "cosine":
        fall = CosineAnnealingLR(optimizer, T_max=later - 1, eta_min=floor)
    else:
        fall = LinearLR(optimizer, start_factor=1.0, end_factor=floor, total_iters=later - 1)
    expected = _curve(optimizer, SequentialLR(optimizer, [rise, fall], [warmup]), warmup + later)
    assert shares(Schedule(name, warmup + later, warmup, floor), warmup + later) == pytest.approx(expected, rel=1e-9)


@settings(deadline=None)
@given(warmup=st.integers(1, 10), stable=st.integers(1, 20), decay=st.integers(2, 20), floor=st.floats(0.01, 0.9))
def test_transformers_wsd_agrees(warmup: int, stable: int, decay: int, floor: float) -> None:
    """Theirs rises from the floor and reaches it again one step behind the end: what falls is one step apart."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_wsd_schedule(
        optimizer, warmup, decay, num_stable_steps=stable, min_lr_ratio=floor, decay_type="linear"
    )
    total = warmup + stable + decay
    expected = _curve(optimizer, theirs, total + 1)[warmup + 1 :]
    ours = Schedule("wsd", total, warmup, floor, decay / total)
    assert shares(ours, total)[warmup:] == pytest.approx(expected, rel=1e-9)


def _curve(optimizer: torch.optim.Optimizer, scheduler: LRScheduler, num_steps: int) -> list[float]:
    curve = []
    for _ in range(num_steps):
        curve.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return curve


@pytest.mark.parametrize(("total", "warmup"), [(0, 0), (39, 0), (40, 1), (1000, 25), (1039, 25)])
def test_default_warm_up_is_a_fortieth(total: int, warmup: int) -> None:
    assert default_warmup_steps(total) == warmup
