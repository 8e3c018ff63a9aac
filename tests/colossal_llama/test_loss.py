"""The summed cross entropy and its gradient against transformers and a loop over tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers.loss.loss_utils import ForCausalLMLoss

from colossal_llama.loss import cross_entropy_sum, next_token_targets

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


def test_targets_are_the_labels_one_earlier() -> None:
    labels = torch.tensor([[5, 6, -100, 8], [1, 2, 3, 4]])
    assert next_token_targets(labels).tolist() == [[6, -100, 8, -100], [2, 3, 4, -100]]
    assert next_token_targets(labels, 0, 2).tolist() == [[6, -100], [2, 3]]
    assert next_token_targets(labels, 1, 2).tolist() == [[8, -100], [4, -100]]


def test_sum_and_gradient_are_those_of_transformers() -> None:
    logits, labels = example()
    own = cross_entropy_sum(logits, next_token_targets(labels))
    (own_gradient,) = torch.autograd.grad(own, logits)
    theirs = ForCausalLMLoss(logits, labels, VOCABULARY, num_items_in_batch=1)
    (their_gradient,) = torch.autograd.grad(theirs, logits)
    assert own.item() == pytest.approx(loop_over_tokens(logits, labels), rel=1e-6)
    torch.testing.assert_close(own, theirs)
    torch.testing.assert_close(own_gradient, their_gradient)


def test_no_label_gives_zero_and_no_gradient() -> None:
    logits, labels = example()
    loss = cross_entropy_sum(logits, next_token_targets(torch.full_like(labels, -100)))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == 0
    assert gradient.count_nonzero() == 0  # NaN would count


@pytest.mark.parametrize("sequence_size", [2, 4, 8])
def test_slices_of_the_sequence_sum_to_the_whole(sequence_size: int) -> None:
    logits, labels = example()
    parts = [
        cross_entropy_sum(part, next_token_targets(labels, rank, sequence_size)).item()
        for rank, part in enumerate(logits.chunk(sequence_size, dim=1))
    ]
    assert sum(parts) == pytest.approx(loop_over_tokens(logits, labels), rel=1e-6)


def test_bf16_logits_are_summed_in_fp32() -> None:
    logits, labels = example(torch.bfloat16)
    loss = cross_entropy_sum(logits, next_token_targets(labels))
    assert loss.dtype is torch.float32
    assert loss.item() == pytest.approx(loop_over_tokens(logits, labels), rel=1e-6)


def loss_of_a_slice(dtype: torch.dtype, labelled: bool) -> tuple[float, torch.Tensor]:
    """Loss and gradient of this rank's slice of the vocabulary."""
    dist.init_process_group("gloo")
    logits, labels = example(dtype)
    if not labelled:
        labels.fill_(-100)
    own = logits.detach().chunk(dist.get_world_size(), dim=-1)[dist.get_rank()].clone().requires_grad_()
    loss = cross_entropy_sum(own, next_token_targets(labels), dist.group.WORLD)
    (gradient,) = torch.autograd.grad(loss, own)
    return loss.item(), gradient.float().numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vocabulary_over_two_ranks_equals_the_whole(ranks: Callable[..., list[Any]], dtype: torch.dtype) -> None:
    logits, labels = example(dtype)
    whole = cross_entropy_sum(logits, next_token_targets(labels))
    (gradient,) = torch.autograd.grad(whole, logits)
    results = ranks(loss_of_a_slice, 2, dtype, True)
    assert [loss for loss, _ in results] == pytest.approx([loop_over_tokens(logits, labels)] * 2, rel=1e-6)
    joined = torch.cat([torch.from_numpy(part) for _, part in results], dim=-1)
    torch.testing.assert_close(joined, gradient.float(), rtol=1e-2 if dtype is torch.bfloat16 else 1e-5, atol=1e-6)


def test_no_label_over_two_ranks_gives_zero_and_no_gradient(ranks: Callable[..., list[Any]]) -> None:
    for loss, gradient in ranks(loss_of_a_slice, 2, torch.float32, False):
        assert loss == 0
        assert not gradient.any()
