"""Work beside the training: a function comes in, a future goes out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


def in_background(action: Callable[[], Result]) -> Future[Result]:
    """Run `action` in a thread. A process that leaves does not wait for it, as it would for those of an executor."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(action())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
