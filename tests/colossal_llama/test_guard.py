"""The guard against plain AdamW: a bad step leaves weights, moments and step count alone, bit for bit."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from colossal_llama.guard import MEMORY, STEPS_TO_LEARN, Guard, RunningLoss

CPU = torch.device("cpu")


class Boosted:
    """What a boosted optimizer looks like to the guard."""

    def __init__(self, optim: torch.optim.Optimizer) -> None:
        self.optim = optim

    def get_grad_norm(self) -> float:
        """As Booster does: a float of the host."""
        grads = [p.grad for group in self.optim.param_groups for p in group["params"]]
        return torch.stack([grad.norm() for grad in grads]).norm().item()


def weights() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, 3, generator=generator), torch.randn(7, generator=generator)]


def make(kind: str, parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    if kind == "fused":
        return torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1, fused=True)
    return torch.optim.RMSprop(parameters, lr=0.1, momentum=0.9)  # stands for one that knows nothing of `found_inf`


def run(kind: str, losses: list[float], guarded: bool, gradients: list[float] | None = None) -> tuple[Any, list[float]]:
    """(weights and state, verdicts) after a step for each loss; a step's gradient is drawn from its number."""
    parameters = [tensor.clone().requires_grad_() for tensor in weights()]
    optimizer = make(kind, parameters)
    guard = Guard(Boosted(optimizer), 2.0, guarded, CPU, RunningLoss())
    verdicts = []
    for number, loss in enumerate(losses):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            if gradients is not None:
                parameter.grad *= gradients[number]
        guard.judge(torch.tensor(loss))
        optimizer.step()
        verdicts.append(guard.verdict(torch.tensor(loss)).item())
        optimizer.zero_grad()
    state = [optimizer.state[parameter] for parameter in parameters]
    return ([parameter.detach() for parameter in parameters], state), verdicts


def assert_same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["fused", "plain"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_loss_leaves_weights_and_moments_alone(kind: str, bad: float) -> None:
    guarded, verdicts = run(kind, [3.0, bad, 3.0], guarded=True)
    assert verdicts == [0, 1, 0]
    parameters = [tensor.clone().requires_grad_() for tensor in weights()]
    optimizer = make(kind, parameters)
    for number in (0, 2):  # as if the second step had never been
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        optimizer.step()
    assert_same(guarded, ([parameter.detach() for parameter in parameters], [optimizer.state[p] for p in parameters]))


@pytest.mark.parametrize("kind", ["fused", "plain"])
@pytest.mark.parametrize("factor", [math.nan, math.inf])
def test_bad_gradient_norm_is_bad_though_the_loss_is_fine(kind: str, factor: float) -> None:
    guarded, verdicts = run(kind, [3.0, 3.0], guarded=True, gradients=[1.0, factor])
    assert verdicts == [0, 1]
    assert all(torch.isfinite(weight).all() for weight in guarded[0])
    assert_same(guarded, run(kind, [3.0], guarded=True)[0])


def test_policy_ignore_judges_and_trains() -> None:
    free, verdicts = run("fused", [3.0, math.nan], guarded=False)
    assert verdicts == [0, 1]
    with pytest.raises(AssertionError):
        assert_same(free, run("fused", [3.0], guarded=False)[0])


def judged(losses: list[float], threshold: float = 2.0, past: RunningLoss | None = None) -> tuple[list[float], Guard]:
    optimizer = make("fused", [torch.zeros(1, requires_grad=True)])
    guard = Guard(Boosted(optimizer), threshold, True, CPU, past or RunningLoss())
    verdicts = []
    for loss in losses:
        optimizer.param_groups[0]["params"][0].grad = torch.ones(1)
        guard.judge(torch.tensor(loss))
        optimizer.step()
        verdicts.append(guard.verdict(torch.tensor(loss)).item())
    return verdicts, guard


def test_leap_above_the_running_mean_is_bad() -> None:
    steady = [5.0 - 0.01 * number for number in range(STEPS_TO_LEARN + 1)]
    assert judged([*steady, 6.7, 6.9, 7.2, 4.8])[0][-4:] == [0, 0, 1, 0]  # the mean is about 4.95 by then


def test_leap_is_not_called_before_the_mean_is_known() -> None:
    assert sum(judged([5.0] * (STEPS_TO_LEARN - 1) + [9.0])[0]) == 0
    assert sum(judged([5.0] * STEPS_TO_LEARN + [9.0])[0]) == 1


def test_threshold_of_zero_looks_for_nan_alone() -> None:
    assert judged([5.0] * 40 + [500.0, math.nan], threshold=0.0)[0][-2:] == [0, 1]


def test_bad_losses_stay_out_of_the_mean_and_it_is_that_of_the_formula() -> None:
    losses = [5.0] * 25 + [50.0, math.nan] + [4.0] * 3
    _, guard = judged(losses)
    weighted_sum = weight = 0.0
    for loss in [5.0] * 25 + [4.0] * 3:
        weighted_sum = MEMORY * weighted_sum + (1 - MEMORY) * loss
        weight = MEMORY * weight + (1 - MEMORY)
    past = guard.running_loss()
    assert (past.weighted_sum, past.weight) == pytest.approx((weighted_sum, weight), rel=1e-12)


def test_a_resumed_guard_judges_as_the_one_before() -> None:
    losses = [5.0 - 0.03 * (number % 7) for number in range(60)]
    whole, guard = judged([*losses, 7.5, 5.0])
    _, first = judged(losses[:31])
    resumed, second = judged([*losses[31:], 7.5, 5.0], past=first.running_loss())
    assert resumed == whole[31:] and sum(whole) == 1
    assert second.running_loss() == guard.running_loss()


@pytest.mark.parametrize("name", ["mixed_precision_mixin", "mix_precision_mixin", "mixed_precision"])
def test_norm_is_that_of_the_gradient_not_of_the_scaled_loss(name: str) -> None:
    parameter = torch.zeros(1, requires_grad=True)
    boosted = Boosted(make("fused", [parameter]))
    setattr(boosted, name, SimpleNamespace(loss_scale=1024.0))
    guard = Guard(boosted, 2.0, True, CPU, RunningLoss())
    parameter.grad = torch.full((1,), 3 * 1024.0)
    guard.judge(torch.tensor(5.0))
    boosted.optim.step()
    assert guard.grad_norm == 3
    guard.judge(torch.tensor(5.0))  # and now the gradients overflow: Booster leaves its own optimizer alone
    assert math.isnan(guard.grad_norm)


def test_a_step_without_any_label_says_nothing_of_the_loss() -> None:
    assert sum(judged([5.0] * STEPS_TO_LEARN + [0.0] * 50 + [6.5, 7.5])[0]) == 1
