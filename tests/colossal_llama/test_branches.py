"""An owner goes back to an older checkpoint and on from there: the branch that is left does not count any more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.conftest import read_metrics

Train = Callable[..., list[dict[str, Any]]]


def test_a_damaged_checkpoint_gives_way_to_the_one_it_came_from(
    train: Train, flags: dict[str, Any], tmp_path: Path
) -> None:
    run, own = tmp_path / "run", {**flags, "micro_batch_size": 2, "warmup_steps": 0}
    train(1, run, **own, max_steps=6, save_interval=2)
    (run / "latest").write_text("epoch-0_step-2\n")
    expected = train(1, run, **{**own, "lr": 1e-4}, max_steps=7, save_interval=5)
    assert sorted(path.name for path in run.glob("epoch-*")) == [f"epoch-0_step-{step}" for step in (2, 4, 5, 6, 7)]
    (run / "latest").write_text("epoch-0_step-5\n")
    weights = next((run / "epoch-0_step-5" / "modeling").glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    # from step 2 once more, not from step 4 of the other learning rate
    assert [step["loss"] for step in train(1, run, **{**own, "lr": 1e-4}, max_steps=7, save_interval=5)] == [
        step["loss"] for step in expected
    ]
    train(1, run, **{**own, "lr": 1e-4}, max_steps=9, save_interval=1, keep_checkpoints=2)
    assert sorted(path.name for path in run.glob("epoch-*")) == ["epoch-0_step-8", "epoch-0_step-9"]
    assert len(read_metrics(run)) == 9
