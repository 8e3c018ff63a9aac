"""The plan that is printed before the first step, read back word by word."""

from __future__ import annotations

from dataclasses import replace

from colossal_llama.plan_table import RunData, plan_text
from colossal_llama.stages import Stage, parse_stages, resolve

DATA = RunData(
    num_rows=1000, num_epochs=2, rows_per_step=30, row_length=512, num_tokens=500_000, num_loss_tokens=400_000
)
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


def cells(text: str) -> list[list[str]]:
    """The words of every line; columns are at least two blanks apart."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]


def test_data_of_a_step_an_epoch_and_the_run() -> None:
    header, step, epoch, run, *_ = cells(plan_text(resolve([RUN], 67), DATA))
    assert header == ["steps", "rows", "loss tokens", "tokens", "positions"]
    assert step == ["a step", "1", "30", "12,000", "15,000", "15,360"]
    assert epoch == ["an epoch", "34", "1,000", "400,000", "500,000", "512,000"]
    assert run == ["the run (2 epochs)", "67", "2,000", "800,000", "1,000,000", "1,024,000"]


def test_a_run_that_ends_early_reads_fewer_rows() -> None:
    _, _, _, run, *_ = cells(plan_text(resolve([RUN], 10), DATA))
    assert run == ["the run (0.3 epochs)", "10", "300", "120,000", "150,000", "153,600"]


def test_stages() -> None:
    texts = ["new_rows,steps=200,lr=1e-3,warmup_steps=20", "embeds,steps=1000,lr_schedule=wsd", "all,lr=1e-4"]
    stages = resolve(parse_stages(texts, replace(RUN, embeds_lr=5e-4)), 12_345)
    header, *lines = cells(plan_text(stages, DATA))[4:-1]
    assert header == ["stage", "trains", "steps", "warm-up", "lr", "embeddings' lr", "schedule", "optimizer"]
    assert lines == [
        ["1", "new_rows", "1 - 200", "20", "1.00e-03 -> 1.00e-04", "the same", "cosine", "fresh"],
        ["2", "embeds", "201 - 1,200", "25", "5.00e-04 -> 5.00e-05", "the same", "wsd", "carried on"],
        ["3", "all", "1,201 - 12,345", "278", "1.00e-04 -> 1.00e-05", "5.00e-04 -> 5.00e-05", "cosine", "carried on"],
    ]
    assert all(len(line) <= 120 for line in plan_text(stages, DATA).splitlines())


def test_what_is_left_and_how_long_it_takes() -> None:
    stages = resolve([RUN], 1000)
    assert plan_text(stages, DATA).splitlines()[-1] == "1,000 of 1,000 steps to do"
    assert plan_text(stages, DATA, steps_done=600, seconds_per_step=27.04).splitlines()[-1] == (
        "400 of 1,000 steps to do: 3 hours at 27 s a step"
    )
    assert plan_text(stages, DATA, steps_done=1001).splitlines()[-1] == "0 of 1,000 steps to do"
