"""How a plugin divides the work, against counting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Ranks = Callable[..., list[Any]]


def microbatch_sizes() -> dict[tuple[int, int, int], int]:
    """pipeline_microbatch_size of every shape that config.check lets pass."""
    from colossal_llama.plugins import pipeline_microbatch_size

    shapes = [(m, a, pp) for m in range(1, 9) for a in range(1, 7) for pp in range(1, 9) if m * a >= pp]
    return {shape: pipeline_microbatch_size(*shape) for shape in shapes}


def test_pipeline_cuts_the_rows_into_enough_equal_parts(ranks: Ranks) -> None:
    (sizes,) = ranks(microbatch_sizes, 1)
    for (micro, accumulation, pp), size in sizes.items():
        rows = micro * accumulation
        possible = [n for n in range(1, rows + 1) if n <= micro and rows % n == 0 and rows / n >= pp]
        assert size == possible[-1]


def layouts(flags: dict[str, Any]) -> tuple[int, int, int, bool, bool, bool, int, int]:
    """What this rank holds under these flags."""
    from pathlib import Path

    from colossal_llama.cluster import launch
    from colossal_llama.config import TrainConfig

    with launch(0):
        from colossal_llama.plugins import layout_of, make_plugin

        plugin = make_plugin(TrainConfig(Path(), [], **flags), 10_000, 64)
        one = layout_of(plugin)
        return (
            one.dp_rank,
            one.dp_size,
            one.num_averaged,
            one.tp_group is not None,
            one.owns_loss,
            one.owns_rows,
            one.sequence_rank,
            one.sequence_size,
        )


def test_every_row_and_every_loss_has_one_owner(ranks: Ranks) -> None:
    first, last = (True, False), (False, True)  # owns_loss, owns_rows
    none, both = (False, False), (True, True)

    def held(flags: dict[str, Any]) -> list[tuple[Any, ...]]:
        return ranks(layouts, 4, flags)

    assert held({"plugin": "zero2"}) == [(rank, 4, 4, False, *both, 0, 1) for rank in range(4)]
    assert held({"plugin": "3d", "tp": 2, "pp": 2, "accumulation_steps": 2}) == [
        (0, 1, 1, True, *last, 0, 1),
        (0, 1, 1, True, *none, 0, 1),
        (0, 1, 1, True, *first, 0, 1),
        (0, 1, 1, True, *none, 0, 1),
    ]
    sequence = held({"plugin": "3d", "sp": 2})
    assert sorted((one[0], one[6]) for one in sequence) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert {one[1:4] + one[7:] for one in sequence} == {(2, 4, False, 2)}
    assert [one[4] for one in sequence] == [True] * 4
    assert [one[5] for one in sequence] == [one[6] == 0 for one in sequence]
