"""Reading ahead: the same steps in the same order, no waiting, and nothing that outlives the loop."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator

import pytest
import torch

from colossal_llama.batch import Batch
from colossal_llama.prefetch import STEPS_AHEAD, prefetched

PATIENCE_SECONDS = 20


def step_of(number: int) -> list[Batch]:
    """A step of one micro-batch that holds its number."""
    ids = torch.full((1, 2), number)
    return [Batch(ids, ids, ids, ids, ids, ids, [number])]


def numbers_of(steps: Iterator[list[Batch]]) -> list[int]:
    return [step[0].row_numbers[0] for step in steps]


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.mark.parametrize("count", [0, 1, STEPS_AHEAD, 50])
def test_every_step_comes_once_in_its_order(count: int) -> None:
    with prefetched(map(step_of, range(count)), pin=False) as steps:
        assert numbers_of(steps) == list(range(count))
    assert not threads()


def test_the_next_steps_are_read_while_one_is_at_work_and_no_more_than_those() -> None:
    read: list[int] = []
    are_ahead = threading.Semaphore(0)

    def source() -> Iterator[list[Batch]]:
        for number in range(100):
            read.append(number)
            are_ahead.release()
            yield step_of(number)

    with prefetched(source(), pin=False) as steps:
        next(steps)
        for _ in range(1 + STEPS_AHEAD):
            assert are_ahead.acquire(timeout=PATIENCE_SECONDS), "nothing is read while the loop is busy"
        assert not are_ahead.acquire(timeout=0.2)
        assert read == list(range(STEPS_AHEAD + 1))


def test_reading_is_the_work_of_another_thread() -> None:
    def source() -> Iterator[list[Batch]]:
        assert threading.current_thread() is not threading.main_thread()
        yield step_of(0)

    with prefetched(source(), pin=False) as steps:
        assert numbers_of(steps) == [0]


def test_an_error_of_the_reader_comes_after_its_steps_with_the_place_where_it_arose() -> None:
    def breaks() -> Iterator[list[Batch]]:
        yield from map(step_of, range(5))
        raise OSError("the disk is gone")

    seen: list[int] = []
    with pytest.raises(OSError, match="the disk is gone") as caught, prefetched(breaks(), pin=False) as steps:
        seen += (step[0].row_numbers[0] for step in steps)
    assert seen == list(range(5))
    assert "breaks" in [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert not threads()


def test_leaving_early_ends_the_thread() -> None:
    with prefetched(map(step_of, range(10**6)), pin=False) as steps:
        next(steps)
        assert threads()
    assert not threads()
    with pytest.raises(KeyboardInterrupt), prefetched(map(step_of, range(10**6)), pin=False) as steps:
        next(steps)
        raise KeyboardInterrupt
    assert not threads()


def test_batches_are_pinned_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 100)
    for pin, added in ((True, 100), (False, 0)):
        with prefetched(iter([step_of(7)]), pin) as steps:
            (batch,) = next(steps)
        tensors = (batch.input_ids, batch.labels, batch.position_ids, batch.categories)
        assert [int(tensor[0, 0]) for tensor in tensors] == [7 + added] * 4
        assert batch.row_numbers == [7]
