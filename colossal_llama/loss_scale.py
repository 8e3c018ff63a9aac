"""The loss scale of fp16, which no plugin of Booster saves: plain numbers for a checkpoint, and back."""

from __future__ import annotations

from typing import Any

KEEPERS = ("mixed_precision_mixin", "mix_precision_mixin", "mixed_precision")
"""What ZeRO's, gemini's and 3d's optimizers call the keeper of their loss scale."""
COUNTERS = ("_growth_step", "_hysteresis_step")


def loss_scale_state(optimizer: Any) -> dict[str, float]:
    """Scale and counters of a boosted optimizer; empty where it has none (all but fp16). Waits for the device."""
    scaler = _scaler(optimizer)
    if scaler is None:
        return {}
    return {"scale": scaler.scale.item(), **{name: getattr(scaler, name) for name in COUNTERS}}


def load_loss_scale(optimizer: Any, state: dict[str, float]) -> None:
    """Take over what `loss_scale_state` gave; nothing if either side has no loss scale."""
    scaler = _scaler(optimizer)
    if scaler is None or not state:
        return
    scaler._scale.fill_(state["scale"])
    for name in COUNTERS:
        setattr(scaler, name, int(state[name]))


def _scaler(optimizer: Any) -> Any:
    keepers = (getattr(optimizer, name, None) for name in KEEPERS)
    scalers = (getattr(keeper, "grad_scaler", None) for keeper in keepers)
    return next((scaler for scaler in scalers if scaler is not None), None)
