"""A growing matrix: what stays, what is told apart by noise, and its figures against plain torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer_tools import growth, initialisers
from tokenizer_tools.command import UserError
from tokenizer_tools.growth import Figures, Rule, find_repeats, grow, quantiles

PARTS = [[1, 2], [2, 1], [3, 4, 5], [5, 5], [1, 2], [0, 6]]  # the second and fifth repeat the first, the fourth row 5


def rows_of(dtype: torch.dtype = torch.float32, num_rows: int = 8, hidden: int = 32) -> torch.Tensor:
    return torch.randn(num_rows, hidden, generator=torch.Generator().manual_seed(0)).to(dtype)


def grown(
    rows: torch.Tensor,
    parts: list[list[int]],
    initialiser: str = "mean",
    noise: float = 0.0,
    seed: int = 0,
    is_output: bool = False,
) -> tuple[torch.Tensor, Figures]:
    figures = Figures()
    return torch.cat(list(grow(rows, parts, Rule(initialiser, is_output, noise, seed), figures))), figures


def test_old_rows_stay_bit_for_bit() -> None:
    rows = torch.tensor([[float("nan")], [-0.0], [3.0]], dtype=torch.bfloat16)
    matrix, _ = grown(rows, [[2], [1, 2]])
    assert torch.equal(matrix[:3].view(torch.int16), rows.view(torch.int16))
    assert matrix[3:].tolist() == [[3.0], [1.5]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_only_repeats_get_noise(dtype: torch.dtype) -> None:
    rows = rows_of(dtype)
    plain, without = grown(rows, PARTS)
    noisy, with_noise = grown(rows, PARTS, noise=0.01)
    changed = (plain != noisy).any(dim=1).nonzero().flatten().tolist()
    assert changed == [9, 11, 12]
    assert (without.identical_starting_rows, without.rows_with_noise) == (3, 0)
    assert (with_noise.identical_starting_rows, with_noise.rows_with_noise) == (0, 3)
    assert len(noisy.unique(dim=0)) == len(noisy)


@pytest.mark.parametrize("initialiser", ["mean", "position_mean", "normal", "zero", "copy"])
@pytest.mark.parametrize("is_output", [False, True])
def test_no_two_rows_start_the_same(initialiser: str, is_output: bool) -> None:
    parts = [[k % 8, k // 8 % 8] for k in range(200)]
    rows = rows_of(torch.bfloat16)
    matrix, figures = grown(rows, parts, initialiser, noise=0.01, is_output=is_output)
    assert len(matrix.unique(dim=0)) == len(matrix) == 208
    assert figures.identical_starting_rows == 0
    matrix, figures = grown(rows, parts, initialiser, is_output=is_output)
    assert figures.identical_starting_rows == len(matrix) - len(matrix.unique(dim=0))


def test_noise_is_in_standard_deviations_of_each_column() -> None:
    rows = rows_of(num_rows=2000, hidden=4) * torch.tensor([1.0, 10.0, 0.1, 0.0]) + 5
    matrix, _ = grown(rows, [[7]] * 3000, noise=0.5)
    deviation = (matrix[2000:] - rows[7]).std(0)
    torch.testing.assert_close(deviation, 0.5 * rows.std(0), rtol=0.05, atol=1e-6)


def test_noise_is_a_function_of_the_seed() -> None:
    first, again, other = (grown(rows_of(), PARTS, noise=0.1, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@settings(deadline=None, max_examples=20)
@given(parts=st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=4), max_size=9))
def test_chunks_do_not_show(parts: list[list[int]]) -> None:
    whole, figures = grown(rows_of(torch.bfloat16), parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(growth, "CHUNK_ROWS", 2)
        patch.setattr(initialisers, "CHUNK_ROWS", 3)
        chunked, figures_of_chunks = grown(rows_of(torch.bfloat16), parts)
    assert torch.equal(whole, chunked)
    assert figures.report() == figures_of_chunks.report()


@pytest.mark.parametrize(
    ("dtype", "initialiser", "noise"), [(torch.bfloat16, "position_mean", 0.0), (torch.float32, "mean", 0.5)]
)
def test_figures_are_those_of_the_rows(dtype: torch.dtype, initialiser: str, noise: float) -> None:
    rows = rows_of(dtype)
    matrix, figures = grown(rows, PARTS, initialiser, noise)
    report = figures.report()
    new, means = matrix[8:].double(), torch.stack([rows[ids].double().mean(0) for ids in PARTS])
    expected = {
        "norm_of_old_rows": rows.double().norm(dim=1),
        "norm_of_new_rows": new.norm(dim=1),
        "cosine_to_mean_of_parts": (new * means).sum(1) / new.norm(dim=1) / means.norm(dim=1),
    }
    for name, values in expected.items():
        assert report[name]["min"] == pytest.approx(values.min().item(), abs=1e-5)
        assert report[name]["5%"] == pytest.approx(values.quantile(0.05).item(), abs=1e-5)
        assert report[name]["median"] == pytest.approx(values.quantile(0.5).item(), abs=1e-5)
        assert report[name]["95%"] == pytest.approx(values.quantile(0.95).item(), abs=1e-5)
        assert report[name]["max"] == pytest.approx(values.max().item(), abs=1e-5)


def test_mean_rows_point_where_their_parts_point() -> None:
    _, figures = grown(rows_of(), PARTS)
    assert figures.report()["cosine_to_mean_of_parts"]["min"] == pytest.approx(1)


def test_no_new_rows() -> None:
    matrix, figures = grown(rows_of(), [], "normal", noise=1.0)
    assert torch.equal(matrix, rows_of())
    assert figures.report()["norm_of_new_rows"] == quantiles([]) == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_refused(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "CHUNK_ROWS", 2)
    rows = rows_of()
    rows[3, 7] = value
    with pytest.raises(UserError, match="the new row of id 10 would not be finite"):
        grown(rows, PARTS)


def test_quantiles_pass_over_what_is_not_finite() -> None:
    _, figures = grown(torch.tensor([[1.0], [float("nan")], [3.0]]), [[0, 2]])
    assert figures.report()["norm_of_old_rows"] == {"min": 1, "5%": 1.1, "median": 2, "95%": 2.9, "max": 3}
    assert quantiles([torch.tensor([float("inf")])]) == {}


def test_repeats_are_found_by_bits() -> None:
    rows = torch.tensor([[0.0, 1.0], [0.0, 1.0], [-0.0, 1.0], [2.0, 2.0], [0.0, 1.0]], dtype=torch.bfloat16)
    known: set[int] = set()
    assert find_repeats(rows[:2], known) == [1]
    assert find_repeats(rows[2:], known) == [2]
    assert find_repeats(rows[:0], known) == []
