"""One gradient, however a batch is cut: rows with very different numbers of labels, micro-batches without any.

A mean per micro-batch or per rank, which is what most loops take, fails here by whole units of the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.batches import BatchReader, Shape
from data_tools.bins import open_bins
from tests.colossal_llama import parity
from tests.colossal_llama.parity import LOSS_TOLERANCE, NORM_TOLERANCE, ROWS_PER_STEP, Case, Configuration
from tests.colossal_llama.runs import ROW_LENGTH, free_ports, outcomes
from tests.conftest import argv_of, read_metrics, write_jsonl

STEPS = 6

ZERO2, DDP = {"plugin": "zero2"}, {"plugin": "ddp"}
TP2, PP2 = {"plugin": "3d", "zero": 0, "tp": 2}, {"plugin": "3d", "zero": 0, "pp": 2}
DP2, SP2 = {"plugin": "3d", "zero": 0}, {"plugin": "3d", "zero": 0, "sp": 2}
SPLITS: dict[int, list[tuple[dict[str, Any], int, int]]] = {  # ranks -> (flags, micro_batch_size, accumulation_steps)
    1: [(ZERO2, 1, 4)],
    2: [(ZERO2, 2, 1), (DDP, 1, 2), (DP2, 1, 2), (TP2, 1, 4), (PP2, 1, 4), (SP2, 1, 4)],
    4: [(ZERO2, 1, 1), ({**PP2, "tp": 2}, 1, 4)],
}


@pytest.fixture(scope="module")
def ragged_bins_dir(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path, english_texts: list[str]
) -> Path:
    """Rows of 64 tokens: some all labels, some a few, and some none, which are the middles of long prompts."""
    from data_tools import prepare_pretrain_dataset

    directory = tmp_path_factory.mktemp("ragged")
    records = [{"source": text[:260], "target": "a", "category": "qa"} for text in english_texts[:8]]
    records += [{"source": "", "target": text[:280], "category": "docs"} for text in english_texts[8:16]]
    write_jsonl(directory / "text" / "all.jsonl", records)
    flags = {
        "data_input_dirs": directory / "text",
        "tokenizer_dir": tiny_tokenizer_dir,
        "data_arrow_output_dir": directory / "arrow",
        "max_length": ROW_LENGTH,
        "num_spliced_dataset_bins": 1,
    }
    assert prepare_pretrain_dataset.main(argv_of(**flags)) == 0
    return directory / "arrow"


def test_rows_are_as_ragged_as_they_should_be(ragged_bins_dir: Path) -> None:
    reader = BatchReader(open_bins([ragged_bins_dir]), Shape(ROWS_PER_STEP, 1, 1, 0), parity.SEED, ROW_LENGTH, 0, 10**6)
    labels = [batch.labels for _, (batch,) in zip(range(STEPS), reader.steps_from(0), strict=False)]
    counts = [(one[:, 1:] != -100).sum(dim=1).tolist() for one in labels]
    assert sum(0 in of_step for of_step in counts) >= 3, "micro-batches of one row without labels"
    assert any(not any(of_step[:2]) or not any(of_step[2:]) for of_step in counts), "two such rows side by side"
    assert all(any(of_step) for of_step in counts)
    assert sum(max(of_step) > 20 * min(filter(None, of_step)) for of_step in counts) >= 2


@pytest.mark.parametrize("world_size", SPLITS)
def test_any_split_of_a_batch_gives_the_loss_and_gradient_of_the_whole(
    world_size: int,
    ranks: Callable[..., list[Any]],
    tiny_model_dir: Path,
    ragged_bins_dir: Path,
    tmp_path: Path,
) -> None:
    whole = Case(Configuration("whole", {}), "fp32", "plain")
    reference = parity.plain_loop(whole, STEPS, tiny_model_dir, ragged_bins_dir)
    inputs = {**whole.flags(STEPS), "pretrained": tiny_model_dir, "dataset": ragged_bins_dir}
    argvs = [
        argv_of(
            **{**inputs, **flags, "micro_batch_size": size, "accumulation_steps": count},
            save_dir=tmp_path / str(index),
        )
        for index, (flags, size, count) in enumerate(SPLITS[world_size])
    ]
    results = ranks(outcomes, world_size, argvs, free_ports(len(argvs)))
    assert results == [[(0, "")] * len(argvs)] * world_size
    for index, split in enumerate(SPLITS[world_size]):
        measured = parity.deviation(parity.curve_of(read_metrics(tmp_path / str(index))), reference)
        assert measured.loss < LOSS_TOLERANCE["fp32"] / 5, f"{split}: {measured}"
        assert measured.grad_norm < NORM_TOLERANCE["fp32"] / 5, f"{split}: {measured}"


@pytest.mark.parametrize("flags", [ZERO2, DDP], ids=["zero2", "ddp"])
def test_a_step_without_any_label_has_loss_and_gradient_zero(
    flags: dict[str, Any],
    train: Callable[..., list[dict[str, Any]]],
    tiny_model_dir: Path,
    ragged_bins_dir: Path,
    tmp_path: Path,
) -> None:
    case = Case(Configuration("single rows", flags), "fp32", "plain")
    inputs = {"pretrained": tiny_model_dir, "dataset": ragged_bins_dir, "save_dir": tmp_path / "run"}
    steps = train(1, **{**inputs, **case.flags(4 * STEPS), "micro_batch_size": 1})
    empty = [step for step in steps if step["num_tokens"] == 0]
    assert len(empty) >= 3
    assert all(step["loss"] == 0 and step["grad_norm"] == 0 for step in empty)
    assert all(0 < step["loss"] < 10 for step in steps if step["num_tokens"])
