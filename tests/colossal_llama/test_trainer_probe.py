"""What the trainer says of its model, under the plugins, against plain transformers on the weights that it saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from colossal_llama.export import TOLERANCE
from colossal_llama.probe import Probe, difference, model_probe, probe_row, read_probe
from tests.colossal_llama.runs import ROW_LENGTH, weights_of
from tests.conftest import argv_of, run_train

THREE_D = {"plugin": "3d", "zero": 0}
CASES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "ddp": (1, "bf16", {"plugin": "ddp", "micro_batch_size": 2}),
    "gemini_auto": (2, "bf16", {"plugin": "gemini_auto"}),
    "tp and pp": (4, "fp32", {**THREE_D, "tp": 2, "pp": 2, "micro_batch_size": 2, "accumulation_steps": 2}),
    "sp all_to_all": (2, "fp32", {**THREE_D, "sp": 2, "sp_mode": "all_to_all"}),
}


def run_watched(argv: list[str]) -> int:
    """train.py, but the probe fails the run if it leaves a trace in the model or in the random numbers."""
    from colossal_llama import saving

    probe = saving.trainer_probe

    def watched(stepper: Any, *others: Any) -> Probe | None:
        assert stepper.model.training, "an evaluation before has not tidied up"
        before = traces(stepper)
        told = probe(stepper, *others)
        after = traces(stepper)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before), "the probe has left a trace"
        return told

    saving.trainer_probe = watched
    return run_train(argv)


def traces(stepper: Any) -> dict[str, torch.Tensor]:
    """All that a forward pass could change."""
    model = stepper.model
    found = {f"{name}, training": torch.tensor(module.training) for name, module in model.named_modules()}
    for name, parameter in model.named_parameters():
        if type(parameter.data) is torch.Tensor and "gemini" not in type(stepper.booster.plugin).__name__.lower():
            found[name] = parameter.detach().clone()
            found[f"{name}, gradient"] = torch.zeros(0) if parameter.grad is None else parameter.grad.clone()
    return found | {"random": torch.get_rng_state(), "grad": torch.tensor(torch.is_grad_enabled())}


def assert_is_that_of_the_weights(checkpoint: Path, precision: str) -> None:
    told = read_probe(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint / "modeling", torch_dtype="auto").eval()
    found = difference(told, model_probe(model, told.input_ids, told.positions))
    assert found.relative < TOLERANCE[precision] / 10, found
    row = probe_row(AutoTokenizer.from_pretrained(checkpoint / "modeling"), ROW_LENGTH)
    assert torch.equal(told.input_ids, row)
    assert told.nats.shape == (ROW_LENGTH - 1,)
    assert told.nats.gt(0).all()
    assert told.logits.shape == (8, model.config.vocab_size)


@pytest.mark.parametrize("name", CASES)
def test_trainer_says_what_its_saved_weights_say(
    name: str, ranks: Callable[..., list[Any]], flags: dict[str, Any], tmp_path: Path
) -> None:
    world_size, precision, more = CASES[name]
    settings = {**flags, **more, "mixed_precision": precision, "max_steps": 2, "warmup_steps": 1}
    argv = argv_of(save_dir=tmp_path / "run", save_interval=1, **settings)
    assert ranks(run_watched, world_size, argv) == [0] * world_size
    for step in (1, 2):
        assert_is_that_of_the_weights(tmp_path / "run" / f"epoch-0_step-{step}", precision)
    first, last = (read_probe(tmp_path / "run" / f"epoch-0_step-{step}") for step in (1, 2))
    assert difference(first, last).relative > TOLERANCE["fp32"], "a step that changes nothing proves nothing"


def run_unprobed(argv: list[str]) -> int:
    from colossal_llama import saving

    saving.trainer_probe = lambda *_: None
    return run_train(argv)


def test_training_does_not_notice(ranks: Callable[..., list[Any]], flags: dict[str, Any], tmp_path: Path) -> None:
    world_size, precision, more = CASES["gemini_auto"]
    settings = {**flags, **more, "mixed_precision": precision, "max_steps": 2, "warmup_steps": 1, "save_interval": 1}
    for function in (run_train, run_unprobed):
        argv = argv_of(save_dir=tmp_path / function.__name__, **settings)
        assert ranks(function, world_size, argv) == [0] * world_size
    ours, theirs = (weights_of(tmp_path / function.__name__ / "modeling") for function in (run_train, run_unprobed))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_run_of_two_ranks_leaves_a_probe_in_every_checkpoint(zero2_run: Path) -> None:
    checkpoints = sorted(zero2_run.glob("epoch-*"))
    assert len(checkpoints) == 2
    for checkpoint in checkpoints:
        assert_is_that_of_the_weights(checkpoint, "bf16")
