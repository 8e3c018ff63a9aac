"""The rows new ids start from, each against its formula written out row by row."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer_tools import initialisers
from tokenizer_tools.initialisers import MIXTURES, mean_and_covariance, mix, normal, norms_and_spread, row_maker

PARTS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=7), min_size=1, max_size=12)
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def rows_of(dtype: torch.dtype, num_rows: int = 10, hidden: int = 5) -> torch.Tensor:
    return torch.randn(num_rows, hidden, generator=torch.Generator().manual_seed(0)).to(dtype)


def start(name: str, rows: torch.Tensor, parts: list[list[int]], is_output: bool = False) -> torch.Tensor:
    return row_maker(name, rows, is_output, torch.Generator().manual_seed(0))(parts)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=30)
@given(parts=PARTS)
def test_mean_is_the_mean_one_by_one(dtype: torch.dtype, parts: list[list[int]]) -> None:
    rows = rows_of(dtype)
    means = start("mean", rows, parts)
    assert means.dtype == torch.float32
    for row, ids in zip(means, parts, strict=True):
        torch.testing.assert_close(row.double(), rows.double()[ids].mean(0), rtol=1e-5, atol=1e-6)


def test_mean_is_taken_in_float32() -> None:
    rows = torch.tensor([[256.0], [1.0]], dtype=torch.bfloat16)
    assert start("mean", rows, [[0, 1, 1, 1, 1, 1, 1, 1]]).item() == 263 / 8


@pytest.mark.parametrize("is_output", [False, True])
@settings(deadline=None, max_examples=30)
@given(parts=PARTS)
def test_position_mean_leans_to_the_end_it_should(is_output: bool, parts: list[list[int]]) -> None:
    rows = rows_of(torch.float32)
    for row, ids in zip(start("position_mean", rows, parts, is_output), parts, strict=True):
        powers = torch.tensor([math.exp((-2 if is_output else 2) * (k + 1)) for k in range(len(ids))]).double()
        expected = (rows.double()[ids] * powers[:, None]).sum(0) / powers.sum()
        torch.testing.assert_close(row.double(), expected, rtol=1e-5, atol=1e-6)


def test_position_mean_of_a_long_piece_does_not_overflow() -> None:
    assert start("position_mean", rows_of(torch.float32), [[1, 2] * 300]).isfinite().all()


def test_copy_takes_the_last_part_for_input_and_the_first_for_output() -> None:
    rows = rows_of(torch.float16)
    assert torch.equal(start("copy", rows, [[3, 4, 5], [6]]), rows[[5, 6]].float())
    assert torch.equal(start("copy", rows, [[3, 4, 5], [6]], is_output=True), rows[[3, 6]].float())


def test_zero_is_zero() -> None:
    assert torch.equal(start("zero", rows_of(torch.float32), [[3, 4], [6]]), torch.zeros(2, 5))


@pytest.mark.parametrize("name", sorted(MIXTURES))
@settings(deadline=None, max_examples=30)
@given(parts=PARTS)
def test_shares_add_up(name: str, parts: list[list[int]]) -> None:
    for ids in parts:
        for is_output in (False, True):
            mixture = MIXTURES[name](ids, is_output)
            assert mixture.keys() <= set(ids)
            assert sum(mixture.values()) == pytest.approx(0 if name == "zero" else 1)


def test_equal_mixtures_are_bit_for_bit_equal_rows() -> None:
    rows = rows_of(torch.float32, 10, 333)
    made = start("mean", rows, [[1, 2, 3], [3, 1, 2], [2, 3, 1], [7, 7], [7, 7, 7], [7] * 49, [1, 2], [2, 1, 1, 2]])
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])
    assert torch.equal(made[3], rows[7])
    assert torch.equal(made[3], made[4])
    assert torch.equal(made[3], made[5])
    assert torch.equal(made[6], made[7])


def test_an_id_beyond_the_old_rows_is_an_error() -> None:
    with pytest.raises(IndexError):
        mix(torch.zeros(3, 2), [{3: 1.0}])


@pytest.mark.parametrize("chunk_rows", [3, 2048])
@pytest.mark.parametrize("dtype", DTYPES)
def test_moments_are_those_of_all_rows(dtype: torch.dtype, chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(initialisers, "CHUNK_ROWS", chunk_rows)
    rows = rows_of(dtype, 50) * torch.tensor([1, 10, 0.1, 0, 1], dtype=dtype) + 1
    center, covariance = mean_and_covariance(rows)
    norms, spread = norms_and_spread(rows)
    exact = rows.double()
    torch.testing.assert_close(center.double(), exact.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(covariance.double(), torch.cov(exact.T, correction=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norms.double(), exact.norm(dim=1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(spread.double(), exact.std(0, correction=0), rtol=1e-3, atol=1e-3)


def test_normal_draws_have_the_mean_and_covariance_of_the_old_rows() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(500, 4, generator=generator) @ torch.randn(4, 4, generator=generator) + torch.arange(4.0)
    drawn = normal(rows, generator)([[0]] * 40_000)
    scale = rows.std(0).max()
    assert (drawn.mean(0) - rows.mean(0)).abs().max() < 0.03 * scale
    assert (torch.cov(drawn.T) - torch.cov(rows.T)).abs().max() < 0.05 * scale**2


def test_normal_with_fewer_rows_than_columns_stays_in_their_span() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(3, 1, generator=generator) @ torch.randn(1, 20, generator=generator)
    drawn = normal(rows, generator)([[0]] * 100)
    assert torch.linalg.svdvals(drawn)[1] < 0.05 * torch.linalg.svdvals(drawn)[0]
    assert torch.linalg.svdvals(drawn)[0] > 0
