"""What docs/kills.md lists: which runs `make soak` kills, where and how often, and the table of what came of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.colossal_llama.killing import Effect

DOCUMENT = Path(__file__).parent.parent.parent / "docs" / "kills.md"
SEED = 20


@dataclass(frozen=True)
class Campaign:
    """One run, killed `kills` times (at least so often, where every call is hit), each time begun anew."""

    name: str
    what: str
    kills: int
    world_size: int = 1
    flags: dict[str, Any] = field(default_factory=dict)
    effect: Effect = "kill group"
    every: int = 1
    """Strike at every so manieth writing call,"""
    since: str = ""
    """from the first one on whose path holds this."""
    rank: int = 0
    """The rank whose calls are counted."""


ACCUMULATED = {"micro_batch_size": 1, "accumulation_steps": 2, "max_steps": 30, "save_interval": 2}
STAGED = {**ACCUMULATED, "stages": ["embeds,steps=5", "all"], "keep_checkpoints": 2}
TWO_SAVES = {"micro_batch_size": 2, "max_steps": 2, "save_interval": 1, "keep_checkpoints": 1, "warmup_steps": 1}

SECOND = "the second save and the end"

AT_RANDOM = [
    Campaign("random-zero2", "zero2, two stages, at random", 15, 2, STAGED),
    Campaign("random-ddp", "ddp, at random", 8, 1, {**ACCUMULATED, "plugin": "ddp"}),
    Campaign("random-gemini", "gemini, at random", 9, 2, {**ACCUMULATED, "plugin": "gemini"}),
    Campaign("random-tp", "3d tp=2, at random", 6, 2, {**ACCUMULATED, "plugin": "3d", "tp": 2, "zero": 0}),
    Campaign("random-pp", "3d pp=2, at random", 6, 2, {**ACCUMULATED, "plugin": "3d", "pp": 2, "zero": 0}),
]
TORCHRUN = Campaign("torchrun", "zero2 under torchrun, imports and all, at random", 6, 2, STAGED)
AT_CALLS = [
    Campaign("calls", f"zero2, at every writing call of {SECOND}", 100, 1, TWO_SAVES, since="step-2"),
    Campaign("calls-two", "zero2, at every 9th writing call of rank 0", 20, 2, TWO_SAVES, every=9),
    Campaign("one-rank", "zero2, rank 1 alone at each of its writing calls", 8, 2, TWO_SAVES, "kill process", rank=1),
    Campaign(
        "full-disk",
        f"zero2, the disk full from every 5th of {SECOND} on",
        20,
        1,
        TWO_SAVES,
        "full disk",
        5,
        since="step-2",
    ),
]
CAMPAIGNS = [*AT_RANDOM, TORCHRUN, *AT_CALLS]


@dataclass
class Tally:
    """What a campaign has found. Every run of it ended the same, or there is no tally."""

    kills: int = 0
    in_a_save: int = 0
    """Kills that have left a half-written folder."""
    before_any_checkpoint: int = 0


HEADER = """\
| run and moment | processes | strikes | while a folder was being written | before any checkpoint | ended the same |
|---|---|---|---|---|---|
"""
TABLE = re.compile(re.escape(HEADER) + r"((?:\|.*\n)*)")
NOT_MEASURED = "not measured"


def read_table(text: str) -> dict[str, Tally]:
    """Campaign -> what docs/kills.md says of it; a campaign that was not measured is left out."""
    match = TABLE.search(text)
    assert match, f"{DOCUMENT.name} has lost the head of its table"
    by_what = {campaign.what: campaign.name for campaign in CAMPAIGNS}
    rows = {}
    for line in match[1].splitlines():
        what, _, *counts, _ = (cell.strip() for cell in line.strip("|").split("|"))
        if what in by_what and counts[0] != "-":
            rows[by_what[what]] = Tally(*map(int, counts))
    return rows


def write_table(text: str, rows: dict[str, Tally]) -> str:
    """`text` with a row for every campaign."""
    lines = []
    for campaign in CAMPAIGNS:
        tally = rows.get(campaign.name)
        counts = ["-"] * 3 if tally is None else [tally.kills, tally.in_a_save, tally.before_any_checkpoint]
        end = NOT_MEASURED if tally is None else f"{tally.kills} of {tally.kills}"
        lines.append(f"| {campaign.what} | {campaign.world_size} | {' | '.join(map(str, counts))} | {end} |\n")
    return TABLE.sub(lambda _: HEADER + "".join(lines), text)


def record(campaign: Campaign, tally: Tally) -> None:
    """Write one row; the others stay as they are, so that a soak may be cut short or done in parts."""
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(write_table(text, read_table(text) | {campaign.name: tally}), encoding="utf-8")
