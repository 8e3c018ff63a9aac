"""What a run that goes on is asked to do otherwise: which flags are compared, how it is said, what is refused."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.changes import ADAPTER, BY_CONTENT, PLACES, changed_figures, changed_flags, refusal
from colossal_llama.config import TrainConfig
from tests.colossal_llama.test_config import EVERY_FLAG

CONFIG = TrainConfig(pretrained=Path("m"), dataset=[Path("d")])
LORA = replace(CONFIG, lora_rank=4)


def differences(old: TrainConfig, new: TrainConfig, trained: str = "all") -> list[str]:
    return [f"{change}: {change.verdict}" for change in changed_flags(old.as_json(), new.as_json(), trained)]


def test_same_flags_are_no_change() -> None:
    assert differences(CONFIG, CONFIG) == []
    assert differences(LORA, LORA, "lora") == []


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"lr": 1e-4}, "--lr 0.0003 -> 0.0001"),
        ({"embeds_lr": 1e-4}, "--embeds_lr None -> 0.0001"),
        ({"num_epochs": 3}, "--num_epochs 1 -> 3"),
        ({"plugin": "zero2"}, "--plugin gemini -> zero2"),
        ({"document_mask": True}, "--document_mask False -> True"),
        ({"eval_dataset": ["zh=a", "en=b"]}, "--eval_dataset none -> zh=a en=b"),
        ({"time_limit": "4h"}, "--time_limit None -> 4h"),
    ],
)
def test_a_change_that_takes_effect_is_said_as_old_and_new(flags: dict[str, Any], line: str) -> None:
    assert differences(CONFIG, replace(CONFIG, **flags)) == [f"{line}: takes effect"]


def test_every_flag_but_those_that_are_compared_by_content_is_compared() -> None:
    """A flag that is added to train.py has to be placed."""
    config = replace(LORA, lora_alpha=2.0).as_json()  # left away it would follow the rank
    for name in config:
        other = {**config, name: EVERY_FLAG.get(name, "elsewhere")}
        found = [change.flag for change in changed_flags(config, other, "lora")]
        assert found == ([] if name in (*PLACES, *BY_CONTENT) else [f"--{name}"]), name
    assert {*PLACES, *BY_CONTENT, *ADAPTER} <= {field.name for field in dataclasses.fields(TrainConfig)}


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"lora_rank": 8, "lora_alpha": 8.0}, "--lora_rank 4 -> 8"),
        ({"lora_alpha": 4.0}, "--lora_alpha 8 -> 4"),
        (
            {"lora_targets": ["q_proj"]},
            "--lora_targets down_proj gate_proj k_proj o_proj q_proj up_proj v_proj -> q_proj",
        ),
        ({"lora_modules_to_save": []}, "--lora_modules_to_save embed_tokens lm_head -> none"),
    ],
)
def test_adapters_in_training_keep_their_shape_and_scale(flags: dict[str, Any], line: str) -> None:
    """They are compared as they will be used: the rank alone would change the default of alpha too."""
    changes = changed_flags(LORA.as_json(), replace(LORA, **flags).as_json(), "lora")
    assert [f"{change}" for change in changes] == [line]
    words = refusal(changes)
    assert words is not None
    assert words.startswith(f"{line}: the adapters of the checkpoint were made with the old value; keep it to go on, ")
    assert "`modeling` folder to --load_checkpoint with a new --save_dir" in words


def test_two_refusals_are_one_line() -> None:
    words = refusal(changed_flags(LORA.as_json(), replace(LORA, lora_rank=8).as_json(), "lora"))
    assert words is not None and words.startswith("--lora_rank 4 -> 8, --lora_alpha 8 -> 16: the adapters")


def test_what_takes_effect_is_not_refused() -> None:
    assert refusal(changed_flags(CONFIG.as_json(), replace(CONFIG, lr=1e-4).as_json(), "all")) is None
    assert refusal([]) is None


def test_adapters_said_in_other_words_are_the_same() -> None:
    same = replace(LORA, lora_alpha=8.0, lora_targets=LORA.lora_targets[::-1])
    assert differences(LORA, same, "lora") == []


def test_what_no_adapter_reads_is_no_change() -> None:
    assert differences(CONFIG, replace(CONFIG, lora_alpha=3.0), "all") == []


def test_flags_of_another_version_are_not_compared() -> None:
    old = {**CONFIG.as_json(), "gone": 1}
    del old["lr"]
    assert changed_flags(old, CONFIG.as_json(), "all") == []


def test_figures_are_said_under_their_name() -> None:
    changes = changed_figures(
        {"next_lr": "the rate", "steps": "steps"}, {"next_lr": 1 / 3, "steps": 7}, {"next_lr": 0.1, "steps": 7}
    )
    assert [f"{change}" for change in changes] == ["the rate 0.333333 -> 0.1"]
