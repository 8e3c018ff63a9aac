"""Workers: every task once, here and in processes; a task that fails or dies ends the run in words."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest

from data_tools.workers import run_tasks
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
