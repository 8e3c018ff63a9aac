"""Every plugin's loss, gradient norm and learning rate against a plain PyTorch loop over the same rows.

What always runs is a part of it, over few steps; `make soak` runs all of it and writes the table of docs/parity.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from tests.colossal_llama import parity
from tests.colossal_llama.parity import BF16, BOTH, CONFIGURATIONS, PLAIN_LOOP, Case, Configuration, Curve
from tests.colossal_llama.runs import free_ports, outcomes
from tests.conftest import argv_of, read_metrics

QUICK_STEPS, SOAK_STEPS = 20, 50
QUICK = {  # precisions of the plugin -> what always runs
    BOTH: (("fp32", "plain"), ("bf16", "accumulated"), ("fp32", "all three")),
    BF16: (("bf16", "accumulated"), ("bf16", "all three")),
}

Measure = Callable[[list[Case], int, Path], list[Curve]]


@pytest.fixture(scope="module")
def reference(tiny_model_dir: Path, tiny_bins_dir: Path) -> Callable[[Case, int], Curve]:
    """The fp32 loop over the same rows, with the same parameters training."""

    @lru_cache
    def run(variant: str, steps: int) -> Curve:
        return parity.plain_loop(Case(PLAIN_LOOP, "fp32", variant), steps, tiny_model_dir, tiny_bins_dir)

    return lambda case, steps: run("frozen" if case.freezes else "plain", steps)


@pytest.fixture(scope="module")
def measure(ranks: Callable[..., list[Any]], tiny_model_dir: Path, tiny_bins_dir: Path) -> Measure:
    """train.py on cases of one configuration, one after the other on the same ranks."""

    def run(cases: list[Case], steps: int, directory: Path) -> list[Curve]:
        inputs = {"pretrained": tiny_model_dir, "dataset": tiny_bins_dir}
        argvs = [argv_of(**inputs, save_dir=directory / case.name, **case.flags(steps)) for case in cases]
        world_size = cases[0].configuration.world_size
        results = ranks(outcomes, world_size, argvs, free_ports(len(argvs)))
        assert results == [[(0, "")] * len(cases)] * world_size
        return [parity.curve_of(read_metrics(directory / case.name)) for case in cases]

    return run


@pytest.mark.parametrize("configuration", CONFIGURATIONS, ids=lambda one: one.name.replace(" ", "-"))
def test_curve_is_that_of_a_plain_loop(
    configuration: Configuration, measure: Measure, reference: Callable[[Case, int], Curve], tmp_path: Path
) -> None:
    cases = [Case(configuration, *quick) for quick in QUICK[configuration.precisions]]
    for case, curve in zip(cases, measure(cases, QUICK_STEPS, tmp_path), strict=True):
        measured = parity.deviation(curve, reference(case, QUICK_STEPS))
        assert measured.is_within(case.precision), f"{case.name}: {measured}"
        assert AutoModelForCausalLM.from_pretrained(tmp_path / case.name / "modeling").config.vocab_size == 512


SOAK = [case for one in (PLAIN_LOOP, *CONFIGURATIONS) for case in parity.cases_of(one)]


@pytest.mark.soak
@pytest.mark.parametrize("case", SOAK, ids=lambda case: case.name)
def test_soak(
    case: Case,
    measure: Measure,
    reference: Callable[[Case, int], Curve],
    tiny_model_dir: Path,
    tiny_bins_dir: Path,
    tmp_path: Path,
) -> None:
    if case.configuration is PLAIN_LOOP:
        curve = parity.plain_loop(case, SOAK_STEPS, tiny_model_dir, tiny_bins_dir)
    else:
        (curve,) = measure([case], SOAK_STEPS, tmp_path)
    measured = parity.deviation(curve, reference(case, SOAK_STEPS))
    parity.record(case, measured)
    assert measured.is_within(case.precision), measured


def test_table_lists_exactly_the_configurations_and_all_of_them_hold() -> None:
    text = parity.DOCUMENT.read_text(encoding="utf-8")
    cells = parity.read_table(text)
    assert parity.write_table(text, cells) == text, "run `make soak`"
    for (name, precision), by_variant in cells.items():
        for variant, cell in by_variant.items():
            loss, norm = parity.read_cell(cell)
            measured = parity.Deviation(loss, norm, 0.0)
            assert measured.is_within(precision), f"{name}, {precision}, {variant}: {cell}"


def test_a_value_that_is_no_number_is_no_parity() -> None:
    straight = Curve([2.0, 1.0], [1.0, 1.0], [0.1, 0.1])
    assert parity.deviation(straight, straight) == parity.Deviation(0.0, 0.0, 0.0)
    assert parity.deviation(Curve([2.0, 1.5], [1.0, 0.9], [0.1, 0.1]), straight).loss == 0.5
    broken = parity.deviation(Curve([2.0, float("nan")], [1.0, 1.0], [0.1, 0.1]), straight)
    assert not broken.is_within("bf16")
