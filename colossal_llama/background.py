"""Work beside the training: a function comes in, a future goes out."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import NoReturn, TypeVar

Result = TypeVar("Result")

NAME = "in the background"


def in_background(action: Callable[[], Result]) -> Future[Result]:
    """Run `action` in a thread. A process that leaves does not wait for it, as it would for those of an executor."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=NAME, daemon=True).start()
    return future


def leave(exit_code: int) -> NoReturn:
    """End the process, at once also where a thread is still at work here: the interpreter would abort in its midst."""
    if any(thread.name == NAME for thread in threading.enumerate()):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)
