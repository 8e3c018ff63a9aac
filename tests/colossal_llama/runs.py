"""Whole runs of train.py for the tests of this folder: what they say, what they leave, how they are cut short."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from colossal_llama import lora

ROW_LENGTH = 64


def outcome(argv: list[str]) -> tuple[int, str]:
    """train.py in this process: its exit code and its `error:` lines."""
    import train

    heard = io.StringIO()
    with contextlib.redirect_stderr(heard):
        code = train.main(argv)
    return code, "\n".join(line for line in heard.getvalue().splitlines() if line.startswith("error:"))


def outcomes(argvs: list[list[str]], ports: list[int]) -> list[tuple[int, str]]:
    """One after another in this process. Each has its own port: a slow rank may still serve the one before."""
    results = []
    for argv, port in zip(argvs, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        results.append(outcome(argv))
    return results


def free_ports(count: int) -> list[int]:
    """So many ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def stopped_copy(run: Path, copy: Path, step: int) -> Path:
    """`run` as it would be if it had been killed in the middle of writing the line after `step`'s checkpoint.

    The later lines of metrics.jsonl are there, but with a loss that no training gives, and the last one is cut off.
    """
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "modeling", ignore_errors=True)
    for path in copy.glob("epoch-*"):
        if int(path.name.partition("_step-")[2]) > step:
            shutil.rmtree(path)
        elif path.name.endswith(f"_step-{step}"):
            (copy / "latest").write_text(path.name + "\n")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [line if line["step"] <= step else {**line, "loss": -1.0} for line in lines]
    text = "".join(json.dumps(line) + "\n" for line in kept)
    (copy / "metrics.jsonl").write_text(text[:-20])
    return copy


def write_adapter(model: Any, directory: Path) -> None:
    """The files of a LoRA adapter, as a checkpoint has them."""
    save_file(
        {name: t.detach().clone().contiguous() for name, t in lora.adapter_tensors(model).items()},
        directory / lora.WEIGHTS,
        metadata={"format": "pt"},
    )
    lora.write_adapter_config(model, directory)


def weights_of(model_dir: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a safetensors directory."""
    return {
        name: tensor for path in sorted(model_dir.glob("*.safetensors")) for name, tensor in load_file(path).items()
    }


def rows_of(*bucket_dirs: Path) -> list[tuple[list[int], list[int]]]:
    """(ids, labels) of every row, read with nothing but pyarrow."""
    rows = []
    for bucket_dir in bucket_dirs:
        for path in sorted(bucket_dir.rglob("data-*.arrow")):
            with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as reader:
                table = reader.read_all()
            rows += zip(table["input_ids"].to_pylist(), table["labels"].to_pylist(), strict=True)
    return rows


def num_predicted(rows: list[tuple[list[int], list[int]]]) -> int:
    """Labelled tokens but each row's first, which nothing predicts."""
    return sum(int((np.array(labels[1:]) != -100).sum()) for _, labels in rows)


def summed_loss(model_dir: Path, rows: list[tuple[list[int], list[int]]]) -> float:
    """-log p of every predicted token, row by row, by transformers in fp32."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, torch_dtype=torch.float32).eval()
    total = 0.0
    with torch.inference_mode():
        for ids, labels in rows:
            logarithms = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
            total -= sum(logarithms[i - 1, labels[i]].item() for i in range(1, len(ids)) if labels[i] != -100)
    return total
