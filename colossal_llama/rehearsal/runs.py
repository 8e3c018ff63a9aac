"""The runs of a rehearsal: one is left alone, one is killed and started again, and both must end alike.

Each method is a check of the verdict: it returns what it has found, or raises `Fault`, or UserError as the run did.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.config import TrainConfig
from colossal_llama.rehearsal import compare
from colossal_llama.rehearsal.flags import kill_after, num_stages, num_steps
from colossal_llama.rehearsal.ranks import Job, Start, watch
from colossal_llama.rehearsal.verdict import Fault
from tokenizer_tools.outputs import write_json

KILLS = 3  # tries: a small run may end before it can be killed


@dataclass
class Runs:
    """Runs on `world_size` ranks; flags and logs lie in `place`, which the flags' --save_dir may share."""

    start: Start
    place: Path
    world_size: int
    saved_at_kill: int = 0
    lines_at_kill: tuple[str, ...] = ()

    def undisturbed(self, config: TrainConfig) -> str:
        """A whole run."""
        watch(self._started(config, "undisturbed"))
        steps = compare.metrics(config.save_dir)
        num_bad = sum(bool(step["is_bad"]) for step in steps)
        bad = f", {num_bad} of them bad" if num_bad else ""
        return (
            f"{len(steps)} steps{bad} in {num_stages(config)} stage(s) on {self.world_size} process(es); loss "
            f"{_loss(steps[0])} -> {_loss(steps[-1])}"
        )

    def killed(self, config: TrainConfig) -> str:
        """A run up to a checkpoint inside its last stage."""
        last = num_steps(config)
        for number in range(1, KILLS + 1):
            shutil.rmtree(config.save_dir, ignore_errors=True)
            job = self._started(config, f"killed-{number}")
            watch(job, until=lambda: compare.saved_steps(config.save_dir) > kill_after(config))
            job.kill()
            saved = compare.saved_steps(config.save_dir)
            if saved < last:
                self.saved_at_kill = saved
                self.lines_at_kill = tuple(compare.metrics_lines(config.save_dir)[:saved])
                return f"SIGKILL to every process; the newest checkpoint is of step {saved} of {last}"
        raise Fault(f"the run ended {KILLS} times before it could be killed")

    def resumed(self, config: TrainConfig) -> str:
        """The killed run by the same command line."""
        watch(self._started(config, "resumed"))
        lines = compare.metrics_lines(config.save_dir)
        if tuple(lines[: self.saved_at_kill]) != self.lines_at_kill:  # their times would be others
            raise Fault(f"the run began anew, and did not go on after step {self.saved_at_kill}")
        return f"the same command line went on after step {self.saved_at_kill} and ended with step {len(lines)}"

    def same_end(self, undisturbed: TrainConfig, resumed: TrainConfig) -> str:
        """Both runs compared."""
        found = compare.differences(undisturbed.save_dir, resumed.save_dir)
        if found:
            raise Fault(f"the resumed run ended otherwise than the undisturbed one: {compare.in_words(found)}")
        return "the resumed and the undisturbed run: each figure, row and weight is the same, bit for bit"

    def _started(self, config: TrainConfig, name: str) -> Job:
        flags_file = self.place / f"{config.save_dir.name}.json"
        write_json(flags_file, config.as_json())
        (self.place / "logs").mkdir(exist_ok=True)
        return self.start(flags_file, self.world_size, self.place / "logs" / name)


def _loss(step: dict[str, Any]) -> str:
    return "not finite" if step["loss"] is None else f"{step['loss']:.3f}"
