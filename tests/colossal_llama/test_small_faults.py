"""Small faults that other tests would not see: what a verdict leads to, what is asked of the model, what is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from colossal_llama import engine, forecast, model, step
from colossal_llama.anomalies import MOST_IN_A_ROW, Anomalies
from colossal_llama.batch import Batch
from colossal_llama.batches import BatchReader, RowOrigin, Shape
from colossal_llama.checks import check
from colossal_llama.cluster import Layout
from colossal_llama.config import AnomalyPolicy, TrainConfig
from colossal_llama.guard import MEMORY, Guard, RunningLoss
from colossal_llama.lora import LoraSettings
from colossal_llama.loss import TokenScores
from colossal_llama.progress import Progress
from colossal_llama.run_plan import Plan
from colossal_llama.stages import Stage, resolve
from colossal_llama.start import Start, find_start
from data_tools import prepare_pretrain_dataset
from data_tools.bins import open_bins
from tests.colossal_llama.runs import stopped_copy
from tests.conftest import argv_of, read_evaluations, read_metrics, write_jsonl
from tokenizer_tools.command import UserError, parse_config

CPU = torch.device("cpu")
WHOLE = Stage("all", None, 1.0, None, 2, "linear", 0.0, 0.2)


def result_of(is_bad: bool, row_nats: list[float], row_tokens: list[float]) -> Any:
    loss = torch.tensor(math.nan if is_bad else 3.0)
    return SimpleNamespace(
        is_bad=torch.tensor(float(is_bad)),
        loss=loss,
        grad_norm=1.0,
        row_nats=torch.tensor(row_nats, dtype=torch.float64),
        row_tokens=torch.tensor(row_tokens, dtype=torch.float64),
    )


def anomalies_of(policy: AnomalyPolicy, num_rows: int = 1) -> tuple[Anomalies, list[dict[str, Any]]]:
    """Steps of `num_rows` rows each, and the lines of their journal."""
    lines: list[dict[str, Any]] = []
    reader = SimpleNamespace(
        rows_of_step=lambda first: list(range(first, first + num_rows)),
        origin=lambda number: RowOrigin(Path("bucket"), number, ["docs"], []),
    )
    journal = SimpleNamespace(append=lines.extend)
    return Anomalies(policy, journal, reader), lines  # type: ignore[arg-type]


def take(anomalies: Anomalies, verdicts: list[bool]) -> None:
    for number, is_bad in enumerate(verdicts):
        anomalies.take(number + 1, number, result_of(is_bad, [3.0], [1.0]))


def test_only_bad_steps_in_a_row_end_a_run() -> None:
    anomalies, lines = anomalies_of("skip")
    take(anomalies, [*[True] * (MOST_IN_A_ROW - 1), False] * 2)
    anomalies.read()
    assert len(lines) == 2 * (MOST_IN_A_ROW - 1)
    take(anomalies, [True] * MOST_IN_A_ROW)
    with pytest.raises(UserError, match=f"{MOST_IN_A_ROW} bad steps in a row"):
        anomalies.read()


def test_ignored_bad_steps_never_end_a_run(caplog: pytest.LogCaptureFixture) -> None:
    anomalies, lines = anomalies_of("ignore")
    take(anomalies, [True] * 2 * MOST_IN_A_ROW)
    anomalies.read()
    anomalies.read()
    assert [line["step"] for line in lines] == list(range(1, 2 * MOST_IN_A_ROW + 1)), "each is reported once"
    assert all("the step was trained on" in line for line in caplog.messages)


def test_a_skipped_step_is_said_to_be_skipped(caplog: pytest.LogCaptureFixture) -> None:
    anomalies, _ = anomalies_of("skip")
    take(anomalies, [True])
    anomalies.read()
    (line,) = caplog.messages
    assert "the weights were left as they were" in line


def test_stop_ends_a_run_at_the_very_step() -> None:
    anomalies, _ = anomalies_of("stop")
    take(anomalies, [False])
    with pytest.raises(UserError, match="step 1: loss nan"):
        take(anomalies, [True])


def test_rows_come_with_the_worst_first_and_those_without_labels_last(caplog: pytest.LogCaptureFixture) -> None:
    anomalies, lines = anomalies_of("skip", num_rows=5)
    anomalies.take(1, 10, result_of(True, [8.0, 0.0, math.nan, 9.0, 12.0], [8.0, 0.0, 4.0, 3.0, 2.0]))
    anomalies.read()
    rows = lines[0]["rows"]
    assert [row["number"] for row in rows] == [12, 14, 13, 10, 11]
    assert [row["loss"] for row in rows[1:]] == [6.0, 3.0, 1.0, 0.0]
    assert "row 13 (loss 3)" in caplog.text and "row 10 " not in caplog.text, "the log names the worst three"


LARGEST_SEED = 2**32 - 1
THREE_STAGES = ["--plugin", "3d", "--pp", "3", "--accumulation_steps", "3"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--seed", "0"],
        ["--seed", str(LARGEST_SEED)],
        ["--lr_floor", "1"],
        ["--lr_decay_share", "1"],
        ["--plugin", "3d", "--pp", "2", "--accumulation_steps", "2", "--train", "embeds"],
        [*THREE_STAGES, "--lr", "1e-3", "--embeds_lr", "1e-3"],
        [*THREE_STAGES, "--lr", "1e-3", "--embeds_lr", "1e-4", "--zero", "0"],
        ["--keep_checkpoints", "0"],
    ],
    ids=" ".join,
)
def test_the_last_lawful_value_is_lawful(flags: list[str], tmp_path: Path) -> None:
    check(parse_config(TrainConfig, ["--pretrained", str(tmp_path), "--dataset", str(tmp_path), *flags]))


def test_a_seed_beyond_numpys_is_refused(tmp_path: Path) -> None:
    seed = LARGEST_SEED + 1
    config = parse_config(TrainConfig, ["--pretrained", str(tmp_path), "--dataset", str(tmp_path), "--seed", str(seed)])
    with pytest.raises(UserError, match=f"--seed {seed}: must be a whole number from 0 to {LARGEST_SEED}"):
        check(config)


@pytest.mark.parametrize("bound", ["inf", "nan"])
def test_a_bound_that_never_warns_is_refused(bound: str, tmp_path: Path) -> None:
    flags = ["--eval_dataset", f"zh={tmp_path}", "--watch", f"zh={bound}"]
    config = parse_config(TrainConfig, ["--pretrained", str(tmp_path), "--dataset", str(tmp_path), *flags])
    with pytest.raises(UserError, match=f"--watch zh={bound}: must be NAME=BOUND"):
        check(config)


@pytest.mark.parametrize(("alpha", "expected"), [(None, 8.0), (4.0, 4.0)])
def test_alpha_is_twice_the_rank_unless_it_is_given(
    alpha: float | None, expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[LoraSettings] = []
    monkeypatch.setattr(model, "load_lora_model", lambda *arguments: given.append(arguments[-2]))
    config = TrainConfig(pretrained=Path("m"), dataset=[Path("d")], lora_rank=4, lora_alpha=alpha, plugin="zero2")
    run: Any = SimpleNamespace(config=config)
    stage: Any = SimpleNamespace(train="lora")
    engine._load(run, Start(Path("m"), None), stage)
    assert (given[0].rank, given[0].alpha, given[0].seed) == (4, expected, config.seed)


def test_no_gradient_of_an_old_row_is_counted_where_new_rows_train(tiny_model_dir: Path) -> None:
    base = model.load_model(tiny_model_dir, torch.float32, "sdpa", use_grad_checkpoint=False)
    num_old, rows, length = 300, 4, 64
    run: Any = SimpleNamespace(
        config=SimpleNamespace(mixed_precision="bf16", peak_tflops=None),
        plan=SimpleNamespace(rows_per_step=rows),
        row_length=length,
        num_old_rows=num_old,
        model_config=base.config,
        cluster=SimpleNamespace(world_size=1),
    )
    stages: list[Any] = [SimpleNamespace(train=train) for train in ("embeds", "new_rows")]
    all_rows, new_rows = (engine._cost(run, stage, base) for stage in stages)
    assert all_rows.positions == new_rows.positions == rows * length
    # the output head's product of a hidden state and a gradient: a multiplication and an addition an entry
    assert all_rows.flops - new_rows.flops == rows * length * 2 * num_old * base.config.hidden_size


@pytest.mark.parametrize("norm", [None, math.nan, math.inf, torch.tensor(math.nan), torch.tensor(math.inf)])
def test_a_norm_given_to_the_guard_is_judged_in_place_of_the_optimizers(norm: float | torch.Tensor | None) -> None:
    """ddp's optimizer knows no norm; that of one whose gradients overflowed in fp16 is None."""
    weight = torch.ones(3, requires_grad=True)
    weight.grad = torch.ones(3)
    optimizer = torch.optim.AdamW([weight], fused=True)
    given = norm if isinstance(norm, torch.Tensor) else None
    boosted = SimpleNamespace(optim=optimizer, get_grad_norm=lambda: 1.0 if given is not None else norm)
    guard = Guard(boosted, 0.0, True, CPU, RunningLoss())
    guard.judge(torch.tensor(3.0), given)
    optimizer.step()
    assert guard.verdict(torch.tensor(3.0)) == 1
    assert torch.equal(weight, torch.ones(3))


def test_the_schedule_of_a_checkpoint_is_that_of_its_next_step() -> None:
    stages = resolve([replace(WHOLE, train="embeds", steps=4), replace(WHOLE, lr=5.0, embeds_lr=7.0)], 10)
    plan = Plan(num_rows=40, end_row=40, rows_per_step=4, total_steps=10, stages=stages)
    for done in range(10):
        schedule, now = plan.schedule_after(done), stages[done >= 4]
        assert (schedule["next_lr"], schedule["next_embeds_lr"]) == (now.lr_at(done), now.embeds_lr_at(done))
        assert (schedule["stage"], schedule["stage_steps"]) == ((1, [4, 10]) if done >= 4 else (0, [0, 4]))


class Model(nn.Module):
    """Answers like a boosted model whose head was told its targets, and notes how it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[bool, bool]] = []

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        self.asked.append((self.training, torch.is_grad_enabled()))
        return SimpleNamespace(logits=torch.zeros(()))


def stepper_of(asked: nn.Module, param_groups: list[dict[str, Any]]) -> step.Stepper:
    scores = TokenScores(nats=torch.ones(1, 4), correct=torch.ones(1, 4))
    head = SimpleNamespace(expect=lambda targets: None, take=lambda: [scores])
    settings = step.StepSettings(1.0, False, "none", room_per_step=1, num_categories=1)
    booster, optimizer = SimpleNamespace(plugin=None), SimpleNamespace(param_groups=param_groups)
    return step.Stepper(booster, asked, optimizer, head, None, Layout(0, 1, 1), CPU, settings)  # type: ignore[arg-type]


def test_evaluation_asks_without_gradients_or_dropout_and_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that stays in evaluation mode has no dropout and, silently, no gradient checkpointing any more."""
    monkeypatch.setattr(step, "all_reduce_sum", lambda values: values)
    row = torch.arange(4)[None]
    batch = Batch(row, row, row, torch.zeros_like(row), torch.tensor([0, 4], dtype=torch.int32), torch.tensor([1]), [0])
    asked = Model()
    text: Any = SimpleNamespace(count=lambda ids, positions: (torch.ones_like(ids), torch.ones_like(ids)))
    stepper_of(asked, []).evaluate([batch, batch], 1, text)
    assert asked.asked == [(False, False)] * 2
    assert asked.training


@pytest.mark.parametrize(("threshold", "is_bad"), [(0.1, True), (1.0, False)])
def test_a_leap_of_the_loss_is_judged_before_the_weights_move(
    threshold: float, is_bad: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient norm, which is judged again inside the update, is finite here: only the loss tells."""
    monkeypatch.setattr(step, "all_reduce_sum", lambda values: values)
    row = torch.arange(4)[None]
    batch = Batch(row, row, row, torch.zeros_like(row), torch.tensor([0, 4], dtype=torch.int32), torch.tensor([1]), [0])
    asked = Model()
    asked.weight = nn.Parameter(torch.ones(()))
    optimizer: Any = torch.optim.AdamW(asked.parameters(), lr=0.1, weight_decay=0.0, fused=True)
    optimizer.get_grad_norm = lambda: 1.0
    stepper = stepper_of(asked, [])
    stepper.optimizer = optimizer
    stepper.booster.backward = lambda loss, _: (loss + asked.weight).backward()
    past = RunningLoss(weighted_sum=0.9, weight=0.9)  # a mean of 1; the step's four nats over three tokens are 1.33
    stepper.guard = Guard(optimizer, threshold, True, CPU, past)
    assert bool(stepper.train([batch], 0).is_bad) == is_bad
    assert (asked.weight.item() == 1.0) == is_bad


def test_embeddings_take_their_own_learning_rate() -> None:
    groups: list[dict[str, Any]] = [{"is_embedding": kind} for kind in (False, True, False)]
    stepper_of(Model(), groups).set_learning_rates(lr=0.5, embeds_lr=0.25)
    assert [group["lr"] for group in groups] == [0.5, 0.25, 0.5]


@pytest.mark.parametrize(("checkpointing", "factor"), [(False, 3), (True, 4)])
def test_a_step_is_forecast_as_three_passes_or_four(
    checkpointing: bool, factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, 100.0, 102.0])  # the second pass takes two seconds, from 100 to 102
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(forecast, "spelled_by", lambda run: None)
    run: Any = SimpleNamespace(
        plan=SimpleNamespace(total_steps=2),
        bins=SimpleNamespace(categories=["docs"]),
        config=SimpleNamespace(use_grad_checkpoint=checkpointing),
    )
    reader = SimpleNamespace(steps_from=lambda first: iter([["batch"]]))
    stepper = SimpleNamespace(evaluate=lambda *_: torch.zeros(1))
    here: Any = SimpleNamespace(reader=reader, stepper=stepper, progress=Progress(step=1))
    assert forecast.seconds_per_step(run, here) == pytest.approx(2.0 * factor)
    here.progress = Progress(step=2)
    assert forecast.seconds_per_step(run, here) is None, "the run has ended"


def test_a_checkpoint_knows_what_is_not_yet_logged(
    train: Callable[..., list[dict[str, Any]]], flags: dict[str, Any], tmp_path: Path
) -> None:
    """Tokens of a category and the row chain are taken when the metrics are flushed, so that comes first."""
    steps = train(1, tmp_path / "run", **flags, max_steps=3, save_interval=2, log_interval=100)
    for number in (2, 3):
        progress = json.loads((tmp_path / "run" / f"epoch-0_step-{number}" / "running_states.json").read_text())
        assert sum(progress["tokens_by_category"].values()) == progress["num_tokens_seen"] > 0
        assert progress["num_tokens_seen"] == steps[number - 1]["num_tokens_seen"]
        assert progress["row_chain"] == steps[number - 1]["row_chain"]


STEPS, SAVED, INTERVAL = 5, 2, 3
LONGER_ROWS = 96


@pytest.fixture(scope="module")
def longer_bins_dir(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path, english_texts: list[str]
) -> Path:
    """Held-out rows longer than those of the training data."""
    directory = tmp_path_factory.mktemp("longer")
    records = [{"source": "", "target": text[:600], "category": "docs"} for text in english_texts[:6]]
    write_jsonl(directory / "text" / "all.jsonl", records)
    wanted = {
        "data_input_dirs": directory / "text",
        "tokenizer_dir": tiny_tokenizer_dir,
        "data_arrow_output_dir": directory / "arrow",
        "max_length": LONGER_ROWS,
        "num_spliced_dataset_bins": 1,
    }
    assert prepare_pretrain_dataset.main(argv_of(**wanted)) == 0
    return directory / "arrow"


@pytest.fixture(scope="module")
def run_flags(flags: dict[str, Any], longer_bins_dir: Path) -> dict[str, Any]:
    """Five steps; logged and evaluated after the third and, because it is the last, the fifth."""
    intervals = {"log_interval": INTERVAL, "eval_interval": INTERVAL, "save_interval": SAVED}
    held_out = {"eval_dataset": f"one={longer_bins_dir}", "max_eval_samples": 4, "max_length": LONGER_ROWS}
    return {**flags, **intervals, **held_out, "micro_batch_size": 4, "max_steps": STEPS}


@pytest.fixture(scope="module")
def whole_run(
    train: Callable[..., list[dict[str, Any]]], run_flags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The save_dir of that run on one rank; look, do not touch."""
    save_dir = tmp_path_factory.mktemp("mutants") / "run"
    train(1, save_dir, **run_flags)
    return save_dir


def test_learning_rates_of_a_run_are_those_of_its_schedule(whole_run: Path, run_flags: dict[str, Any]) -> None:
    """Cosine: half the peak, the peak, and from there down to a tenth of it in two."""
    shares = [1 / 2, 1, *(0.1 + 0.9 * (1 + math.cos(math.pi * done / 2)) / 2 for done in range(3))]
    assert [line["lr"] / run_flags["lr"] for line in read_metrics(whole_run)] == pytest.approx(shares)


def test_a_run_is_evaluated_before_it_each_interval_and_at_its_end(whole_run: Path) -> None:
    assert [line["step"] for line in read_evaluations(whole_run)] == [0, INTERVAL, STEPS]


def test_the_running_mean_of_a_run_is_that_of_its_losses(whole_run: Path) -> None:
    weighted_sum = weight = 0.0
    for line in read_metrics(whole_run):
        weighted_sum = MEMORY * weighted_sum + (1 - MEMORY) * line["loss"]
        weight = MEMORY * weight + (1 - MEMORY)
    states = json.loads((whole_run / f"epoch-0_step-{STEPS}" / "running_states.json").read_text())
    assert (states["loss_weighted_sum"], states["loss_weight"]) == pytest.approx((weighted_sum, weight), rel=1e-9)


def test_a_checkpoint_counts_the_ids_and_tokens_of_the_steps_before_it(whole_run: Path, tiny_bins_dir: Path) -> None:
    """Between two log lines too, when the latest figures still lie on the device."""
    reader = BatchReader(open_bins([tiny_bins_dir]), Shape(4, 1, 1, 0), 42, LONGER_ROWS, 0, 10**6)
    rows = torch.cat([batch.input_ids for _, (batch,) in zip(range(SAVED), reader.steps_from(0), strict=False)])
    checkpoint = whole_run / f"epoch-0_step-{SAVED}"
    seen = load_file(checkpoint / "seen_ids.safetensors")["seen"]
    assert seen.nonzero().flatten().tolist() == rows.unique().tolist()
    states = json.loads((checkpoint / "running_states.json").read_text())
    assert sum(states["tokens_by_category"].values()) == states["num_tokens_seen"] > 0


def test_a_resumed_run_ends_with_the_checkpoint_of_the_whole_one(
    whole_run: Path, run_flags: dict[str, Any], train: Callable[..., list[dict[str, Any]]], tmp_path: Path
) -> None:
    """With the running loss, the tokens of each category and the ids seen; step 0 is not evaluated twice."""
    stopped = stopped_copy(whole_run, tmp_path / "stopped", SAVED)
    (stopped / "anomalies.jsonl").write_text("".join(json.dumps({"step": done}) + "\n" for done in (SAVED, STEPS)))
    train(1, stopped, **run_flags)
    assert json.loads((stopped / "anomalies.jsonl").read_text()) == {"step": SAVED}, "the other has not happened yet"
    for name in ("running_states.json", "seen_ids.safetensors", "lr_scheduler"):
        last = f"epoch-0_step-{STEPS}/{name}"
        assert (stopped / last).read_bytes() == (whole_run / last).read_bytes(), name
    assert [line["step"] for line in read_evaluations(stopped)] == [0, INTERVAL, STEPS]


def test_the_runs_own_checkpoint_wins_over_the_one_it_was_begun_with(whole_run: Path) -> None:
    given = whole_run / f"epoch-0_step-{SAVED}"
    config: Any = SimpleNamespace(save_dir=whole_run, overwrite=False, load_checkpoint=given, pretrained=None)
    start = find_start(config)
    assert start.checkpoint is not None and start.checkpoint.progress.step == STEPS
    config.overwrite = True
    start = find_start(config)
    assert start.checkpoint is not None and start.checkpoint.progress.step == SAVED


def test_a_reset_begins_the_moments_anew(
    train: Callable[..., list[dict[str, Any]]],
    flags: dict[str, Any],
    tiny_model_dir: Path,
    tiny_bins_dir: Path,
    tmp_path: Path,
) -> None:
    """Another AdamW from the third step on, in a plain loop."""
    still = {"lr_schedule": "constant", "warmup_steps": 0, "weight_decay": 0, "gradient_clipping": 0}
    own = {**flags, **still, "mixed_precision": "fp32", "micro_batch_size": 4, "max_steps": 4}
    steps = train(1, tmp_path / "run", **own, stages=["all,steps=2", "all,optimizer=reset"])
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir, torch_dtype=torch.float32)
    reader = BatchReader(open_bins([tiny_bins_dir]), Shape(4, 1, 1, 0), 42, flags["max_length"], 0, 10**6)
    losses = []
    for number, (batch,) in zip(range(4), reader.steps_from(0), strict=False):
        if number % 2 == 0:
            optimizer = torch.optim.AdamW(plain.parameters(), lr=flags["lr"], betas=(0.9, 0.95), weight_decay=0.0)
        optimizer.zero_grad()
        loss = plain(input_ids=batch.input_ids, labels=batch.labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert [one["loss"] for one in steps] == pytest.approx(losses, rel=1e-5)
