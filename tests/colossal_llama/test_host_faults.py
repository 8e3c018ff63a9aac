"""Hosts that die, are cut off, slow down, stop or run out of disk in the midst of training: the run goes on by itself.

`colossalai run --max_restarts` over two hosts of a lab ends with the weights of an undisturbed run, on what is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.colossal_llama.killing import build_shim
from tests.colossal_llama.parity import LOSS_TOLERANCE
from tests.colossal_llama.runs import weights_of
from tests.conftest import argv_of, read_metrics
from tests.lab import LOGIN, Lab, lab_of

ROOT = Path(__file__).parent.parent.parent
DETECTED_SECONDS = 60
FAULTY_FROM_STEP = 8

FULL_DISK_SCRIPT = """
import ctypes, os, sys
sys.path.insert(0, {root!r})
if os.uname().nodename == "h1":
    ctypes.CDLL(None).shim_arm({save_dir!r}.encode(), b"step-15", ctypes.c_long(1), 3, b"/dev/null")
import train
from colossal_llama.background import leave
leave(train.main())
"""


@dataclass(frozen=True)
class Fault:
    """What befalls h1 once some steps are done, and what the launcher has to say of it."""

    strike: Callable[[Lab], None]
    said: str
    num_ranks_after: int
    flags: dict[str, str] = field(default_factory=dict)


FAULTS = {
    "killed": Fault(lambda lab: lab.kill("h1"), "h1: lost while its ranks were running", 1),
}
SOAK = {
    "disk full": Fault(lambda lab: None, "rank 1 on h1 failed first (exit code 2)", 1),
    "cut off": Fault(lambda lab: lab.cut("h1"), "h1", 1),
    "slow": Fault(lambda lab: lab.slow("h1", "64kbit"), "no step has ended for", 1, {"stall_limit": "15s"}),
    "rank stopped": Fault(lambda lab: _to_ranks_of(lab, "h1", "STOP"), "rank 1", 2),
    "rank killed": Fault(
        lambda lab: _to_ranks_of(lab, "h1", "KILL"), "rank 1 on h1 failed first (ended by SIGKILL)", 2
    ),
}


def _to_ranks_of(lab: Lab, host: str, signal_name: str) -> None:
    lab.shell(host, f"pkill -{signal_name} -f 'train[.]py'")


@pytest.fixture(scope="module")
def long_flags(flags: dict[str, Any]) -> dict[str, Any]:
    """Steps of four rows, whatever the number of ranks."""
    own = {"mixed_precision": "fp32", "micro_batch_size": 2, "global_batch_size": 4, "max_steps": 40, "num_epochs": 2}
    return {**flags, **own, "save_interval": 5, "keep_checkpoints": 3, "log_interval": 1}


@pytest.fixture(scope="module")
def undisturbed(
    train: Callable[..., list[dict[str, Any]]], long_flags: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The save_dir of a whole run on two ranks of one host."""
    save_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    train(2, save_dir, **long_flags)
    return save_dir


@pytest.mark.parametrize("name", [*FAULTS, *(pytest.param(name, marks=pytest.mark.soak) for name in SOAK)])
def test_a_run_goes_on_by_itself_on_the_hosts_that_are_left(
    name: str, long_flags: dict[str, Any], undisturbed: Path, tmp_path: Path
) -> None:
    fault = {**FAULTS, **SOAK}[name]
    save_dir, script = tmp_path / "run", ROOT / "train.py"
    with lab_of(tmp_path / "lab", 2) as lab:
        hostfile = lab.directory / "hostfile"
        hostfile.write_text("h0\nh1\n")
        environment = {}
        if name == "disk full":
            shim = build_shim(tmp_path)
            assert shim is not None
            script, environment = tmp_path / "train.py", {"LD_PRELOAD": str(shim)}
            script.write_text(FULL_DISK_SCRIPT.format(root=str(ROOT), save_dir=str(save_dir)))
        own = ["colossalai", "run", "--nproc_per_node", "1", "--hostfile", str(hostfile), "--max_restarts", "2"]
        words = [*own, str(script), *argv_of(save_dir=save_dir, **long_flags, **fault.flags)]
        said = (tmp_path / "said").open("w+")
        process = lab.popen(LOGIN, *words, environment=environment, stdout=said, stderr=said)
        log = save_dir / "metrics.jsonl"
        while not log.exists() or len(log.read_text().splitlines()) < FAULTY_FROM_STEP:
            assert process.poll() is None, (tmp_path / "said").read_text()
            time.sleep(0.02)
        fault.strike(lab)
        began = time.monotonic()
        while "; starting again, 1 of 2 times" not in (tmp_path / "said").read_text():
            assert process.poll() is None and time.monotonic() - began < 3 * DETECTED_SECONDS
            time.sleep(0.2)
        seconds = time.monotonic() - began
        code = process.wait(timeout=300)
        output = (tmp_path / "said").read_text()
    assert code == 0, output
    [line] = [line for line in output.splitlines() if "; starting again, 1 of 2 times" in line]
    assert fault.said in line
    assert seconds < DETECTED_SECONDS, output
    assert f"{long_flags['plugin']}, {fault.num_ranks_after} process(es)" in output
    found, expected = read_metrics(save_dir), read_metrics(undisturbed)
    assert [step["row_chain"] for step in found] == [step["row_chain"] for step in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=LOSS_TOLERANCE["fp32"])
    weights = weights_of(undisturbed / "modeling")
    for weight_name, tensor in weights_of(save_dir / "modeling").items():
        torch.testing.assert_close(tensor, weights[weight_name], rtol=1e-3, atol=1e-5)
    print(f"{name}: started again {seconds:.1f} s after the fault")
