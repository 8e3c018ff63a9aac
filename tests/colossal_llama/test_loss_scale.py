"""fp16's loss scale, saved and taken up again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from colossal_llama import host
from colossal_llama.loss_scale import KEEPERS, load_loss_scale, loss_scale_state
from tests.colossal_llama.runs import stopped_copy
from tests.conftest import argv_of, read_metrics


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


def run_fp16(argv: list[str]) -> int:
    """train.py, allowed to compute in fp16 on a CPU: nothing is said of its numbers but that they go on."""
    import train
    from colossal_llama import build

    build.refuse_on_host = lambda precision: None
    return train.main(argv)


@pytest.mark.parametrize("plugin", [{"plugin": "zero2"}, {"plugin": "3d", "zero": 1}], ids=["zero2", "3d"])
def test_a_resumed_fp16_run_goes_on_with_its_scale(
    plugin: dict[str, Any], ranks: Callable[..., list[Any]], flags: dict[str, Any], tmp_path: Path
) -> None:
    own = {**flags, **plugin, "mixed_precision": "fp16", "micro_batch_size": 2, "max_steps": 6, "save_interval": 3}
    whole = tmp_path / "whole"
    assert ranks(run_fp16, 2, argv_of(save_dir=whole, **own)) == [0, 0]
    states = [
        json.loads((whole / f"epoch-0_step-{step}" / "running_states.json").read_text())["loss_scale"]
        for step in (3, 6)
    ]
    fresh = {"scale": 2.0**16, "_growth_step": 0, "_hysteresis_step": 0}
    assert states[0] != fresh, "the case needs a scale that has moved or counted"
    stopped = stopped_copy(whole, tmp_path / "stopped", 3)
    assert ranks(run_fp16, 2, argv_of(save_dir=stopped, **own)) == [0, 0]
    found = json.loads((stopped / "epoch-0_step-6" / "running_states.json").read_text())["loss_scale"]
    assert found == states[1]
    names = ("loss", "grad_norm", "row_chain")
    assert [[step[name] for name in names] for step in read_metrics(stopped)] == [
        [step[name] for name in names] for step in read_metrics(whole)
    ]
