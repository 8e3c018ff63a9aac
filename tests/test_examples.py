"""What is shipped as an example is run as shipped."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import read_metrics

CHECKOUT = Path(__file__).parent.parent
RUN_TIMEOUT_SECONDS = 400


def run_in(directory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command as a user types it, with the environment's own bin first in the path."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    return subprocess.run(
        words, cwd=directory, env=environment, capture_output=True, text=True, timeout=RUN_TIMEOUT_SECONDS, check=False
    )


def test_the_example_script_trains_in_two_phases_through_colossalai_run(
    tiny_model_dir: Path, tiny_bins_dir: Path, tmp_path: Path
) -> None:
    """`bash train.example.sh`, unchanged, finds what `make demo` would have left below the current directory."""
    shutil.copytree(tiny_model_dir, tmp_path / "runs" / "demo" / "init_model")
    shutil.copytree(tiny_bins_dir, tmp_path / "runs" / "demo" / "bins")

    done = run_in(tmp_path, "bash", str(CHECKOUT / "train.example.sh"))

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    warmup, full = tmp_path / "runs" / "example" / "warmup", tmp_path / "runs" / "example" / "full"
    steps = read_metrics(full)
    assert [step["step"] for step in steps] == list(range(1, len(steps) + 1))
    assert steps[-1]["loss"] < read_metrics(warmup)[0]["loss"]
    assert (full / "latest").read_text().strip() == f"epoch-1_step-{len(steps)}"
    model = AutoModelForCausalLM.from_pretrained(full / "modeling")
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(full / "modeling"))

    again = run_in(tmp_path, "bash", str(CHECKOUT / "train.example.sh"))
    assert again.returncode == 0, again.stderr[-3000:]
    assert read_metrics(full) == steps, "the same command on a finished run must change nothing"


def test_a_failing_launch_does_not_print_the_environment(tiny_model_dir: Path, tmp_path: Path) -> None:
    """colossalai run prints every variable of a failed launch; the script hands it a clean environment."""
    os.environ["SECRET_TOKEN_OF_THIS_TEST"] = "s3cret-value"
    try:
        done = run_in(tmp_path, "bash", str(CHECKOUT / "train.example.sh"))
    finally:
        del os.environ["SECRET_TOKEN_OF_THIS_TEST"]
    assert done.returncode != 0
    assert "--pretrained runs/demo/init_model: no such directory" in done.stdout + done.stderr
    assert "s3cret-value" not in done.stdout + done.stderr


def test_the_host_file_has_one_host_a_line_and_nothing_else() -> None:
    """colossalai run takes a comment, a slot count or a user for a host's name."""
    assert (CHECKOUT / "hostfile.example").read_text().split("\n") == ["localhost", ""]
