"""Bad steps end to end: a token whose embedding is NaN spoils exactly the rows that hold it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from colossal_llama.batches import BatchReader, Shape
from data_tools.bins import open_bins
from tests.colossal_llama.runs import ROW_LENGTH, free_ports, outcomes, weights_of
from tests.conftest import argv_of, read_metrics

Train = Callable[..., list[dict[str, Any]]]
STEPS, ROWS_PER_STEP, SEED = 8, 4, 42
INPUT = "model.embed_tokens.weight"


def rows_of_steps(bins_dir: Path) -> list[list[list[int]]]:
    """The ids of the four rows of each step."""
    reader = BatchReader(open_bins([bins_dir]), Shape(ROWS_PER_STEP, 1, 1, 0), SEED, ROW_LENGTH, 0, 10**6)
    return [batch.input_ids.tolist() for _, (batch,) in zip(range(STEPS), reader.steps_from(0), strict=False)]


@pytest.fixture(scope="module")
def poison_id(tiny_bins_dir: Path) -> int:
    """An id that stands in one or two of the steps after the first, and in one of the buckets' rows a step."""
    steps = rows_of_steps(tiny_bins_dir)
    in_steps = Counter(token for rows in steps for token in {token for row in rows for token in row})
    early = {token for rows in steps[:2] for row in rows for token in row}
    return min(token for token, count in in_steps.items() if count == 2 and token not in early)


def with_nan(model_dir: Path, target: Path, name: str, index: int) -> Path:
    """A copy of the model in which entry `index` of tensor `name` is NaN throughout."""
    shutil.copytree(model_dir, target)
    (path,) = target.glob("*.safetensors")
    tensors = load_file(path)
    tensors[name][index] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    (target / "manifest.json").unlink()  # which says what the file was before
    return target


@pytest.fixture(scope="module")
def poisoned_dir(poison_id: int, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_nan(tiny_model_dir, tmp_path_factory.mktemp("poisoned") / "model", INPUT, poison_id)


LAYOUTS = {
    "zero2": {"plugin": "zero2"},
    "gemini": {"plugin": "gemini"},
    "ddp": {"plugin": "ddp"},
    "pp2": {"plugin": "3d", "pp": 2, "zero": 0, "micro_batch_size": 2, "accumulation_steps": 2},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bad_steps_are_skipped_and_their_rows_are_named(
    layout: str,
    train: Train,
    flags: dict[str, Any],
    poison_id: int,
    poisoned_dir: Path,
    tiny_bins_dir: Path,
    tmp_path: Path,
) -> None:
    own = {**flags, "micro_batch_size": 2, **LAYOUTS[layout], "pretrained": poisoned_dir, "max_steps": STEPS}
    steps = train(2, tmp_path / "run", **own, log_interval=3)
    expected = rows_of_steps(tiny_bins_dir)
    bad_steps = [number + 1 for number, rows in enumerate(expected) if any(poison_id in row for row in rows)]
    assert len(bad_steps) == 2
    assert [step["step"] for step in steps if step["is_bad"]] == bad_steps
    assert all((step["loss"] is None) == (step["step"] in bad_steps) for step in steps)  # null: not a number

    lines = [json.loads(line) for line in (tmp_path / "run" / "anomalies.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == bad_steps
    for line in lines:
        rows = expected[line["step"] - 1]
        assert sorted(row["number"] for row in line["rows"]) == list(
            range((line["step"] - 1) * ROWS_PER_STEP, line["step"] * ROWS_PER_STEP)
        )
        spoilt = {row["number"] % ROWS_PER_STEP for row in line["rows"] if row["loss"] is None}
        assert spoilt == {place for place, row in enumerate(rows) if poison_id in row}
        assert line["rows"][0]["loss"] is None, "the worst row comes first"
        for row in line["rows"]:
            bucket = open_bins([Path(row["bucket"])]).bins[0]
            ids = bucket.row(row["row"]).input_ids.tolist()
            assert ids == rows[row["number"] % ROWS_PER_STEP][: len(ids)]
            assert all(Path(source.rpartition(":")[0]).suffix == ".jsonl" for source in row["sources"])

    trained = weights_of(tmp_path / "run" / "modeling")
    others = torch.arange(512) != poison_id
    assert trained[INPUT][others].isfinite().all()
    assert all(tensor.isfinite().all() for name, tensor in trained.items() if name != INPUT)
    assert (trained[INPUT][others] != weights_of(poisoned_dir)[INPUT][others].to(trained[INPUT].dtype)).any()


def test_stop_and_a_run_that_does_not_recover_end_in_one_line(
    ranks: Callable[..., list[Any]],
    flags: dict[str, Any],
    tiny_model_dir: Path,
    poisoned_dir: Path,
    tmp_path: Path,
) -> None:
    broken_dir = with_nan(tiny_model_dir, tmp_path / "broken", "model.norm.weight", 0)  # no step can be good
    own = {**flags, "micro_batch_size": 2, "log_interval": 4, "max_steps": 12}
    stop = {**own, "pretrained": poisoned_dir, "save_dir": tmp_path / "stop", "on_anomaly": "stop", "save_interval": 1}
    never = {**own, "pretrained": broken_dir, "save_dir": tmp_path / "never"}
    results = ranks(outcomes, 2, [argv_of(**stop), argv_of(**never)], free_ports(2))
    assert [[code for code, _ in rank] for rank in results] == [[2, 2]] * 2
    stopped, lost = (line for _, line in results[0])
    assert "loss nan" in stopped and "--on_anomaly stop" in stopped and "anomalies.jsonl" in stopped
    (bad_step,) = [
        json.loads(line)["step"] for line in (tmp_path / "stop" / "anomalies.jsonl").read_text().splitlines()
    ]
    assert f"step {bad_step}:" in stopped
    assert (tmp_path / "stop" / "latest").read_text() == f"epoch-0_step-{bad_step - 1}\n", "it was just being written"
    assert not list((tmp_path / "stop").glob(".*.partial"))
    assert "10 bad steps in a row" in lost and "lower --lr" in lost


def test_ignore_trains_on_it(train: Train, flags: dict[str, Any], poisoned_dir: Path, tmp_path: Path) -> None:
    own = {**flags, "micro_batch_size": 4, "pretrained": poisoned_dir, "max_steps": STEPS, "on_anomaly": "ignore"}
    train(1, tmp_path / "run", **own)
    steps = read_metrics(tmp_path / "run")
    first = next(step["step"] for step in steps if step["is_bad"])
    assert all(step["is_bad"] for step in steps[first - 1 :]), "the weights are NaN from then on"
