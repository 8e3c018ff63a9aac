"""`train.py ... --rehearse`: the flags of a real run come in, a verdict on this very command line goes out.

A driver around unchanged runs of train.py on the CPU: a small model of the same architecture, the real data, every
switch of the flags. One run is left alone, one is killed and started again; they must end alike. docs/rehearsal.md says
what that can show and what it cannot.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

import psutil

from colossal_llama.checks import check
from colossal_llama.config import TrainConfig
from colossal_llama.rehearsal import flags, inputs
from colossal_llama.rehearsal.ranks import Processes, Start
from colossal_llama.rehearsal.runs import Runs
from colossal_llama.rehearsal.shrink import shrunken, write_shrunken
from colossal_llama.rehearsal.verdict import Fault, Verdict
from tokenizer_tools.command import UserError

FEWEST_PROCESSES, MOST_PROCESSES = 4, 8
RANK_BYTES = 2 * 2**30  # a rank with 4096 tokens and 70,000 pieces, measured
CANNOT_SHOW = (
    "not rehearsed: memory and speed of the real model (python -m colossal_llama.plan); hosts, network and GPUs "
    "(python -m colossal_llama.preflight); fp16, flash-attn, other kernels of a GPU; what the rates do to real weights"
)

log = logging.getLogger(__name__)


def rehearse(config: TrainConfig, start: Start) -> None:
    """Check the real inputs, run, kill, resume, compare, export; print the verdict.

    Raises UserError that names the check that failed, SystemExit(1) after such a line if the user is not at fault.
    """
    _refuse_ranks()
    verdict = Verdict()
    place = Path(tempfile.mkdtemp(prefix="rehearsal-"))
    try:
        _rehearse(config, start, place, verdict)
    except Exception as error:
        print(verdict.text())
        _keep_logs(place)
        raise _ended(error, verdict) from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
    print(verdict.text())
    print(CANNOT_SHOW)
    print(f"rehearsal passed: {len(verdict.rows)} checks in {verdict.seconds:.0f} s")


def start_processes(script: Path) -> Start:
    """Ranks of train.py, which is `script`, as processes of their own."""
    return lambda flags_file, world_size, log_file: Processes(script, flags_file, world_size, log_file)


def _refuse_ranks() -> None:
    if "RANK" in os.environ or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise UserError(
            "--rehearse starts its processes itself; leave the launcher away: python train.py ... --rehearse"
        )


def _rehearse(config: TrainConfig, start: Start, place: Path, verdict: Verdict) -> None:
    present, notes = inputs.without_what_is_to_come(config)
    verdict.notes += notes
    verdict.check("flags", lambda: _check_flags(present))
    data = verdict.check("data", lambda: inputs.find_data(present))
    model = verdict.check("model", lambda: inputs.find_model(present, data))
    verdict.notes += [*model.notes, *inputs.planned(present, data)]
    layout = flags.small_layout(present, _most_processes())
    pretrained = place / "model"
    verdict.check("shrunken model", lambda: _shrink(present, model, layout, pretrained))
    undisturbed, killed = (
        flags.rehearsed(present, layout, data.row_length, data.num_rows, pretrained, place / name)
        for name in ("undisturbed", "killed")
    )
    verdict.notes += [f"changed: {what} ({why})" for what, why in flags.changed(config, undisturbed)]
    runs = Runs(start, place, layout.world_size)
    verdict.check("run", lambda: runs.undisturbed(undisturbed))
    verdict.check("kill", lambda: runs.killed(killed))
    verdict.check("resume", lambda: runs.resumed(killed))
    verdict.check("same end", lambda: runs.same_end(undisturbed, killed))
    verdict.check("export", lambda: _export(killed.save_dir, place / "exported"))


def _check_flags(config: TrainConfig) -> str:
    check(config)
    return "fit together"


def _most_processes() -> int:
    room = psutil.virtual_memory().available // RANK_BYTES
    return max(FEWEST_PROCESSES, min(MOST_PROCESSES, os.cpu_count() or 1, room))


def _shrink(config: TrainConfig, model: inputs.Model, layout: flags.Layout, target: Path) -> str:
    small = shrunken(model.hf_config, layout.divisor(config.sp_mode), layout.pp)
    num_parameters = write_shrunken(small, model.directory, model.num_old, target)
    return (
        f"{small.model_type}, {num_parameters:,} parameters: {small.num_hidden_layers} layers of width "
        f"{small.hidden_size}, all {small.vocab_size:,} rows of the vocabulary"
    )


def _export(save_dir: Path, target: Path) -> str:
    """The last checkpoint through export, which loads what it has written with plain transformers."""
    from colossal_llama import export

    logging.getLogger("colossal_llama.export").setLevel(logging.WARNING)
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        code = export.main(["--checkpoint", str(save_dir), "--target", str(target)])
    if code:
        lines = complained.getvalue().splitlines() or ["it has said nothing"]
        raise Fault(lines[-1].removeprefix("error: "))
    return said.getvalue().strip().partition(": ")[2]


def _keep_logs(place: Path) -> None:
    if (place / "logs").is_dir():
        kept = Path(tempfile.mkdtemp(prefix="rehearsal-logs-"))
        shutil.copytree(place / "logs", kept, dirs_exist_ok=True)
        log.info(f"what the processes have said is in {kept}")


def _ended(error: Exception, verdict: Verdict) -> BaseException:
    """What ends this process: the name of the check that failed, with its line."""
    at = next((row for row in verdict.rows if not row.passed), None)
    message = f"rehearsal failed at {at.name}: {at.line}" if at else f"rehearsal failed between two checks: {error!r}"
    if isinstance(error, UserError | OSError):
        return UserError(message)
    if not isinstance(error, Fault):
        traceback.print_exception(error)
    print(f"error: {message}", file=sys.stderr, flush=True)
    return SystemExit(1)
