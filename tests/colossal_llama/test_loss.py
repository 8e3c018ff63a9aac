"""The summed cross entropy and its gradients against plain PyTorch, transformers and a loop over tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.loss.loss_utils import ForCausalLMLoss

from colossal_llama import loss as loss_module
from colossal_llama.loss import linear_cross_entropy, next_token_targets

ROWS, LENGTH, VOCABULARY = 3, 8, 20


def example(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [rows, length, vocabulary] with a gradient, labels [rows, length] with some masked."""
    generator = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(ROWS, LENGTH, VOCABULARY, generator=generator)
    labels = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator)
    labels[0, :3] = -100
    labels[1, -1] = -100
    return logits.to(dtype).requires_grad_(), labels


def loop_over_tokens(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """-log p of every labelled token but a row's first, in fp64."""
    logarithms = logits.detach().double().log_softmax(-1)
    return -sum(
        logarithms[row, position - 1, labels[row, position]].item()
        for row in range(ROWS)
        for position in range(1, LENGTH)
        if labels[row, position] != -100
    )


def sum_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The loss of hidden states that are logits already."""
    return linear_cross_entropy(logits, torch.eye(VOCABULARY, dtype=logits.dtype), targets)[0]


def test_targets_are_the_labels_one_earlier() -> None:
    labels = torch.tensor([[5, 6, -100, 8], [1, 2, 3, 4]])
    assert next_token_targets(labels).tolist() == [[6, -100, 8, -100], [2, 3, 4, -100]]
    assert next_token_targets(labels, 0, 2).tolist() == [[6, -100], [2, 3]]
    assert next_token_targets(labels, 1, 2).tolist() == [[8, -100], [4, -100]]


def test_sum_and_gradient_are_those_of_transformers() -> None:
    logits, labels = example()
    own = sum_of(logits, next_token_targets(labels))
    (own_gradient,) = torch.autograd.grad(own, logits)
    theirs = ForCausalLMLoss(logits, labels, VOCABULARY, num_items_in_batch=1)
    (their_gradient,) = torch.autograd.grad(theirs, logits)
    assert own.item() == pytest.approx(loop_over_tokens(logits, labels), rel=1e-6)
    torch.testing.assert_close(own, theirs)
    torch.testing.assert_close(own_gradient, their_gradient)


@pytest.mark.parametrize("sequence_size", [2, 4, 8])
def test_slices_of_the_sequence_sum_to_the_whole(sequence_size: int) -> None:
    logits, labels = example()
    parts = [
        sum_of(part, next_token_targets(labels, rank, sequence_size)).item()
        for rank, part in enumerate(logits.chunk(sequence_size, dim=1))
    ]
    assert sum(parts) == pytest.approx(loop_over_tokens(logits, labels), rel=1e-6)


# --- the output matrix and the cross entropy in one ---


def linear_example(
    rows: int = ROWS,
    length: int = LENGTH,
    hidden_size: int = 6,
    vocabulary: int = VOCABULARY,
    dtype: torch.dtype = torch.float64,
    masked: float = 0.3,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden [rows, length, H] and weight [V, H] with gradients, targets [rows, length] of which a share is masked."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, length, hidden_size, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(vocabulary, hidden_size, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(vocabulary, (rows, length), generator=generator)
    targets[torch.rand(rows, length, generator=generator) < masked] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), targets


def plain_logits(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    logits = hidden @ weight.T
    return logits if logits.dtype is torch.float64 else logits.float()


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
    """What PyTorch makes of all logits at once."""
    logits = plain_logits(hidden, weight).flatten(0, 1)
    return F.cross_entropy(logits, targets.flatten(), ignore_index=-100, reduction=reduction)


def assert_is_plain(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, tolerance: float, first: int = 0, **more: Any
) -> None:
    """Loss, nats and both gradients, with the weight's old rows at exactly 0; the loss is scaled as in a step."""
    own, scores = linear_cross_entropy(hidden, weight, targets, first_trained_row=first, **more)
    own_gradients = torch.autograd.grad(own * 0.37, (hidden, weight))
    expected = plain(hidden, weight, targets, "sum")
    gradients = torch.autograd.grad(expected * 0.37, (hidden, weight))
    close = {"rtol": tolerance, "atol": tolerance}
    torch.testing.assert_close(own, expected, **close)
    torch.testing.assert_close(scores.nats.flatten(), plain(hidden, weight, targets, "none").detach(), **close)
    assert not scores.nats.requires_grad
    torch.testing.assert_close(own_gradients[0], gradients[0], **close)
    torch.testing.assert_close(own_gradients[1][first:], gradients[1][first:], **close)
    assert not own_gradients[1][:first].any()


@given(
    rows=st.integers(1, 3),
    length=st.integers(1, 9),
    hidden_size=st.integers(1, 5),
    vocabulary=st.integers(1, 12),
    masked=st.sampled_from([0.0, 0.5, 1.0]),
    chunk_tokens=st.sampled_from([None, 1, 2, 3, 7, 100]),
    first=st.integers(0, 12),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_any_shape_mask_and_chunk_gives_what_plain_pytorch_gives(
    rows: int, length: int, hidden_size: int, vocabulary: int, masked: float, chunk_tokens: int | None, first: int,
    seed: int,
) -> None:  # fmt: skip
    example = linear_example(rows, length, hidden_size, vocabulary, masked=masked, seed=seed)
    assert_is_plain(*example, 1e-12, min(first, vocabulary), chunk_tokens=chunk_tokens)


@pytest.mark.parametrize("rows_at_once", [1, 7, 1000])
def test_fp32_is_exact_to_rounding_however_the_weight_is_cut(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "WEIGHT_ROWS_AT_ONCE", rows_at_once)
    example = linear_example(2, 50, 16, 37, torch.float32)
    assert_is_plain(*example, 2e-5, chunk_tokens=9)
    assert linear_cross_entropy(*example)[0].dtype is torch.float32


def relative_error(values: torch.Tensor, exact: torch.Tensor) -> float:
    return ((values.double() - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("chunk_tokens", [4, 1000])
def test_bf16_is_as_exact_as_plain_bf16_whatever_the_number_of_chunks(chunk_tokens: int) -> None:
    hidden, weight, targets = linear_example(2, 600, 16, 50, torch.bfloat16, masked=0.1)
    exact_inputs = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    exact_loss = plain(*exact_inputs, targets, "sum")
    exact = torch.autograd.grad(exact_loss, exact_inputs)
    theirs = torch.autograd.grad(plain(hidden, weight, targets, "sum"), (hidden, weight))
    loss, _ = linear_cross_entropy(hidden, weight, targets, chunk_tokens=chunk_tokens)
    own = torch.autograd.grad(loss, (hidden, weight))
    assert loss.dtype is torch.float32
    assert loss.item() == pytest.approx(exact_loss.item(), rel=1e-3)
    for own_one, their_one, exact_one in zip(own, theirs, exact, strict=True):
        assert own_one.dtype is torch.bfloat16
        assert relative_error(own_one, exact_one) < 1.5 * relative_error(their_one, exact_one)


def test_under_autocast_fp32_weights_are_multiplied_in_bf16_and_their_gradient_is_fp32() -> None:
    hidden, weight, targets = linear_example(2, 40, 16, 50, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        own, _ = linear_cross_entropy(hidden, weight, targets)
        expected = F.cross_entropy(F.linear(hidden, weight).flatten(0, 1).float(), targets.flatten(), reduction="sum")
    assert own.item() == pytest.approx(expected.item(), rel=1e-5)
    assert own.item() != pytest.approx(plain(hidden, weight, targets, "sum").item(), rel=1e-7)
    gradients = torch.autograd.grad(own, (hidden, weight)), torch.autograd.grad(expected, (hidden, weight))
    for own_one, their_one in zip(*gradients, strict=True):
        assert own_one.dtype is torch.float32
        assert relative_error(own_one, their_one.double()) < 1e-2


def test_no_target_gives_zero_and_gradients_of_zero() -> None:
    hidden, weight, targets = linear_example(masked=1.0)
    loss, scores = linear_cross_entropy(hidden, weight, targets, with_accuracy=True)
    assert loss.item() == 0
    assert scores.correct is not None
    zeros = [*torch.autograd.grad(loss, (hidden, weight)), scores.nats, scores.correct]
    assert [tensor.count_nonzero().item() for tensor in zeros] == [0, 0, 0, 0]  # NaN would count


def test_huge_logits_stay_finite() -> None:
    hidden, weight, targets = linear_example()
    with torch.no_grad():
        weight *= 1e4
    assert_is_plain(hidden, weight, targets, 1e-9)


def test_correct_is_where_the_first_largest_logit_is_the_target() -> None:
    hidden, weight, targets = linear_example(4, 40, vocabulary=6)
    with torch.no_grad():
        weight[4] = weight[1]  # equally likely ones
        targets[0] = hidden[0].matmul(weight.T).argmax(-1)
        loss, scores = linear_cross_entropy(hidden, weight, targets, with_accuracy=True, chunk_tokens=7)
        expected = (hidden @ weight.T).argmax(-1) == targets
    assert scores.correct is not None and scores.correct.equal(expected)
    assert 40 <= expected.sum() < (targets != -100).sum()
    assert loss.item() == pytest.approx(plain(hidden, weight, targets, "sum").item(), rel=1e-12)
    assert linear_cross_entropy(hidden, weight, targets)[1].correct is None


def test_only_what_trains_gets_a_gradient() -> None:
    hidden, weight, targets = linear_example()
    for inputs in ((hidden, weight.detach()), (hidden.detach(), weight)):
        linear_cross_entropy(*inputs, targets)[0].backward()
    gradients = torch.autograd.grad(plain(hidden, weight, targets, "sum"), (hidden, weight))
    torch.testing.assert_close((hidden.grad, weight.grad), gradients)


def test_going_backward_twice_is_refused_not_wrong() -> None:
    loss, _ = linear_cross_entropy(*linear_example())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation gives, and counts matrix products."""

    numel = num_products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.num_products += func is torch.ops.aten.mm.default
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_of_tokens_times_vocabulary_exists(dtype: torch.dtype) -> None:
    hidden, weight, targets = linear_example(2, 100, 4, 500, dtype, masked=0)
    with LargestTensor() as largest:
        linear_cross_entropy(hidden, weight, targets, chunk_tokens=10)[0].backward()
    assert largest.numel == 10 * 500
    with LargestTensor() as largest:
        plain(hidden, weight, targets, "sum").backward()
    assert largest.numel == 200 * 500


def test_chunks_follow_the_vocabulary_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_LOGITS_BYTES", 4 * 500 * 20)
    hidden, weight, targets = linear_example(2, 100, 4, 500, torch.float32, masked=0)
    with LargestTensor() as largest:
        linear_cross_entropy(hidden, weight, targets)
    assert largest.numel == 20 * 500


@pytest.mark.parametrize(("trains_hidden", "trains_weight"), [(True, True), (True, False), (False, True)])
def test_no_matrix_product_is_made_for_nobody(trains_hidden: bool, trains_weight: bool) -> None:
    hidden, weight, targets = linear_example(2, 10, masked=0)
    hidden.requires_grad_(trains_hidden)
    weight.requires_grad_(trains_weight)
    with LargestTensor() as training:
        linear_cross_entropy(hidden, weight, targets, chunk_tokens=10)[0].backward()
    assert training.num_products == 2 * (1 + trains_hidden + trains_weight)
    with torch.no_grad(), LargestTensor() as evaluating:
        linear_cross_entropy(hidden, weight, targets, chunk_tokens=10)
    assert evaluating.num_products == 2


def linear_loss_of_a_slice(masked: float, first: int) -> tuple[Any, ...]:
    """Loss, nats, correct, hidden's gradient and that of this rank's rows of the weight."""
    dist.init_process_group("gloo")
    hidden, weight, targets = linear_example(3, 20, vocabulary=24, masked=masked)
    targets[targets >= 0] = targets[targets >= 0] // 3  # many right ones on the first slices
    own = weight.detach().chunk(dist.get_world_size())[dist.get_rank()].clone().requires_grad_()
    with torch.no_grad():
        _, scores = linear_cross_entropy(hidden, own, targets, dist.group.WORLD, with_accuracy=True, chunk_tokens=7)
        assert scores.correct is not None
    loss, trained = linear_cross_entropy(hidden, own, targets, dist.group.WORLD, first, chunk_tokens=7)
    assert trained.nats.equal(scores.nats)
    gradients = torch.autograd.grad(loss * 0.37, (hidden, own))
    return loss.item(), *[tensor.numpy() for tensor in (scores.nats, scores.correct, *gradients)]


@pytest.mark.parametrize(("world_size", "masked", "first"), [(2, 0.3, 0), (2, 1.0, 0), (4, 0.3, 8)])
def test_slices_of_the_vocabulary_give_what_the_whole_gives(
    ranks: Callable[..., list[Any]], world_size: int, masked: float, first: int
) -> None:
    hidden, weight, targets = linear_example(3, 20, vocabulary=24, masked=masked)
    targets[targets >= 0] = targets[targets >= 0] // 3
    expected = plain(hidden, weight, targets, "sum")
    gradients = torch.autograd.grad(expected * 0.37, (hidden, weight))
    gradients[1][:first] = 0
    correct = (hidden @ weight.T).argmax(-1) == targets
    results = ranks(linear_loss_of_a_slice, world_size, masked, first)
    for loss, nats, own_correct, hidden_gradient, _ in results:
        assert loss == pytest.approx(expected.item(), rel=1e-12)
        torch.testing.assert_close(torch.from_numpy(nats).flatten(), plain(hidden, weight, targets, "none").detach())
        torch.testing.assert_close(torch.from_numpy(hidden_gradient), gradients[0])
        assert torch.from_numpy(own_correct).equal(correct)
    rows = torch.cat([torch.from_numpy(result[-1]) for result in results])
    torch.testing.assert_close(rows, gradients[1])
    assert not rows[:first].any()
