"""Staged schedules: what the words of --stages mean, which are refused, and where each stage lies in a run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.stages import ResolvedStage, Stage, parse_stages, resolve, stage_at
from tokenizer_tools.command import UserError

RUN = Stage(
    train="all",
    steps=None,
    lr=3e-4,
    embeds_lr=None,
    warmup_steps=None,
    lr_schedule="cosine",
    lr_floor=0.1,
    lr_decay_share=0.2,
)
THREE = ["new_rows,steps=200,lr=1e-3,warmup_steps=20", "embeds,steps=1000,lr=5e-4", "all,lr=2e-4,optimizer=reset"]


def resolved(*texts: str, total_steps: int = 1000, run: Stage = RUN) -> list[ResolvedStage]:
    return resolve(parse_stages(texts, run), total_steps)


def test_without_stages_the_run_is_one() -> None:
    (stage,) = resolved(total_steps=80, run=replace(RUN, train="embeds", lr=1e-3, lr_schedule="wsd"))
    assert (stage.train, stage.first_step, stage.num_steps, stage.warmup_steps) == ("embeds", 0, 80, 2)
    assert (stage.lr, stage.embeds_lr, stage.schedule.name, stage.carries_optimizer) == (1e-3, 1e-3, "wsd", False)


def test_what_a_stage_says_and_what_it_leaves_to_the_run() -> None:
    run = replace(RUN, warmup_steps=7, lr_schedule="linear", lr_floor=0.3, lr_decay_share=0.4)
    first, second, third = parse_stages(THREE, run)
    assert first == replace(run, train="new_rows", steps=200, lr=1e-3, embeds_lr=1e-3, warmup_steps=20)
    assert second == replace(run, train="embeds", steps=1000, lr=5e-4, embeds_lr=5e-4)
    assert third == replace(run, train="all", lr=2e-4, optimizer="reset")
    (other,) = parse_stages(["lora,steps=3,embeds_lr=1e-5,lr_schedule=wsd,warmup_steps=0"], run)
    assert other == replace(run, train="lora", steps=3, embeds_lr=1e-5, lr_schedule="wsd", warmup_steps=0)


def test_stages_lie_one_behind_the_other_and_the_last_takes_the_rest() -> None:
    stages = resolved(*THREE, total_steps=5000)
    assert [(s.first_step, s.num_steps, s.end_step) for s in stages] == [
        (0, 200, 200),
        (200, 1000, 1200),
        (1200, 3800, 5000),
    ]
    assert [s.warmup_steps for s in stages] == [20, 25, 95]
    assert [stage_at(stages, step).train for step in (0, 199, 200, 1199, 1200, 4999, 5000, 9999)] == [
        *("new_rows", "new_rows", "embeds", "embeds", "all", "all", "all", "all")
    ]


def test_a_last_stage_with_steps_ends_the_run_early() -> None:
    assert [s.end_step for s in resolved("embeds,steps=10", "all,steps=20", total_steps=1000)] == [10, 30]


def test_each_stage_has_a_schedule_of_its_own() -> None:
    first, second, _ = resolved(*THREE, total_steps=5000)
    assert (first.lr_at(0), first.lr_at(19)) == (1e-3 / 20, 1e-3)
    assert first.lr_at(199) == first.lr_at(10**6) == pytest.approx(1e-4)
    assert second.lr_at(200) == pytest.approx(5e-4 / 25)
    assert (second.lr_at(224), second.lr_at(1199)) == (5e-4, pytest.approx(5e-5))


def test_embeddings_follow_the_same_curve_to_a_peak_of_their_own() -> None:
    (stage,) = resolved("all,lr=2e-4", run=replace(RUN, embeds_lr=8e-4))
    assert (stage.lr, stage.embeds_lr) == (2e-4, 8e-4)
    for step in (0, 24, 500, 999):
        assert stage.embeds_lr_at(step) == pytest.approx(4 * stage.lr_at(step))


@pytest.mark.parametrize("train", ["embeds", "new_rows"])
@pytest.mark.parametrize(
    ("settings", "embeds_lr", "expected"),
    [("", None, 3e-4), ("", 8e-4, 8e-4), (",lr=5e-5", 8e-4, 5e-5), (",embeds_lr=5e-5", 8e-4, 5e-5)],
)
def test_where_only_embeddings_train_there_is_one_learning_rate(
    train: str, settings: str, embeds_lr: float | None, expected: float
) -> None:
    (stage,) = resolved(train + settings, run=replace(RUN, embeds_lr=embeds_lr))
    assert stage.lr == stage.embeds_lr == expected


@pytest.mark.parametrize(
    ("before", "stage", "carries"),
    [
        ("new_rows", "embeds", True),
        ("new_rows", "all", True),
        ("embeds", "all", True),
        ("embeds", "embeds", True),
        ("all", "all", True),
        ("lora", "lora", True),
        ("all", "embeds", False),
        ("new_rows", "new_rows", False),
        ("embeds", "new_rows", False),
        ("embeds", "lora", False),
        ("lora", "all", False),
        ("all", "embeds,optimizer=carry", True),
        ("embeds", "all,optimizer=carry", True),
        ("embeds", "all,optimizer=reset", False),
        ("lora", "lora,optimizer=reset", False),
    ],
)
def test_which_stage_goes_on_with_the_optimizer_of_the_one_before(before: str, stage: str, carries: bool) -> None:
    first, second = resolved(f"{before},steps=1", stage)
    assert (first.carries_optimizer, second.carries_optimizer) == (False, carries)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["everything"], "--stages everything: the first word says what trains, one of all, embeds, new_rows, lora"),
        (["steps=20,all"], "the first word says what trains"),
        (["embeds,"], "'' is no setting; use KEY=VALUE with one of steps, lr, embeds_lr, warmup_steps, lr_schedule"),
        (["all, lr=1e-4"], "' lr=1e-4' is no setting; use KEY=VALUE with one of .* and no blanks"),
        (["all,rate=1"], "'rate=1' is no setting"),
        (["all,lr=1,lr=2"], "--stages all,lr=1,lr=2: lr is set twice; set it once"),
        (["all,steps=0"], "steps=0 is not a whole number of at least 1"),
        (["all,steps=1e3"], "steps=1e3 is not a whole number"),
        (["all,steps"], "steps= is not a whole number"),
        (["all,lr=0"], "lr=0 is not a positive number, such as 3e-4"),
        (["all,lr=nan"], "lr=nan is not a positive number"),
        (["all,embeds_lr=inf"], "embeds_lr=inf is not a positive number"),
        (["all,warmup_steps=-1"], "warmup_steps=-1 is not a whole number of at least 0"),
        (["all,lr_schedule=cos"], "lr_schedule=cos is not one of cosine, wsd, linear, constant"),
        (["embeds,steps=1", "all,optimizer=keep"], "optimizer=keep is not one of carry, reset"),
        (["embeds,lr=1e-3,embeds_lr=1e-3"], "lr and embeds_lr are both set, but embeds trains embeddings alone"),
        (["embeds", "all"], "--stages embeds: has no steps=; only the last stage may take all that are left"),
        (["all,optimizer=carry"], "optimizer=carry, but no stage is before the first; use optimizer=reset"),
        (
            ["embeds,steps=1", "new_rows,optimizer=carry"],
            "moments of old rows would go on moving them; use optimizer=res",
        ),
        (["embeds,steps=1", "lora,optimizer=carry"], "a LoRA stage and another one share no parameters"),
        (["lora,steps=1", "all,optimizer=carry"], "a LoRA stage and another one share no parameters"),
    ],
)
def test_faults_are_named(texts: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_stages(texts, RUN)


def test_all_faults_come_in_one_line() -> None:
    with pytest.raises(UserError) as caught:
        parse_stages(["embed", "all,lr=x,steps=0", "embeds", "all"], RUN)
    problems = str(caught.value).split("; --stages ")
    assert [problem.split(":")[0] for problem in problems] == [
        *("--stages embed", "all,lr=x,steps=0", "all,lr=x,steps=0", "embeds")
    ]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("texts", "total_steps", "message"),
    [
        (
            ["embeds,steps=900", "all,steps=200"],
            1000,
            "the run has 1,000 steps, 100 of them left for stage 2 .all., whi",
        ),
        (["embeds,steps=900", "all,steps=200"], 1000, "which needs 200; give the stages fewer steps"),
        (["embeds,steps=1000", "all"], 1000, "1,000 steps, 0 of them left for stage 2 .all., which takes what is left"),
        (["embeds,steps=1001", "all"], 1000, "1,000 of them left for stage 1 .embeds., which needs 1,001"),
        (
            ["embeds,steps=9,warmup_steps=10", "all"],
            99,
            "--warmup_steps 10: stage 1 .embeds. has only 9 steps; warm up",
        ),
        (["all,warmup_steps=10"], 9, "--warmup_steps 10: the run has only 9 steps; warm up for fewer"),
    ],
)
def test_stages_that_do_not_fit_the_run_are_refused(texts: list[str], total_steps: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolved(*texts, total_steps=total_steps)


@given(
    steps=st.lists(st.integers(1, 50), min_size=0, max_size=4),
    total=st.integers(1, 200),
    last=st.one_of(st.none(), st.integers(1, 50)),
)
def test_stages_tile_the_run_or_are_refused(steps: list[int], total: int, last: int | None) -> None:
    texts = [*(f"embeds,steps={num}" for num in steps), "all" if last is None else f"all,steps={last}"]
    if sum(steps) + (last or 1) > total:
        with pytest.raises(UserError):
            resolved(*texts, total_steps=total)
        return
    stages = resolved(*texts, total_steps=total)
    assert [s.num_steps for s in stages] == [*steps, last or total - sum(steps)]
    covered = [step for stage in stages for step in range(stage.first_step, stage.end_step)]
    assert covered == list(range(stages[-1].end_step))
    for step in covered:
        stage = stage_at(stages, step)
        assert stage.first_step <= step < stage.end_step
        assert 0 < stage.lr_at(step) <= stage.lr
