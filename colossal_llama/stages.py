"""A staged run: the words of --stages and the run's own flags come in, stages with all their steps go out. No torch.

A stage is written without blanks, since launchers join and split words: `embeds,steps=1000,lr=5e-4`. Its first word
says what trains, each other one a setting; what it does not set is the run's own flag of that name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from colossal_llama.schedule import Schedule, ScheduleName, default_warmup_steps
from tokenizer_tools.command import UserError

Trained = Literal["all", "embeds", "new_rows", "lora"]
Carrying = Literal["carry", "reset"]

EXAMPLE = "embeds,steps=1000,lr=5e-4"
EMBEDDINGS_ONLY = ("embeds", "new_rows")
WIDER = {"new_rows": ("embeds", "all"), "embeds": ("all",)}
"""What trains everything that the key trains, and more. LoRA's adapters are in no other stage's optimizer."""


@dataclass(frozen=True)
class Stage:
    """A stage as asked for; the run's plain flags are one too, over all of its steps.

    None is the default: `steps` all that are left, `embeds_lr` the same as `lr`, `warmup_steps` 0.025 of the steps,
    `optimizer` carried where the stage before trained nothing but what this one trains. `lr_floor` is a share of `lr`.
    """

    train: Trained
    steps: int | None
    lr: float
    embeds_lr: float | None
    warmup_steps: int | None
    lr_schedule: ScheduleName
    lr_floor: float
    lr_decay_share: float
    optimizer: Carrying | None = None


@dataclass(frozen=True)
class ResolvedStage:
    """A stage with its place in the run. Steps are numbered over the whole run, from 0."""

    train: Trained
    first_step: int
    lr: float
    embeds_lr: float
    """Peak of the input and output embeddings; where only they train, the same as `lr`."""
    schedule: Schedule
    carries_optimizer: bool
    """Whether the optimizer's moments of the stage before go on; never in the first stage."""

    @property
    def num_steps(self) -> int:
        """Steps of this stage."""
        return self.schedule.num_steps

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warm-up at its beginning."""
        return self.schedule.warmup_steps

    @property
    def end_step(self) -> int:
        """The first step behind this stage."""
        return self.first_step + self.num_steps

    def lr_at(self, step: int) -> float:
        """Learning rate of the run's step `step`; beyond the end it stays at the floor."""
        return self.lr * self.schedule.share_at(step - self.first_step)

    def embeds_lr_at(self, step: int) -> float:
        """The same for the input and output embeddings."""
        return self.embeds_lr * self.schedule.share_at(step - self.first_step)


def parse_stages(texts: Sequence[str], run: Stage) -> list[Stage]:
    """The stages of --stages in order, or `run`, made of the plain flags, if there are none.

    Raises one UserError with all that is wrong.
    """
    if not texts:
        return [run]
    problems: list[str] = []
    stages = [_parse(text, run, problems) for text in texts]
    for text, stage in zip(texts[:-1], stages, strict=False):
        if stage is not None and stage.steps is None:
            problems.append(f"--stages {text}: has no steps=; only the last stage may take all that are left")
    for index, (text, stage) in enumerate(zip(texts, stages, strict=True)):
        before = stages[index - 1] if index else None
        if stage is not None and stage.optimizer == "carry" and (index == 0 or before is not None):
            reason = _no_carrying(stage, before)
            problems += [f"--stages {text}: optimizer=carry, but {reason}; use optimizer=reset"] if reason else []
    if problems:
        raise UserError("; ".join(problems))
    return [stage for stage in stages if stage is not None]


def resolve(stages: Sequence[Stage], total_steps: int) -> list[ResolvedStage]:
    """Give each stage its place in a run of `total_steps` steps. The last one may end before.

    Raises UserError if they need more steps than there are, one is left without any or warms up for too many.
    """
    resolved: list[ResolvedStage] = []
    first_step = 0
    for index, stage in enumerate(stages):
        num_left = total_steps - first_step
        num_steps = num_left if stage.steps is None else stage.steps
        if num_steps < 1 or num_steps > num_left:
            needs = f"needs {num_steps:,}" if stage.steps is not None else "takes what is left"
            raise UserError(
                f"--stages: the run has {total_steps:,} steps, {max(0, num_left):,} of them left for stage {index + 1} "
                f"({stage.train}), which {needs}; give the stages fewer steps, or the run more by --num_epochs or "
                f"--max_steps"
            )
        warmup_steps = stage.warmup_steps if stage.warmup_steps is not None else default_warmup_steps(num_steps)
        if warmup_steps > num_steps:
            whole = "the run" if len(stages) == 1 else f"stage {index + 1} ({stage.train})"
            raise UserError(f"--warmup_steps {warmup_steps}: {whole} has only {num_steps} steps; warm up for fewer")
        before = stages[index - 1] if index else None
        resolved.append(_place(stage, before, first_step, num_steps, warmup_steps))
        first_step += num_steps
    return resolved


def stage_at(stages: Sequence[ResolvedStage], step: int) -> ResolvedStage:
    """The stage to which step `step` belongs; the last one for steps beyond its end."""
    return next((stage for stage in stages if step < stage.end_step), stages[-1])


def _place(stage: Stage, before: Stage | None, first_step: int, num_steps: int, warmup_steps: int) -> ResolvedStage:
    embeds_lr = stage.lr if stage.embeds_lr is None else stage.embeds_lr
    carries = stage.optimizer == "carry" if stage.optimizer else _carries_by_default(stage, before)
    return ResolvedStage(
        train=stage.train,
        first_step=first_step,
        lr=embeds_lr if stage.train in EMBEDDINGS_ONLY else stage.lr,
        embeds_lr=embeds_lr,
        schedule=Schedule(stage.lr_schedule, num_steps, warmup_steps, stage.lr_floor, stage.lr_decay_share),
        carries_optimizer=carries,
    )


def _carries_by_default(stage: Stage, before: Stage | None) -> bool:
    """Whether all that the stage before trained goes on training, and its moments are of use."""
    if before is None or _no_carrying(stage, before):
        return False
    return stage.train == before.train or stage.train in WIDER.get(before.train, ())


def _no_carrying(stage: Stage, before: Stage | None) -> str | None:
    """Why the optimizer's moments cannot go on from the stage before, in words, or None if they can."""
    if before is None:
        return "no stage is before the first"
    if stage.train == "new_rows":
        return "moments of old rows would go on moving them"
    if (stage.train == "lora") != (before.train == "lora"):
        return "a LoRA stage and another one share no parameters"
    return None


def _parse(text: str, run: Stage, problems: list[str]) -> Stage | None:
    """The stage that `text` describes, or None and what is wrong with it in `problems`."""
    train, *settings = text.split(",")
    found: list[str] = []
    if train not in get_args(Trained):
        found.append(f"the first word says what trains, one of {', '.join(get_args(Trained))}, such as {EXAMPLE}")
    given: dict[str, Any] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in READERS:
            found.append(f"{setting!r} is no setting; use KEY=VALUE with one of {', '.join(READERS)} and no blanks")
        elif key in given:
            found.append(f"{key} is set twice; set it once")
        else:
            given[key] = _read(key, value, found)
    if train in EMBEDDINGS_ONLY and "lr" in given:
        if "embeds_lr" in given:
            found.append(f"lr and embeds_lr are both set, but {train} trains embeddings alone; set one of the two")
        given["embeds_lr"] = given["lr"]
    problems += [f"--stages {text}: {problem}" for problem in found]
    return None if found else replace(run, train=train, **given)  # type: ignore[arg-type]


def _read(key: str, value: str, found: list[str]) -> Any:
    convert, rule = READERS[key]
    try:
        return convert(value)
    except ValueError:
        found.append(f"{key}={value} is not {rule}")
        return None


def _whole(smallest: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        number = int(value)
        if number < smallest:
            raise ValueError
        return number

    return read


def _positive(value: str) -> float:
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError
    return number


def _one_of(words: tuple[str, ...]) -> Callable[[str], str]:
    def read(value: str) -> str:
        if value not in words:
            raise ValueError
        return value

    return read


READERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "steps": (_whole(1), "a whole number of at least 1"),
    "lr": (_positive, "a positive number, such as 3e-4"),
    "embeds_lr": (_positive, "a positive number, such as 3e-4"),
    "warmup_steps": (_whole(0), "a whole number of at least 0"),
    "lr_schedule": (_one_of(get_args(ScheduleName)), f"one of {', '.join(get_args(ScheduleName))}"),
    "optimizer": (_one_of(get_args(Carrying)), f"one of {', '.join(get_args(Carrying))}"),
}
