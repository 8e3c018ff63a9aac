"""Workers: every task once, here and in processes; a task that fails or dies ends the run in words."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_tools import workers
from data_tools.workers import num_cpus, run_tasks
from tokenizer_tools.command import UserError


def square(number: int) -> int:
    time.sleep(0.01 * (number % 3))
    return number * number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise UserError("three is wrong; choose two")
    return number


def die_at_three(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def own_process(number: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("num_workers", [1, 2, 3, 50])
def test_every_task_is_done_once(num_workers: int) -> None:
    assert dict(run_tasks(square, range(20), num_workers)) == {index: index * index for index in range(20)}
    assert list(run_tasks(square, [], num_workers)) == []


def test_one_worker_is_this_process_and_several_are_not() -> None:
    assert set(dict(run_tasks(own_process, range(3), 1)).values()) == {os.getpid()}
    assert os.getpid() not in dict(run_tasks(own_process, range(3), 2)).values()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_fault_of_a_task_is_heard_as_it_is(num_workers: int) -> None:
    with pytest.raises(UserError, match="three is wrong; choose two"):
        list(run_tasks(fail_at_three, range(200), num_workers))
    assert not multiprocessing.active_children()


def test_a_worker_that_is_killed_is_told_in_words() -> None:
    with pytest.raises(UserError, match="a worker process was killed, .* smaller --num_workers"):
        list(run_tasks(die_at_three, range(200), 2))
    assert not multiprocessing.active_children()


def handlers(number: int) -> list[object]:
    return [signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)]


def test_workers_leave_ctrl_c_to_the_parent_and_can_be_ended() -> None:
    """Whatever the parent does at SIGTERM, which its workers inherit."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        found = dict(run_tasks(handlers, range(2), 2))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found == {index: [signal.SIG_IGN, signal.SIG_DFL] for index in range(2)}


def meet(task: tuple[Path, int]) -> None:
    directory, number = task
    (directory / str(number)).touch()
    for _ in range(1000):
        if all((directory / str(other)).exists() for other in range(2)):
            return
        time.sleep(0.01)
    raise RuntimeError("the other never came")


def test_two_workers_work_at_the_same_time(tmp_path: Path) -> None:
    assert len(list(run_tasks(meet, [(tmp_path, 0), (tmp_path, 1)], 2))) == 2


class Counted(list[int]):
    """A list that knows how many of its items have been asked for."""

    num_taken = 0

    def __iter__(self) -> Iterator[int]:
        for item in super().__iter__():
            self.num_taken += 1
            yield item


def test_few_tasks_are_on_their_way_at_a_time() -> None:
    tasks = Counted(range(100))
    results = run_tasks(square, tasks, 2)
    for number in range(1, 20):
        next(results)
        assert tasks.num_taken < number + 2 * workers.TASKS_A_WORKER
    results.close()  # type: ignore[attr-defined]


def fail_or_finish_late(task: tuple[Path, int]) -> None:
    directory, number = task
    (directory / f"begun-{number}").touch()
    if number == 0:
        while not (directory / "begun-1").exists():
            time.sleep(0.01)
        raise UserError("zero is wrong; choose one")
    time.sleep(4)
    (directory / "finished").touch()


def test_after_a_fault_nothing_else_is_finished_and_others_children_live(tmp_path: Path) -> None:
    bystander = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    bystander.start()
    try:
        with pytest.raises(UserError, match="zero is wrong"):
            list(run_tasks(fail_or_finish_late, [(tmp_path, 0), (tmp_path, 1)], 2))
        assert multiprocessing.active_children() == [bystander]
        assert not (tmp_path / "finished").exists()
    finally:
        bystander.terminate()
        bystander.join()


def test_the_cpus_are_those_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5})
    assert num_cpus() == 3
