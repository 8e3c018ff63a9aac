"""fp16's loss scale, saved and taken up again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from colossal_llama import host
from colossal_llama.loss_scale import KEEPERS, load_loss_scale, loss_scale_state


def scaler_of(**settings: Any) -> Any:
    host.install_if_needed()
    from colossalai.amp.naive_amp.grad_scaler import DynamicGradScaler

    return DynamicGradScaler(initial_scale=2**10, growth_interval=5, hysteresis=2, **settings)


@pytest.mark.parametrize("keeper", KEEPERS)
def test_a_scale_goes_on_as_colossalai_s_own_would(keeper: str) -> None:
    """An undisturbed scaler beside one that is saved and loaded after every step."""
    overflows = [False, True, False, False, True, *[False] * 12, True, True, *[False] * 7]
    undisturbed, current = scaler_of(), scaler_of()
    scales = set()
    for overflow in overflows:
        undisturbed.update(overflow)
        current.update(overflow)
        state = loss_scale_state(SimpleNamespace(**{keeper: SimpleNamespace(grad_scaler=current)}))
        current = scaler_of()
        load_loss_scale(SimpleNamespace(**{keeper: SimpleNamespace(grad_scaler=current)}), state)
        assert torch.equal(current.scale, undisturbed.scale)
        scales.add(current.scale.item())
    assert len(scales) > 2, "the scale never moved"


def test_without_a_loss_scale_nothing_is_saved_or_changed() -> None:
    bf16 = SimpleNamespace(mixed_precision_mixin=SimpleNamespace())
    assert loss_scale_state(bf16) == {} == loss_scale_state(SimpleNamespace(mixed_precision=None))
    load_loss_scale(bf16, {"scale": 4.0, "_growth_step": 1, "_hysteresis_step": 0})
    current = scaler_of()
    load_loss_scale(SimpleNamespace(mixed_precision=SimpleNamespace(grad_scaler=current)), {})
    assert current.scale.item() == 2**10
