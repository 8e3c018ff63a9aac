"""A checkpoint goes on with another number of processes, another plugin, another layout: same rows, same losses.

Tolerances are those of docs/parity.md, between two runs that share only the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.colossal_llama.parity import LOSS_TOLERANCE, NORM_TOLERANCE
from tests.colossal_llama.runs import free_ports, outcomes, stopped_copy
from tests.conftest import argv_of, read_metrics

Train = Callable[..., list[dict[str, Any]]]
ROWS_PER_STEP, MIDDLE, LAST = 8, 3, 6

THREE_D = {"plugin": "3d", "zero": 0}
WORLDS: dict[str, tuple[int, int, dict[str, Any]]] = {  # processes, those that read rows of their own, flags
    "1 x zero2": (1, 1, {"plugin": "zero2"}),
    "2 x zero2": (2, 2, {"plugin": "zero2"}),
    "4 x zero2": (4, 4, {"plugin": "zero2"}),
    "3 x zero2 and a blank row a step": (3, 3, {"plugin": "zero2", "global_batch_size": ROWS_PER_STEP}),
    "2 x zero2_cpu": (2, 2, {"plugin": "zero2_cpu"}),
    "2 x ddp": (2, 2, {"plugin": "ddp"}),
    "2 x gemini": (2, 2, {"plugin": "gemini"}),
    "1 x gemini": (1, 1, {"plugin": "gemini"}),
    "3d tp=2": (2, 1, {**THREE_D, "tp": 2}),
    "3d dp=2 zero 1": (2, 2, {"plugin": "3d", "zero": 1}),
    "3d pp=2": (2, 1, {**THREE_D, "pp": 2}),
    "3d tp=2 pp=2": (4, 1, {**THREE_D, "tp": 2, "pp": 2}),
}
MOVES = [
    ("2 x zero2", "1 x zero2", "fp32"),
    ("2 x zero2", "3 x zero2 and a blank row a step", "fp32"),
    ("2 x zero2", "2 x gemini", "bf16"),
    ("3d tp=2", "3d dp=2 zero 1", "bf16"),
    ("2 x gemini", "3d pp=2", "bf16"),
]
SOAK = [
    ("2 x zero2", "4 x zero2", "fp32"),
    ("3d tp=2", "2 x ddp", "fp32"),
    ("3d pp=2", "1 x gemini", "bf16"),
    ("2 x ddp", "3d tp=2 pp=2", "fp32"),
    ("3d tp=2 pp=2", "2 x zero2_cpu", "bf16"),
]


def flags_of(world: str, precision: str) -> tuple[int, dict[str, Any]]:
    """(processes, flags): a step has the same rows in every world."""
    num_processes, dp_size, own = WORLDS[world]
    rows = ROWS_PER_STEP // dp_size
    batch = {"micro_batch_size": max(1, rows // 2), "accumulation_steps": min(2, rows)}
    return num_processes, {**own, **batch, "mixed_precision": precision, "max_steps": LAST, "save_interval": MIDDLE}


@pytest.fixture(scope="module")
def undisturbed(
    train: Train, flags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, str], Path]:
    """The save_dir of a whole run in one world."""
    runs: dict[tuple[str, str], Path] = {}

    def run(world: str, precision: str) -> Path:
        if (world, precision) not in runs:
            save_dir = tmp_path_factory.mktemp("worlds") / "run"
            num_processes, own = flags_of(world, precision)
            train(num_processes, save_dir, **{**flags, **own})
            runs[world, precision] = save_dir
        return runs[world, precision]

    return run


@pytest.mark.parametrize(
    ("before", "after", "precision"),
    [*MOVES, *(pytest.param(*move, marks=pytest.mark.soak) for move in SOAK)],
    ids=[" to ".join(move[:2]) for move in (*MOVES, *SOAK)],
)
def test_rows_and_losses_are_those_of_an_undisturbed_run(
    before: str,
    after: str,
    precision: str,
    undisturbed: Callable[[str, str], Path],
    train: Train,
    flags: dict[str, Any],
    tmp_path: Path,
) -> None:
    whole = undisturbed(before, precision)
    stopped = stopped_copy(whole, tmp_path / "stopped", MIDDLE)
    num_processes, own = flags_of(after, precision)
    found, expected = train(num_processes, stopped, **{**flags, **own}), read_metrics(whole)
    assert len(found) == len(expected) == LAST
    for name in ("step", "row_chain", "num_rows_seen", "num_tokens_seen", "lr"):
        assert [step[name] for step in found] == [step[name] for step in expected], name
    for name, tolerance in (("loss", LOSS_TOLERANCE), ("grad_norm", NORM_TOLERANCE)):
        values = [step[name] for step in expected]
        assert [step[name] for step in found] == pytest.approx(values, rel=tolerance[precision]), name


def test_what_has_no_way_over_is_refused_in_words(
    undisturbed: Callable[[str, str], Path], ranks: Callable[..., list[Any]], flags: dict[str, Any], tmp_path: Path
) -> None:
    stopped = stopped_copy(undisturbed("2 x zero2", "fp32"), tmp_path / "stopped", MIDDLE)
    own = flags_of("2 x zero2", "fp32")[1]
    refused = {
        "--mixed_precision fp32": {"plugin": "gemini"},
        "needs a multiple of 4": {"plugin": "3d", "zero": 0, "tp": 4},
        "--load_checkpoint": {"lora_rank": 4},
    }
    argvs = [argv_of(save_dir=stopped, **{**flags, **own, **change}) for change in refused.values()]
    first, second = ranks(outcomes, 2, argvs, free_ports(len(argvs)))
    assert [code for code, _ in first] == [code for code, _ in second] == [2] * len(argvs)
    for words, (_, said) in zip(refused, first, strict=True):
        assert words in said
