"""Where a run stands, as JSON and back, and when it may go on."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from colossal_llama.progress import Progress
from tokenizer_tools.command import UserError

STOPPED = Progress(12, 1, 96, 5000, seed=42, data_fingerprint="d" * 64, tokenizer_fingerprint="t" * 64)


def test_json_and_back() -> None:
    assert Progress.from_json(json.loads(json.dumps(STOPPED.as_json()))) == STOPPED


@pytest.mark.parametrize("change", [{"more": 1}, {"step": None}])
def test_other_names_are_refused(change: dict[str, int | None]) -> None:
    values = {name: value for name, value in {**STOPPED.as_json(), **change}.items() if value is not None}
    with pytest.raises(UserError, match=r"running_states\.json: holds \[.*\], expected \[.*another version\?"):
        Progress.from_json(values)


NOW = replace(STOPPED, step=0, epoch=0, num_rows_seen=0, num_tokens_seen=0)
OTHERS = [
    ({"seed": 43}, "another --seed (seed 42, now 43); keep the same --seed"),
    ({"data_fingerprint": "e" * 64}, "another --dataset (data_fingerprint dddddddddddddddd, now eeeeeeeeeeeeeeee)"),
]


@pytest.mark.parametrize("restarts_data", [False, True])
def test_same_data_goes_on_wherever_it_stands(restarts_data: bool) -> None:
    assert STOPPED.going_on(NOW, restarts_data) == STOPPED


@pytest.mark.parametrize(("change", "words"), OTHERS)
def test_other_data_is_refused_with_both_ways_out(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        STOPPED.going_on(replace(NOW, **change), restarts_data=False)
    assert words in str(caught.value)
    assert "add --restart_data to go on with it from its first row" in str(caught.value)
    assert "`modeling` folder to --load_checkpoint with a new --save_dir" in str(caught.value)


@pytest.mark.parametrize("change", [change for change, _ in OTHERS])
def test_other_data_begins_with_its_first_row_where_that_is_allowed(change: dict[str, Any]) -> None:
    """Rows and epochs are those of the new data; steps, tokens and whatever else was counted go on."""
    restarted = STOPPED.going_on(replace(NOW, **change), restarts_data=True)
    assert restarted == replace(STOPPED, epoch=0, num_rows_seen=0, **change)


@pytest.mark.parametrize("restarts_data", [False, True])
def test_another_tokenizer_is_always_refused(restarts_data: bool) -> None:
    other = replace(NOW, tokenizer_fingerprint="u" * 64, data_fingerprint="e" * 64)
    with pytest.raises(UserError, match=r"another tokenizer \(tokenizer_fingerprint t+, now u+\); keep"):
        STOPPED.going_on(other, restarts_data)


@pytest.mark.parametrize(("number", "trained", "begins"), [(1, "embeds", False), (1, "embeds", True), (2, "all", True)])
def test_a_stage_goes_on_or_the_next_one_begins(number: int, trained: str, begins: bool) -> None:
    replace(STOPPED, stage=1, trained="embeds").check_stage(number, trained, begins)


@pytest.mark.parametrize(
    ("number", "trained", "begins"),
    [(1, "all", False), (0, "embeds", False), (0, "all", True), (2, "all", False), (3, "all", True)],
)
def test_another_stage_is_refused_with_the_way_out(number: int, trained: str, begins: bool) -> None:
    words = rf"stage 2 \(embeds\), the next one would be in stage {number + 1} \({trained}\); keep the same --train"
    with pytest.raises(UserError, match=words):
        replace(STOPPED, stage=1, trained="embeds").check_stage(number, trained, begins)
