"""Flags and finished runs that several files of this folder share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.colossal_llama.killing import Launcher
from tests.colossal_llama.runs import ROW_LENGTH


@pytest.fixture(scope="session")
def flags(tiny_model_dir: Path, tiny_bins_dir: Path) -> dict[str, Any]:
    """Model, data and a brisk schedule."""
    return {
        "pretrained": tiny_model_dir,
        "dataset": tiny_bins_dir,
        "max_length": ROW_LENGTH,
        "lr": 2e-3,
        "warmup_steps": 2,
        "plugin": "zero2",
        "mixed_precision": "bf16",
    }


@pytest.fixture(scope="session")
def zero2_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """Eight steps of four rows, with a checkpoint after the fourth and the last one."""
    return {**flags, "micro_batch_size": 2, "max_steps": 8, "save_interval": 4}


@pytest.fixture(scope="session")
def zero2_run(
    train: Callable[..., list[dict[str, Any]]], zero2_flags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The save_dir of a finished run on two ranks; look, do not touch."""
    save_dir = tmp_path_factory.mktemp("zero2") / "run"
    train(2, save_dir, **zero2_flags)
    return save_dir


@pytest.fixture(scope="session")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """Starts runs of train.py that can be killed."""
    one = Launcher(tmp_path_factory.mktemp("launcher"))
    yield one
    one.close()
