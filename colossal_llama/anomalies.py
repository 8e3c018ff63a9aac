"""Bad steps: the verdicts of the guard come in; which rows they were, and whether the run goes on, goes out.

The verdicts lie on the device and are read with the log line, or after every step if the run is to stop at once.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from colossal_llama.batches import BatchReader
from colossal_llama.cluster import main_rank_logger
from colossal_llama.config import AnomalyPolicy
from colossal_llama.journal import Journal
from colossal_llama.step import StepResult
from tokenizer_tools.command import UserError

MOST_IN_A_ROW = 10
ROWS_IN_LOG = 3


@dataclass(frozen=True)
class JudgedStep:
    """A step whose verdict has not been read."""

    step: int
    first_row: int
    result: StepResult


class Anomalies:
    """What to do about bad steps. All ranks hold one and read the same verdicts, so that they stop together."""

    def __init__(self, policy: AnomalyPolicy, journal: Journal | None, reader: BatchReader) -> None:
        self._policy, self._journal, self._reader = policy, journal, reader
        self._pending: list[JudgedStep] = []
        self._num_in_a_row = 0
        self.num_bad = 0
        """Bad steps read so far."""
        self._log = main_rank_logger(__name__)

    def take(self, step: int, first_row: int, result: StepResult) -> None:
        """Remember a step; `first_row` is the number of its first row. Reads it at once under the policy `stop`."""
        self._pending.append(JudgedStep(step, first_row, result))
        if self._policy == "stop":
            self.read()

    def read(self) -> None:
        """Read all verdicts. Raises UserError if the run is to stop."""
        pending, self._pending = self._pending, []
        for judged in pending:
            is_bad = bool(judged.result.is_bad)
            self._num_in_a_row = self._num_in_a_row + 1 if is_bad else 0
            self.num_bad += is_bad
            if is_bad:
                self._report(judged)

    def _report(self, judged: JudgedStep) -> None:
        loss, norm = float(judged.result.loss), float(judged.result.grad_norm)
        what = f"step {judged.step}: loss {loss:.4g}, gradient norm {norm:.4g}"
        if self._journal is not None:  # the other ranks need not look the rows up
            rows = self._rows(judged)
            self._journal.append(
                [{"step": judged.step, "loss": loss, "grad_norm": norm, "policy": self._policy, "rows": rows}]
            )
            self._log.warning(f"{what}; {self._outcome()}; worst rows: {_worst(rows)}; all are in anomalies.jsonl")
        if self._policy == "stop":
            raise UserError(
                f"{what} (--on_anomaly stop); look at its rows in anomalies.jsonl, take them out of the data or go on "
                f"from the last checkpoint with --on_anomaly skip"
            )
        if self._policy == "skip" and self._num_in_a_row >= MOST_IN_A_ROW:
            raise UserError(
                f"{what}: {self._num_in_a_row} bad steps in a row, the run does not recover; go on from an earlier "
                f"checkpoint with a lower --lr, or look at the rows in anomalies.jsonl"
            )

    def _outcome(self) -> str:
        return "the step was trained on" if self._policy == "ignore" else "the weights were left as they were"

    def _rows(self, judged: JudgedStep) -> list[dict[str, Any]]:
        """Every row of the step, the worst first: NaN, then by mean loss a token."""
        losses = (judged.result.row_nats / judged.result.row_tokens.clamp(min=1)).tolist()
        rows = []
        for number in self._reader.rows_of_step(judged.first_row):
            origin = dataclasses.asdict(self._reader.origin(number))
            rows.append(
                {"number": number, **origin, "bucket": str(origin["bucket"]), "loss": losses[number - judged.first_row]}
            )
        return sorted(rows, key=lambda row: -float("inf") if row["loss"] != row["loss"] else -row["loss"])


def _worst(rows: list[dict[str, Any]]) -> str:
    return "; ".join(f"{row['bucket']} row {row['row']} (loss {row['loss']:.4g})" for row in rows[:ROWS_IN_LOG])
