"""What rehearsed runs leave on the disk: --save_dirs come in; how far one is, and what tells two apart, go out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from colossal_llama.checkpoint import LATEST, MODELING, OPTIMIZER, STATES
from tokenizer_tools.outputs import read_json
from tokenizer_tools.tokenizer_files import MANIFEST

METRICS = "metrics.jsonl"
TIMES = ("step_seconds", "tokens_per_second", "positions_per_second", "memory_bytes", "mfu")
NAMED = 3  # differences in a message


def saved_steps(save_dir: Path) -> int:
    """Steps in the newest whole checkpoint; 0 before the first."""
    try:
        name = (save_dir / LATEST).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return 0
    return int(name.rpartition("_step-")[2])


def metrics_lines(save_dir: Path) -> list[str]:
    """The lines of metrics.jsonl as they are, one a step."""
    path = save_dir / METRICS
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def metrics(save_dir: Path) -> list[dict[str, Any]]:
    """The figures of each step."""
    return [json.loads(line) for line in metrics_lines(save_dir)]


def differences(one: Path, other: Path) -> list[str]:
    """What two finished runs of the same flags differ in, in words; nothing if they ended alike, bit for bit.

    Compared are all figures of every step but times (loss, gradient norm, chain of rows, ...), the weights, the
    optimizer and the position of the last checkpoint, and the finished model.
    """
    steps = [_untimed(save_dir) for save_dir in (one, other)]
    found = [] if len(steps[0]) == len(steps[1]) else [f"{len(steps[0])} steps and {len(steps[1])}"]
    for left, right in zip(*steps, strict=False):
        found += [
            f"{name} of step {left['step']}: {left[name]} and {right.get(name)}"
            for name in left
            if left[name] != right.get(name)
        ]
    files = [_digests(save_dir) for save_dir in (one, other)]
    return found + [
        f"other bytes in {name}" for name in sorted({*files[0], *files[1]}) if files[0].get(name) != files[1].get(name)
    ]


def in_words(found: list[str]) -> str:
    """The first few differences and how many more there are."""
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return "; ".join(found[:NAMED]) + more


def _untimed(save_dir: Path) -> list[dict[str, Any]]:
    """Without what is measured in seconds, and without the sums of a log interval, which a resume may cut in two."""
    return [
        {name: value for name, value in step.items() if name not in (*TIMES, "categories")}
        for step in metrics(save_dir)
    ]


def _digests(save_dir: Path) -> dict[str, str]:
    """{file: sha256} of the last checkpoint and of the finished model, as their manifests have them."""
    last = (save_dir / LATEST).read_text(encoding="utf-8").strip()
    digests = {
        f"{last}/{name}": digest
        for name, digest in _sha256(save_dir / last).items()
        if name == STATES or name.startswith((f"{MODELING}/", f"{OPTIMIZER}/"))
    }
    return digests | {f"{MODELING}/{name}": digest for name, digest in _sha256(save_dir / MODELING).items()}


def _sha256(directory: Path) -> dict[str, str]:
    return read_json(directory / MANIFEST, "the manifest of a run's own output")["sha256"]
