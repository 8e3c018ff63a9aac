"""How far rows moved, against numpy on whole matrices; which ids were seen, against sets; what is skipped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from colossal_llama import row_health as module
from colossal_llama.cluster import launch
from colossal_llama.row_health import SeenIds, health_line, num_old_rows, row_health, write_seen_ids

NUM_OLD, NUM_ROWS, HIDDEN = 10, 17, 6
INPUT, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"

Ranks = Callable[..., list[Any]]


def write_model(directory: Path, matrices: dict[str, torch.Tensor], sharded: bool = False) -> Path:
    """A model directory with these matrices, in one file or in one each with an index."""
    directory.mkdir()
    tensors = {**matrices, "model.norm.weight": torch.ones(HIDDEN)}
    if not sharded:
        save_file(tensors, directory / "model.safetensors")
        return directory
    places = {name: f"model-{number}.safetensors" for number, name in enumerate(tensors)}
    for name, file in places.items():
        save_file({name: tensors[name]}, directory / file)
    index = {"metadata": {}, "weight_map": places}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def write_start(directory: Path, matrices: dict[str, torch.Tensor], before: int = NUM_OLD) -> Path:
    """The same with the manifest that init_model leaves."""
    write_model(directory, matrices)
    sizes = {"before": before, "after": NUM_ROWS}
    (directory / "manifest.json").write_text(json.dumps({"version": 1, "kind": "model", "vocab_size": sizes}))
    return directory


def matrix(seed: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(NUM_ROWS, HIDDEN, generator=torch.Generator().manual_seed(seed)).to(dtype)


def moved(start: torch.Tensor, rows: list[int], seed: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """`start`, saved as `dtype`, with these rows moved, the first of them in one entry only."""
    now = start.to(dtype).clone()
    noise = torch.randn(len(rows), HIDDEN, generator=torch.Generator().manual_seed(seed))
    noise[0, 1:] = 0
    now[rows] = (now[rows].float() + noise).to(dtype)
    return now


def expected(start: torch.Tensor, now: torch.Tensor) -> dict[str, Any]:
    """The figures by numpy, on the whole matrix at once."""
    before, after = start.to(now.dtype).float().numpy(), now.float().numpy()
    parts = {"new": slice(NUM_OLD, None), "old": slice(0, NUM_OLD)}
    return {
        kind: {
            "rows": len(after[part]),
            "unchanged": int((before[part] == after[part]).all(axis=1).sum()),
            "update_rms": pytest.approx(np.sqrt(np.mean((after[part] - before[part]) ** 2)), rel=1e-6),
        }
        for kind, part in parts.items()
    }


@pytest.mark.parametrize("chunk_entries", [1, 4 * HIDDEN, 2**21])
@pytest.mark.parametrize("saved", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("started", [torch.bfloat16, torch.float32])
def test_agrees_with_numpy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: torch.dtype, saved: torch.dtype, chunk_entries: int
) -> None:
    monkeypatch.setattr(module, "CHUNK_ENTRIES", chunk_entries)
    starts = {INPUT: matrix(1, started), OUTPUT: matrix(2, started)}
    now = {
        INPUT: moved(starts[INPUT], [3, 11, 12, 16], 3, saved),
        OUTPUT: moved(starts[OUTPUT], list(range(10, 17)), 4, saved),
    }
    start = write_start(tmp_path / "start", starts)
    modeling = write_model(tmp_path / "modeling", now, sharded=True)
    seen = torch.zeros(NUM_ROWS, dtype=torch.bool)
    seen[[0, 1, 2, 11, 15]] = True
    health = row_health(start, modeling, seen)
    assert health == {
        "new_ids_seen": pytest.approx(2 / 7),
        "input": expected(starts[INPUT], now[INPUT]),
        "output": expected(starts[OUTPUT], now[OUTPUT]),
    }
    assert health["input"]["new"]["unchanged"] == 4 and health["input"]["old"]["unchanged"] == 9
    assert health["output"]["old"]["update_rms"] == 0.0
    line = health_line(health)
    assert line.startswith("new rows: 28.6% of their ids seen; input moved by ")
    assert "4 of 7 not at all; output moved by" in line and "(old rows 0.0e+00), 0 of 7 not at all" in line


def test_tied_matrices_are_one(tmp_path: Path) -> None:
    start = write_start(tmp_path / "start", {INPUT: matrix(1)})
    modeling = write_model(tmp_path / "modeling", {INPUT: moved(matrix(1), [12], 3)})
    health = row_health(start, modeling, torch.ones(NUM_ROWS, dtype=torch.bool))
    assert health is not None and set(health) == {"new_ids_seen", "input"}
    assert health["new_ids_seen"] == 1.0
    assert "output" not in health_line(health)


def test_what_has_no_new_rows_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen = torch.zeros(NUM_ROWS, dtype=torch.bool)
    plain = write_model(tmp_path / "plain", {INPUT: matrix(1)})
    from_nothing = write_start(tmp_path / "from_nothing", {INPUT: matrix(1)}, before=0)
    unchanged = write_start(tmp_path / "unchanged", {INPUT: matrix(1)}, before=NUM_ROWS)
    for start in (plain, from_nothing, unchanged):
        assert num_old_rows(start) is None
        assert row_health(start, plain, seen) is None
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file({"lora_A": torch.ones(2)}, adapter / "adapter_model.safetensors")
    grown = write_start(tmp_path / "grown", {INPUT: matrix(1)})
    assert num_old_rows(grown) == NUM_OLD
    assert row_health(grown, adapter, seen) is None
    assert caplog.messages == []


def test_files_that_cannot_be_read_end_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen = torch.zeros(NUM_ROWS, dtype=torch.bool)
    start = write_start(tmp_path / "start", {INPUT: matrix(1)})
    other = write_model(tmp_path / "other", {INPUT: matrix(1)[:-1].clone()})
    assert row_health(start, other, seen) is None
    assert "has the shape (16, 6)" in caplog.messages[-1] and "the run goes on" in caplog.messages[-1]
    file = write_model(tmp_path / "half", {INPUT: matrix(1)}) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    assert row_health(start, file.parent, seen) is None
    assert "not a whole safetensors file" in caplog.messages[-1]
    (start / "manifest.json").write_text('{"vocab')
    assert row_health(start, other, seen) is None
    assert "not valid JSON" in caplog.messages[-1]


IDS = [[[1, 2, 2], [0, 0, 5]], [[7, 7, 7], [1, 8, 0]]]


def what_both_ranks_saw(checkpoint: str) -> list[int]:
    """Two steps on each of two ranks, then a checkpoint, then another step after a resume."""
    with launch(0) as cluster:
        seen = SeenIds(10, cluster.device)
        for row in IDS[cluster.rank]:
            seen.update(torch.tensor([row]))
        merged = seen.merged(cluster.device)
        if cluster.is_main:
            write_seen_ids(Path(checkpoint), merged)
        again = SeenIds(10, cluster.device)
        again.merged(cluster.device)  # a barrier: the file is there
        again.load(Path(checkpoint))
        again.update(torch.tensor([[4 + cluster.rank * 5]]))
        return [*merged.nonzero().flatten().tolist(), -1, *again.merged(cluster.device).nonzero().flatten().tolist()]


def test_ids_seen_by_any_rank_and_before_a_resume(ranks: Ranks, tmp_path: Path) -> None:
    first = sorted({token for rank in IDS for row in rank for token in row})
    assert ranks(what_both_ranks_saw, 2, str(tmp_path)) == [[*first, -1, *sorted({*first, 4, 9})]] * 2


def test_seen_ids_of_another_vocabulary_are_not_taken(tmp_path: Path) -> None:
    seen = SeenIds(4, torch.device("cpu"))
    seen.load(tmp_path)  # an older checkpoint has none
    write_seen_ids(tmp_path, torch.ones(5, dtype=torch.bool))
    seen.load(tmp_path)
    assert not seen._seen.any()
