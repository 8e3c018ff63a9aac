"""The chain over the rows that a run has read."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from colossal_llama.row_chain import FIRST_LINK, extended
from tests.colossal_llama.runs import ROW_LENGTH

Train = Callable[..., list[dict[str, Any]]]
IDS = st.lists(st.integers(1, 2**40), max_size=20)


@given(IDS, st.integers(0, 20))
def test_it_does_not_matter_where_a_step_ends_or_how_it_is_filled_up(ids: list[int], cut: int) -> None:
    whole = extended(FIRST_LINK, ids)
    assert extended(extended(FIRST_LINK, [*ids[:cut], 0, 0]), ids[cut:]) == whole
    digest = hashlib.sha256(b"").digest()
    for number in ids:
        digest = hashlib.sha256(digest + struct.pack("<q", number)).digest()
    assert whole == digest.hex()


@given(IDS.filter(lambda ids: len(set(ids)) > 1))
def test_another_order_is_another_chain(ids: list[int]) -> None:
    turned = ids[1:] + ids[:1]
    assert (extended(FIRST_LINK, turned) == extended(FIRST_LINK, ids)) == (turned == ids)
    assert extended(FIRST_LINK, ids[1:]) != extended(FIRST_LINK, ids)


def chain_of(bins_dir: Path, seed: int, num_rows: int) -> str:
    """As documented: buckets in their order, each shuffled by numpy from (seed, epoch, bucket), rows counted from 1."""
    sizes = [bucket["rows"] for bucket in json.loads((bins_dir / "manifest.json").read_text())["buckets"]]
    ids: list[int] = []
    for index, size in enumerate(sizes):
        order = np.random.default_rng([seed, 0, index]).permutation(size)
        ids += (sum(sizes[:index]) + order + 1).tolist()
    return extended(FIRST_LINK, ids[:num_rows])


@pytest.mark.parametrize(
    ("world_size", "layout"),
    [
        (1, {"plugin": "ddp", "micro_batch_size": 6}),
        (2, {"plugin": "gemini", "micro_batch_size": 1, "accumulation_steps": 2}),
        (2, {"plugin": "3d", "tp": 2, "zero": 0, "micro_batch_size": 3, "accumulation_steps": 2}),
        (2, {"plugin": "3d", "pp": 2, "zero": 0, "micro_batch_size": 2, "accumulation_steps": 2}),
        (2, {"plugin": "3d", "sp": 2, "zero": 0, "micro_batch_size": 4}),
    ],
    ids=["ddp", "gemini", "tp", "pp", "sp"],
)
def test_every_layout_reads_the_rows_in_the_documented_order(
    world_size: int, layout: dict[str, Any], train: Train, flags: dict[str, Any], tiny_bins_dir: Path, tmp_path: Path
) -> None:
    own = {**flags, **layout, "mixed_precision": "bf16", "max_length": ROW_LENGTH}
    for step in train(world_size, tmp_path / "run", **own, max_steps=3):
        assert step["row_chain"] == chain_of(tiny_bins_dir, 42, step["num_rows_seen"])
