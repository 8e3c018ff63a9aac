"""The colossalai that our patches and mends were made for: leaning on it blindly is an error, not a risk."""

from __future__ import annotations

import inspect
from typing import Any

COLOSSALAI_VERSION = "0.5.0"


def require_version() -> None:
    """Raise RuntimeError unless the installed colossalai is the one that was read line by line."""
    import colossalai

    if colossalai.__version__ != COLOSSALAI_VERSION:
        raise RuntimeError(
            f"colossalai {colossalai.__version__}: the patches of host.py and mends.py were made for "
            f"{COLOSSALAI_VERSION}; install that version, or go over each of them"
        )


def require_line(code: Any, line: str) -> None:
    """Raise RuntimeError unless the source of `code` still holds `line`, the reason for a patch."""
    if line not in inspect.getsource(code):
        raise RuntimeError(f"{code.__module__}.{code.__qualname__} has changed, `{line}` is gone: review its patch")
