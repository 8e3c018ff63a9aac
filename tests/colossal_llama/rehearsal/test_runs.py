"""Runs that do not resume right must not pass: made-up ones, each with a fault of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.config import TrainConfig
from colossal_llama.rehearsal.runs import Runs
from colossal_llama.rehearsal.verdict import Fault, Verdict
from tokenizer_tools.command import UserError

SAVED, STEPS = 2, 3


def write_run(save_dir: Path, steps: int, seconds: float, loss: float = 5.0, weights: str = "w") -> None:
    """What a run leaves that has a checkpoint after `steps` steps; finished if these are all."""
    save_dir.mkdir(parents=True, exist_ok=True)
    lines = [
        {"step": step, "loss": loss - step, "row_chain": f"chain {step}", "is_bad": False, "step_seconds": seconds}
        for step in range(1, steps + 1)
    ]
    path = save_dir / "metrics.jsonl"
    kept = path.read_text().splitlines()[:SAVED] if path.is_file() else []
    path.write_text("\n".join([*kept, *map(json.dumps, lines[len(kept) :])]) + "\n")
    name = f"epoch-0_step-{steps}"
    digests = {"modeling/model.safetensors": weights, "optimizer/part": "o", "running_states.json": "s", "x": name}
    write_manifest(save_dir / name, digests)
    (save_dir / "latest").write_text(f"{name}\n")
    if steps == STEPS:
        write_manifest(save_dir / "modeling", {"model.safetensors": weights})


def write_manifest(directory: Path, digests: dict[str, str]) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "manifest.json").write_text(json.dumps({"sha256": digests}))


@dataclass
class Job:
    """Ranks that have done their work before they are looked at."""

    codes: list[int | None]
    logs: list[Path] = field(default_factory=list)

    def exit_codes(self) -> list[int | None]:
        return self.codes

    def cpu_seconds(self) -> float:
        return 0.0

    def kill(self) -> None:
        self.codes = [-9 if code is None else code for code in self.codes]


Step = Callable[[Path], int | None]


def runs(place: Path, *steps: Step) -> Runs:
    """Runs of which each does the next of `steps`: --save_dir comes in, an exit code goes out, None for a live one."""
    waiting = list(steps)

    def start(flags: Path, world_size: int, log: Path) -> Any:
        save_dir = Path(json.loads(flags.read_text())["save_dir"])
        log.with_name(f"{log.name}.rank0.log").write_text("error: --lr 0: no\n")
        return Job([waiting.pop(0)(save_dir)] * world_size, [log.with_name(f"{log.name}.rank0.log")])

    return Runs(start, place, 2)


def ends(seconds: float = 0.1, **other: Any) -> Step:
    def step(save_dir: Path) -> int:
        write_run(save_dir, STEPS, seconds, **other)
        return 0

    return step


def lives(save_dir: Path) -> None:
    write_run(save_dir, SAVED, 0.2)


def fails(_: Path) -> int:
    return 2


def rehearsal(place: Path, *steps: Step) -> str:
    """The four checks; what the last one found."""
    one = runs(place, *steps)
    undisturbed, killed = (
        TrainConfig(pretrained=place, dataset=[place], save_dir=place / name) for name in ("undisturbed", "killed")
    )
    assert one.undisturbed(undisturbed) == "3 steps in 1 stage(s) on 2 process(es); loss 4.000 -> 2.000"
    assert "the newest checkpoint is of step 2 of 3" in one.killed(killed)
    assert one.resumed(killed) == "the same command line went on after step 2 and ended with step 3"
    return one.same_end(undisturbed, killed)


def test_runs_that_end_alike_pass(tmp_path: Path) -> None:
    assert "bit for bit" in rehearsal(tmp_path, ends(), lives, ends())


def test_a_run_that_ended_too_early_is_killed_again(tmp_path: Path) -> None:
    assert "bit for bit" in rehearsal(tmp_path, ends(), ends(), lives, ends())
    with pytest.raises(Fault, match="ended 3 times before it could be killed"):
        rehearsal(tmp_path / "again", ends(), ends(), ends(), ends())


def test_a_run_that_begins_anew_has_not_resumed(tmp_path: Path) -> None:
    def anew(save_dir: Path) -> int:
        (save_dir / "metrics.jsonl").unlink()
        return ends(0.3)(save_dir) or 0

    with pytest.raises(Fault, match="the run began anew, and did not go on after step 2"):
        rehearsal(tmp_path, ends(), lives, anew)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"loss": 5.5}, "loss of step 3: 2.0 and 2.5$"),
        ({"weights": "v"}, "other bytes in epoch-0_step-3/modeling/model.safetensors; other bytes in modeling/model.s"),
    ],
)
def test_another_end_is_named(tmp_path: Path, other: dict[str, Any], words: str) -> None:
    with pytest.raises(Fault, match=f"ended otherwise than the undisturbed one: {words}"):
        rehearsal(tmp_path, ends(), lives, ends(**other))


def test_a_missing_step_is_named(tmp_path: Path) -> None:
    def short(save_dir: Path) -> int:
        ends()(save_dir)
        path = save_dir / "metrics.jsonl"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
        return 0

    one = runs(tmp_path, ends(), lives, short)
    undisturbed, killed = (TrainConfig(tmp_path, [tmp_path], save_dir=tmp_path / name) for name in ("u", "k"))
    one.undisturbed(undisturbed)
    one.killed(killed)
    one.resumed(killed)
    with pytest.raises(Fault, match="3 steps and 2"):
        one.same_end(undisturbed, killed)


@pytest.mark.parametrize("before", [[], [ends()], [ends(), lives]], ids=["undisturbed", "killed", "resumed"])
def test_a_run_that_is_refused_says_so_itself(tmp_path: Path, before: list[Step]) -> None:
    with pytest.raises(UserError, match="^--lr 0: no$"):
        rehearsal(tmp_path, *before, fails)


def test_a_check_that_fails_stays_in_the_table() -> None:
    verdict = Verdict(notes=["changed: --lr (why)"])
    assert verdict.check("one", lambda: "went well") == "went well"

    def failing() -> str:
        raise Fault("a long\nreason")

    with pytest.raises(Fault):
        verdict.check("two", failing)
    lines = verdict.text().splitlines()
    assert [line.split() for line in lines[1:3]] == [
        ["one", "passed", "0", "went", "well"],
        ["two", "FAILED", "0", "a", "long", "reason"],
    ]
    assert lines[3] == "changed: --lr (why)"
