"""The flags of a rehearsal fit together wherever those of the real run do, and keep every switch of theirs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from colossal_llama.checks import check
from colossal_llama.config import TrainConfig
from colossal_llama.division import check_world, dp_size, model_parallel_size
from colossal_llama.progress import Progress
from colossal_llama.rehearsal.flags import WHY, Layout, changed, kill_after, num_steps, rehearsed, small_layout
from colossal_llama.run_plan import make_plan
from tests.conftest import argv_of
from tokenizer_tools.command import UserError, parse_config

HERE = Path(__file__).parent  # directories that are there: only the flags count


def config_of(**flags: Any) -> TrainConfig:
    return parse_config(TrainConfig, argv_of(pretrained=HERE, dataset=HERE, save_dir=HERE / "none", **flags))


def small(real: TrainConfig, row_length: int = 512, num_rows: int = 1000, most: int = 4) -> TrainConfig:
    return rehearsed(real, small_layout(real, most), row_length, num_rows, HERE, HERE / "rehearsed")


SIZES = st.sampled_from([1, 2, 4, 8])
WITH_STEPS = st.sampled_from(
    ["new_rows,steps=200,lr=1e-3", "embeds,steps=1000,warmup_steps=50", "all,warmup_steps=0,steps=9", "all,steps=400"]
)
STAGES = st.tuples(st.lists(WITH_STEPS, max_size=3), st.sampled_from(["all,warmup_steps=70", "embeds", "all,steps=9"]))
TRAINED: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.sampled_from([{}, {"freeze_non_embeds_params": True}, {"lora_rank": 8}, {"train": "new_rows"}]),
    STAGES.map(lambda words: {"stages": [*words[0], words[1]]}),
    STAGES.map(lambda words: {"stages": [*words[0], words[1]]}),
)
REAL = st.fixed_dictionaries(
    {
        "plugin": st.sampled_from(["gemini", "gemini_auto", "zero2", "zero2_cpu", "ddp", *["3d"] * 5]),
        "mixed_precision": st.sampled_from(["bf16", "bf16", "fp16", "fp32"]),
        "zero": st.sampled_from([0, 1, 2]),
        "sp_mode": st.sampled_from(["all_to_all", "split_gather", "ring"]),
        "micro_batch_size": st.integers(1, 64),
        "accumulation_steps": st.integers(1, 64),
        "num_epochs": st.integers(1, 3),
        "keep_checkpoints": st.integers(0, 3),
        "document_mask": st.booleans(),
    }
)
MAYBE = st.fixed_dictionaries(
    {},
    optional={
        "warmup_steps": st.integers(0, 500),
        "global_batch_size": st.integers(1, 4096),
        "max_steps": st.integers(1, 9999),
        "embeds_lr": st.just(1e-4),
    },
)


@given(REAL, TRAINED, MAYBE, SIZES, SIZES, SIZES, st.integers(1, 3000), st.integers(4, 8))
def test_what_fits_together_still_does_when_it_is_small(
    plain: dict[str, Any],
    trained: dict[str, Any],
    maybe: dict[str, Any],
    tp: int,
    pp: int,
    sp: int,
    num_rows: int,
    most: int,
) -> None:
    plain = {name: value for name, value in plain.items() if value is not False}
    sizes = {"tp": tp, "pp": pp, "sp": sp} if plain["plugin"] == "3d" else {}
    real = config_of(**plain, **trained, **maybe, **sizes)
    try:
        check(real)
    except UserError:
        assume(False)
    layout = small_layout(real, most)
    few = rehearsed(real, layout, 512, num_rows, HERE, HERE / "rehearsed")
    check(few)
    check_world(few, layout.world_size, 8 * 1000, 512)
    assert layout.world_size <= most
    assert dp_size(few, layout.world_size) == layout.dp_size in (1, 2)
    ranks = model_parallel_size(few)
    averaged = layout.world_size // (few.tp * few.pp)
    by_ddp = few.plugin == "3d" and few.zero == 0
    assert not by_ddp or averaged <= 2, "DDP over more ranks does not resume bit for bit"
    has_room = 2 * ranks <= most and not (by_ddp and averaged // layout.dp_size > 1)
    assert (layout.dp_size == 2) == has_room, "a second group wherever it has room"
    rows_per_step = few.global_batch_size or few.micro_batch_size * few.accumulation_steps * layout.dp_size
    plan = make_plan(few, Progress(), num_rows, rows_per_step)
    assert [stage.num_steps for stage in plan.stages] == [3] * max(1, len(real.stages))
    assert plan.total_steps == num_steps(few)
    assert plan.stages[-1].first_step == kill_after(few), "the checkpoint of the kill lies inside the last stage"
    assert [stage.train for stage in plan.stages] == [stage.train for stage in make_plan_of(real).stages]
    assert few.accumulation_steps > 1 or real.accumulation_steps == 1, "accumulation stays accumulation"


def make_plan_of(real: TrainConfig) -> Any:
    """The stages of the real run, where it is long enough for them."""
    return make_plan(dataclasses.replace(real, max_steps=None, warmup_steps=None), Progress(), 10**9, 1)


@given(REAL, st.integers(1, 4096))
def test_every_flag_without_a_reason_stays_as_it_is(plain: dict[str, Any], row_length: int) -> None:
    real = config_of(**{name: value for name, value in plain.items() if value is not False}, lr=0.007, seed=3)
    few = small(real, row_length)
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    assert {name for name in names if getattr(real, name) != getattr(few, name)} <= WHY.keys() <= set(names)
    assert len(list(changed(real, few))) == sum(getattr(real, name) != getattr(few, name) for name in names)
    assert few.micro_batch_size == 1 or few.micro_batch_size * row_length <= 4096


def test_a_cluster_becomes_a_few_processes() -> None:
    assert small_layout(config_of(plugin="zero2"), 4) == Layout(1, 1, 1, dp_size=2, world_size=2)
    three_d = {"plugin": "3d", "zero": 0}
    assert small_layout(config_of(**three_d, tp=2), 4) == Layout(2, 1, 1, dp_size=2, world_size=4)
    assert small_layout(config_of(**three_d, tp=2, pp=2), 4) == Layout(2, 2, 1, dp_size=1, world_size=4)
    assert small_layout(config_of(**three_d, tp=8, pp=4), 8) == Layout(2, 4, 1, dp_size=1, world_size=8)
    assert small_layout(config_of(**three_d, tp=6), 4) == Layout(3, 1, 1, dp_size=1, world_size=3)
    assert small_layout(config_of(plugin="3d", zero=0, sp=4), 8) == Layout(1, 1, 2, dp_size=1, world_size=2)
    assert small_layout(config_of(plugin="3d", zero=1, sp=4), 8) == Layout(1, 1, 4, dp_size=2, world_size=8)
    ring = config_of(**three_d, tp=8, sp=8, sp_mode="ring")
    assert small_layout(ring, 4) == Layout(4, 1, 4, dp_size=1, world_size=4)


def test_words_of_the_real_command_line_become_these() -> None:
    real = config_of(
        plugin="3d",
        pp=4,
        zero=1,
        mixed_precision="fp16",
        micro_batch_size=4,
        accumulation_steps=8,
        stages=["new_rows,steps=200,lr=1e-3,warmup_steps=0", "all,warmup_steps=100,steps=5000"],
        warmup_steps=2000,
        wandb_project="ours",
        time_limit="4h",
        overwrite=True,
        tensorboard_dir=HERE / "curves",
    )
    few = small(real, row_length=4096, num_rows=5)
    assert few.stages == ["new_rows,steps=3,lr=1e-3,warmup_steps=0", "all,warmup_steps=1,steps=3"]
    assert (few.micro_batch_size, few.accumulation_steps, few.pp) == (1, 4, 4), "a micro-batch for each pipeline stage"
    assert (few.mixed_precision, few.warmup_steps, few.max_steps, few.num_epochs) == ("bf16", 1, 6, 5)
    assert (few.wandb_project, few.time_limit, few.overwrite, few.tensorboard_dir) == (None, None, False, None)
    said = dict(changed(real, few))
    assert said["--mixed_precision fp16 -> bf16"] == "fp16 cannot be right on a CPU"
    assert "--wandb_project ours -> none" in said
    assert not any("overwrite" in what or "rehearsed" in what for what in said)


def test_a_global_batch_is_a_few_rows_of_each_rank_and_of_each_pipeline_stage() -> None:
    assert small(config_of(plugin="zero2", global_batch_size=1024)).global_batch_size == 2 * 2
    assert small(config_of(plugin="zero2", global_batch_size=3)).global_batch_size == 3
    assert small(config_of(plugin="3d", pp=4, zero=1, global_batch_size=64)).global_batch_size == 4


def test_a_rehearsal_is_no_flag_of_the_run_that_is_written_down() -> None:
    real = config_of(rehearse=True)
    assert "rehearse" not in real.as_json()
    assert not small(real).rehearse


@pytest.mark.parametrize("warmup", [None, 0, 1])
def test_a_warm_up_that_is_no_warm_up_stays_one(warmup: int | None) -> None:
    assert small(dataclasses.replace(config_of(), warmup_steps=warmup)).warmup_steps == warmup
