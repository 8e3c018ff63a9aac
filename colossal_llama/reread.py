"""A model directory and ids come in; what a process that knows nothing else makes of them goes out.

`reread` starts `python -m colossal_llama.reread DIRECTORY`, which loads the model with plain transformers, as anybody
would. Tensors cross as safetensors bytes: ids on stdin, the probe on stdout.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load, save

from colossal_llama.probe import Probe, model_probe
from tokenizer_tools.command import UserError
from tokenizer_tools.parent import end_with_parent

ROOT = Path(__file__).parent.parent


def reread(directory: Path, input_ids: torch.Tensor, positions: torch.Tensor) -> Probe:
    """Load `directory` in a new process and score `input_ids`, int64 [length]. For `positions` see `Probe`.

    Raises UserError if the system ended that process, RuntimeError if it failed otherwise.
    """
    words = [sys.executable, "-m", "colossal_llama.reread", str(directory.resolve()), str(os.getpid())]
    done = subprocess.run(
        words,
        input=save({"input_ids": input_ids, "positions": positions}),
        capture_output=True,
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )
    if done.returncode == -signal.SIGKILL:
        raise UserError(
            f"{directory}: the process that loaded the model again was killed, for want of memory most likely; export "
            f"on a machine with more of it than the weights take"
        )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise RuntimeError(f"{directory}: a new process could not load what was written: {lines[-1]}")
    return Probe(**load(done.stdout))


def main() -> None:
    """The new process: DIRECTORY and the id of the process that started it are its arguments."""
    from transformers import AutoModelForCausalLM

    directory, parent = sys.argv[1:]
    end_with_parent(int(parent), signal.SIGTERM)
    asked, answer = load(sys.stdin.buffer.read()), sys.stdout.buffer
    sys.stdout = sys.stderr  # what a library prints is no tensor
    model = AutoModelForCausalLM.from_pretrained(directory, torch_dtype="auto", local_files_only=True).eval()
    answer.write(save(vars(model_probe(model, asked["input_ids"], asked["positions"]))))


if __name__ == "__main__":
    main()
