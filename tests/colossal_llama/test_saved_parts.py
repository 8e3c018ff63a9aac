"""Which rank saves which part of the optimizer, and parts of one layout read by another."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from colossal_llama.saved_parts import Part, SavedStates, parts_table, rank_file, share_out

SHAPES = st.lists(st.integers(1, 5).map(lambda size: size * 4), min_size=1, max_size=2).map(tuple)


def cut(name: str, shape: tuple[int, ...], tp: int, dim: int, dp: int) -> list[Part]:
    """Parts of a parameter as `tp` x `dp` ranks hold them: slices of `dim`, each cut flat into equal shards."""
    length = shape[dim] // tp
    numel = math.prod(shape) // tp
    size = math.ceil(numel / dp)
    return [
        Part(name, dim, rank * length, length, min(shard * size, numel), min((shard + 1) * size, numel))
        for rank in range(tp)
        for shard in range(dp)
    ]


def values_of(whole: torch.Tensor, part: Part) -> torch.Tensor:
    return whole.narrow(part.dim, part.start, part.length).flatten()[part.begin : part.end].clone()


@settings(max_examples=60, deadline=None)
@given(SHAPES, st.sampled_from([1, 2, 4]), st.integers(1, 4), st.sampled_from([1, 2, 4]), st.integers(1, 4), st.data())
def test_any_layout_reads_what_any_other_has_saved(
    shape: tuple[int, ...], tp: int, dp: int, other_tp: int, other_dp: int, data: st.DataObject
) -> None:
    whole = torch.randn(shape)
    dims = [data.draw(st.integers(0, len(shape) - 1)) for _ in range(2)]
    every_rank = [{0: part} if part.end > part.begin else {} for part in cut("w", shape, tp, dims[0], dp)]
    shares = share_out(every_rank)
    with tempfile.TemporaryDirectory() as folder:
        for rank, share in enumerate(shares):
            tensors = {f"w.{kind}": values_of(whole, part) for part in share.values() for kind in ("exp_avg", "master")}
            save_file({**tensors, **({"w.step": torch.tensor(3)} if tensors else {})}, Path(folder) / rank_file(rank))
        (Path(folder) / "parts.json").write_text(json.dumps(parts_table(shares, {"w": shape, "frozen": (2,)})))
        saved = SavedStates(Path(folder))
        assert saved.step("w") == 3 and "frozen" not in saved.shapes
        for part in cut("w", shape, other_tp, dims[1], other_dp):
            found = saved.read(part)
            assert sorted(found) == ["exp_avg", "master"]
            assert torch.equal(found["master"], values_of(whole, part))


@given(st.integers(1, 6), st.lists(st.integers(1, 50), min_size=1, max_size=20))
def test_what_all_ranks_hold_is_saved_once_and_shared_out(num_ranks: int, sizes: list[int]) -> None:
    own = {i: Part(f"w{i}", 0, 0, size, 0, size) for i, size in enumerate(sizes)}
    shares = share_out([own] * num_ranks)
    saved = [(i, part) for share in shares for i, part in share.items()]
    assert sorted(saved, key=lambda item: item[0]) == sorted(own.items())
    loads = [sum(part.end for part in share.values()) for share in shares]
    assert max(loads) - min(loads) <= max(sizes)
