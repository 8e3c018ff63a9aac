"""Work beside the training, and a process that leaves while it goes on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from colossal_llama.background import in_background

LEAVING = """
import hashlib, sys
from colossal_llama.background import in_background, leave
content = bytes(2**24)
def work():
    while True:
        hashlib.sha256(content).digest()
if sys.argv[1] == "busy":
    in_background(work)
print("said", flush=False)
leave(75)
"""


@pytest.mark.parametrize("what", ["busy", "idle"])
def test_a_process_leaves_with_its_code_and_its_last_words(what: str) -> None:
    """Python itself aborts (134) where a daemon thread comes back into it from foreign code at the very end."""
    done = subprocess.run(
        [sys.executable, "-c", LEAVING, what], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (75, "said\n")


def test_what_is_raised_is_raised_where_the_result_is_asked_for() -> None:
    assert in_background(lambda: 6 * 7).result(timeout=20) == 42
    future = in_background(lambda: [][0])
    with pytest.raises(IndexError):
        future.result(timeout=20)
