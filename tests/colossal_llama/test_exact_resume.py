"""N + M steps are N steps, the end of all processes, and M steps by the same command line: bit for bit.

Every configuration of docs/parity.md, with accumulation, in a staged schedule over two epochs. What always runs resumes
once; `make soak` resumes at all turning points, in every precision, and writes docs/exact_resume.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.colossal_llama.parity import CONFIGURATIONS, Configuration
from tests.colossal_llama.runs import ROW_LENGTH, stopped_copy
from tests.colossal_llama.soak_tables import record_row

Train = Callable[..., list[dict[str, Any]]]
ROWS_PER_STEP = 32
"""Of 130 rows: the first epoch ends inside step 5 of 9."""
STAGE_STEPS, LAST = 3, 9
QUICK_STEPS = (2, 6)
"""Inside the first stage and epoch; inside the second of both."""
QUICK = {
    "ddp": "bf16",
    "zero2": "fp32",
    "gemini": "bf16",
    "3d dp=2 zero 1": "bf16",
    "3d tp=2": "fp32",
    "3d pp=2": "bf16",
}
"""What always runs, by the name of its configuration: zero2_cpu and gemini_auto save as their siblings do."""
SOAK_STEPS = (1, 3, 5, 8)
"""Inside the first stage, at its end, behind the epoch's end, before the last step."""
TIMES = ("step_seconds", "tokens_per_second", "positions_per_second", "memory_bytes", "mfu")
DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "exact_resume.md"
SOAK = [(one, precision) for one in CONFIGURATIONS for precision in one.precisions]


def flags_of(configuration: Configuration, precision: str) -> dict[str, Any]:
    """Rows of a rank in two micro-batches or more, whatever the layout."""
    rows = ROWS_PER_STEP // configuration.dp_size
    return {
        **configuration.flags,
        "mixed_precision": precision,
        "micro_batch_size": rows // 2,
        "accumulation_steps": 2,
        "stages": [f"embeds,steps={STAGE_STEPS},lr=1e-3", "all,lr=2e-3"],
        "num_epochs": 2,
        "max_length": ROW_LENGTH,
        "save_interval": 1,
        "log_interval": 4,
    }


def figures(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Everything that metrics.jsonl has of a step but how long it took."""
    return [{name: value for name, value in step.items() if name not in (*TIMES, "categories")} for step in steps]


def resumed_alike(
    train: Train, configuration: Configuration, flags: dict[str, Any], directory: Path, after: tuple[int, ...]
) -> list[int]:
    """The steps of `after` from which a run does not end as an undisturbed one."""
    whole = directory / "whole"
    expected = train(configuration.world_size, whole, **flags)
    assert [step["step"] for step in expected] == list(range(1, LAST + 1))
    assert [step["stage"] for step in expected] == [1] * STAGE_STEPS + [2] * (LAST - STAGE_STEPS)
    assert (expected[3]["epoch"], expected[4]["epoch"], expected[-1]["epoch"]) == (0, 1, 2)
    different = []
    for step in after:
        stopped = stopped_copy(whole, directory / f"after-{step}", step)
        found = train(configuration.world_size, stopped, **flags)
        same = figures(found) == figures(expected)
        for left, right in ((whole, stopped), (whole / f"epoch-2_step-{LAST}", stopped / f"epoch-2_step-{LAST}")):
            same &= (left / "modeling" / "model.safetensors").exists() or "pp" in flags
            for path in sorted((left / "modeling").glob("*.safetensors")):
                same &= path.read_bytes() == (right / "modeling" / path.name).read_bytes()
        for path in sorted((whole / f"epoch-2_step-{LAST}" / "optimizer").iterdir()):
            same &= path.read_bytes() == (stopped / f"epoch-2_step-{LAST}" / "optimizer" / path.name).read_bytes()
        different += [] if same else [step]
    return different


@pytest.mark.parametrize(("name", "precision"), QUICK.items(), ids=[name.replace(" ", "-") for name in QUICK])
def test_a_killed_run_ends_as_an_undisturbed_one(
    name: str, precision: str, train: Train, tiny_model_dir: Path, tiny_bins_dir: Path, tmp_path: Path
) -> None:
    configuration = next(one for one in CONFIGURATIONS if one.name == name)
    flags = flags_of(configuration, precision)
    inputs = {"pretrained": tiny_model_dir, "dataset": tiny_bins_dir}
    after = QUICK_STEPS[list(QUICK).index(name) % len(QUICK_STEPS)]
    assert resumed_alike(train, configuration, {**inputs, **flags}, tmp_path, (after,)) == []


@pytest.mark.soak
@pytest.mark.parametrize(("configuration", "precision"), SOAK, ids=[f"{one.name} {p}" for one, p in SOAK])
def test_soak(
    configuration: Configuration,
    precision: str,
    train: Train,
    tiny_model_dir: Path,
    tiny_bins_dir: Path,
    tmp_path: Path,
) -> None:
    inputs = {"pretrained": tiny_model_dir, "dataset": tiny_bins_dir}
    flags = {**inputs, **flags_of(configuration, precision)}
    different = resumed_alike(train, configuration, flags, tmp_path, SOAK_STEPS)
    record(configuration.name, precision, different)
    assert different == []


@pytest.mark.parametrize("plugin", [{"plugin": "zero2"}, {"plugin": "gemini"}, {"plugin": "3d", "tp": 2, "zero": 0}])
def test_dropout_goes_on_too(
    plugin: dict[str, Any], train: Train, tiny_model_dir: Path, tiny_bins_dir: Path, tmp_path: Path
) -> None:
    """Random numbers of a step belong to the step."""
    model = tmp_path / "model"
    model.mkdir()
    for path in tiny_model_dir.iterdir():
        if path.name not in ("config.json", "manifest.json"):
            (model / path.name).symlink_to(path)
    config = json.loads((tiny_model_dir / "config.json").read_text())
    flags = {**plugin, "pretrained": model, "dataset": tiny_bins_dir, "max_length": ROW_LENGTH, "save_interval": 2}
    flags |= {"micro_batch_size": 2, "max_steps": 4, "warmup_steps": 0}
    losses = {}
    for dropout in (0.0, 0.5):
        (model / "config.json").write_text(json.dumps({**config, "attention_dropout": dropout}))
        whole = train(2, tmp_path / f"whole-{dropout}", **flags)
        stopped = stopped_copy(tmp_path / f"whole-{dropout}", tmp_path / f"stopped-{dropout}", 2)
        assert figures(train(2, stopped, **flags)) == figures(whole)
        losses[dropout] = [step["loss"] for step in whole]
    assert losses[0.0] != losses[0.5], "nothing was dropped"


def test_two_ranks_drop_differently_and_a_step_has_numbers_of_its_own() -> None:
    import torch

    from colossal_llama.randomness import seed_step

    def drawn(*place: int) -> list[float]:
        seed_step(*place)
        return torch.rand(4).tolist()

    places = [(42, 0, 0), (42, 0, 1), (42, 1, 0), (43, 0, 0)]
    assert len({tuple(drawn(*place)) for place in places}) == len(places)
    assert drawn(42, 0, 1) == drawn(42, 0, 1)


def record(name: str, precision: str, different: list[int]) -> None:
    """Write the outcome into docs/exact_resume.md."""
    outcome = "the same bits" if not different else f"another end after step {', '.join(map(str, different))}"
    keys = [f"{one.name} | {precision}" for one, precision in SOAK]
    record_row(DOCUMENT, HEAD, keys, f"{name} | {precision}", outcome)


STEPS_SET_BACK_TO = ", ".join(map(str, SOAK_STEPS))
HEAD = f"""# Set back and resumed

Written by `make soak` (tests/colossal_llama/test_exact_resume.py). Each configuration of [parity.md](parity.md)
trains {LAST} steps of {ROWS_PER_STEP} rows in two micro-batches a rank, {STAGE_STEPS} of them the embeddings alone,
through two epochs of 130 rows. Then its folder is set back to the checkpoint after step {STEPS_SET_BACK_TO}
(in a stage, between the stages, behind the epoch's end, before the last step), the later lines of metrics.jsonl spoilt,
and the same command started in new processes. The same bits: every figure of metrics.jsonl but times (loss, gradient
norm, row chain, ...), the last checkpoint's weights and optimizer files, and the finished model.

Not so, in the last bits of fp32, was what torch's DDP averages over more than two ranks (ddp and 3d with `--zero 0` on
four, seen in rehearsals): it shares out its buckets anew after its first step, so gloo adds in another order.

| configuration | precision | the end of each resumed run |
|---|---|---|
"""
