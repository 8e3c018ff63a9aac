"""Peak memory and wall time of init_model on a 7B-shaped bf16 checkpoint, against a plain copy of the same files.

The checkpoint is made up (13.5 GB, vocabulary 32,000 -> 69,104), in shards as Hugging Face has them, then as one file.
Copy and command run in turn on the same disk, from a cold source until the data are on the disk (fsync). In the end
every tensor but the matrices is hashed on both sides with the safetensors library. Needs 28 GB of disk for a while.
`python benchmarks/init_model.py --directory DIR --rounds 3`; `--scale 16` for a quick look.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any, BinaryIO

from tokenizer_tools.command import UserError, command
from tokenizer_tools.weight_files import TensorInfo, write_safetensors

NEW_PIECES = 69_104 - 32_000
VOCAB_SIZE, HIDDEN_SIZE, INTERMEDIATE_SIZE, LAYERS = 32_000, 4096, 11_008, 32
SHARD_BYTES = 5 * 10**9
POLL_SECONDS = 0.05
MATRICES = ("model.embed_tokens.weight", "lm_head.weight")


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure what init_model needs beyond a plain copy."""

    directory: Path
    """Where the checkpoints are made, measured and deleted: any directory of the disk in question."""
    rounds: int = 3
    """Rounds a layout; each measures one copy and one run of the command."""
    scale: int = 1
    """Divides the layers and the widths of the model: 16 is a quick look."""


@command(BenchmarkConfig)
def main(config: BenchmarkConfig) -> None:
    """Print peak memory, seconds and ratios for both layouts."""
    if HIDDEN_SIZE % config.scale:
        raise UserError(f"--scale {config.scale}: must divide {HIDDEN_SIZE}; try 16")
    with tempfile.TemporaryDirectory(dir=config.directory, prefix="init_model_benchmark.") as name:
        work = Path(name)
        make_tokenizers(work / "tokenizer", work / "target_tokenizer")
        for layout, shard_bytes in (("sharded", SHARD_BYTES // config.scale**3), ("single file", 10**15)):
            make_checkpoint(work / "source", work / "tokenizer", config.scale, shard_bytes)
            measure(layout, work, config.rounds)
            shutil.rmtree(work / "source")


def measure(layout: str, work: Path, rounds: int) -> None:
    """Copy and command in turn; then the proof that all other tensors are the same bytes."""
    source, target = work / "source", work / "target"
    copies, runs, peaks = [], [], []
    num_bytes = sum(file.stat().st_size for file in source.iterdir())
    print(f"{layout}: {num_bytes / 1e9:.2f} GB in {len(list(source.glob('*.safetensors')))} file(s)", flush=True)
    for k in range(rounds):
        seconds, _ = from_cold(source, lambda: copy(source, target))
        copies.append(seconds)
        shutil.rmtree(target)
        seconds, peak = from_cold(source, lambda: run(source, work / "target_tokenizer", target))
        runs.append(seconds)
        peaks.append(peak)
        print(f"  copy {copies[-1]:6.1f} s   init_model {seconds:6.1f} s   peak {peak / 2**30:.2f} GiB", flush=True)
        if k < rounds - 1:
            shutil.rmtree(target)
    ratios = [run / copy for run, copy in zip(runs, copies, strict=True)]
    print(f"  median: copy {statistics.median(copies):.1f} s, init_model {statistics.median(runs):.1f} s")
    print(f"  ratio {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f}); limit 1.50")
    print(f"  peak RSS {max(peaks) / 2**30:.2f} GiB; limit 2.50")
    old, new = hashes(source), hashes(target)
    same = sum(new.get(key) == value for key, value in old.items())
    print(f"  other tensors with equal hashes: {same} of {len(old)}", flush=True)
    shutil.rmtree(target)


def from_cold(source: Path, work: Callable[[], Any]) -> tuple[float, Any]:
    """(seconds, result) of `work`, once the disk is idle and the source is out of the page cache."""
    os.sync()
    for path in source.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def copy(source: Path, target: Path) -> None:
    """A plain copy (`cp`, which is faster than shutil here), until it is on the disk."""
    subprocess.run(["cp", "-r", source, target], check=True)
    for path in [*target.iterdir(), target]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def run(source: Path, tokenizer: Path, target: Path) -> int:
    """The command in a process of its own; returns its peak resident memory in bytes."""
    paths = {
        "source_model_and_tokenizer_path": source,
        "target_tokenizer_path": tokenizer,
        "target_model_path": target,
    }
    flags = [word for name, path in paths.items() for word in (f"--{name}", str(path))]
    process = subprocess.Popen(
        [sys.executable, "-m", "tokenizer_tools.init_model", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parent.parent,
    )
    peak = 0  # of this program alone: getrusage would begin with the memory of the process that started it
    while process.poll() is None:
        peak = max(peak, high_water_mark(process.pid))
        time.sleep(POLL_SECONDS)
    if process.returncode:
        raise RuntimeError(f"init_model left with {process.returncode}")
    return peak


def high_water_mark(pid: int) -> int:
    """The most resident memory in bytes that a process has had so far; 0 if it is gone."""
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))


def hashes(directory: Path) -> dict[str, str]:
    """{tensor: sha256 of dtype, shape and bytes} of all tensors but the matrices, read by the safetensors library."""
    import torch
    from safetensors import safe_open

    found = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in set(file.keys()) - set(MATRICES):
                tensor = file.get_tensor(name)
                digest = hashlib.sha256(f"{tensor.dtype} {tensor.shape}".encode())
                digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
                found[name] = digest.hexdigest()
    return found


def make_tokenizers(source: Path, target: Path) -> None:
    """A real vocabulary of 32,000 pieces, and the same with NEW_PIECES pairs of its Chinese characters."""
    from transformers import LlamaTokenizerFast

    package = importlib.util.find_spec("mistral_common")
    if package is None or not package.submodule_search_locations:
        raise UserError("mistral_common is not installed, whose vocabulary is the source; pip install mistral-common")
    model = Path(package.submodule_search_locations[0]) / "data" / "tokenizer.model.v1"
    LlamaTokenizerFast(str(model)).save_pretrained(source)
    shutil.copytree(source, target)
    layout = json.loads((target / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary, merges = layout["model"]["vocab"], layout["model"]["merges"]
    characters = [piece for piece in vocabulary if len(piece) == 1 and "\u4e00" <= piece <= "\u9fff"]
    pairs = [pair for pair in product(characters, repeat=2) if "".join(pair) not in vocabulary]
    for left, right in islice(pairs, 0, None, len(pairs) // NEW_PIECES):
        if len(vocabulary) == VOCAB_SIZE + NEW_PIECES:
            break
        vocabulary[left + right] = len(vocabulary)
        merges.append([left, right])
    (target / "tokenizer.json").write_text(json.dumps(layout, ensure_ascii=False), encoding="utf-8")


def make_checkpoint(directory: Path, tokenizer: Path, scale: int, shard_bytes: int) -> None:
    """Llama-2-7B by its shapes: small normal numbers for the matrices, random bytes for all else."""
    shutil.copytree(tokenizer, directory)
    hidden, intermediate, layers = HIDDEN_SIZE // scale, INTERMEDIATE_SIZE // scale, max(1, LAYERS // scale)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
    }
    (directory / "config.json").write_text(json.dumps(config))
    shards: list[dict[str, TensorInfo]] = [{}]
    for name, shape in shapes(hidden, intermediate, layers):
        info = TensorInfo("BF16", shape, 2 * shape[0] * (shape[1] if len(shape) > 1 else 1))
        if sum(other.num_bytes for other in shards[-1].values()) + info.num_bytes > shard_bytes:
            shards.append({})
        shards[-1][name] = info
    names = [f"model-{k:05}-of-{len(shards):05}.safetensors" for k in range(1, len(shards) + 1)]
    names = ["model.safetensors"] if len(shards) == 1 else names
    for name, infos in zip(names, shards, strict=True):
        write_safetensors(directory / name, infos, {"format": "pt"}, partial(write_noise, infos))
    if len(shards) > 1:
        weight_map = {tensor: name for name, infos in zip(names, shards, strict=True) for tensor in infos}
        total = sum(info.num_bytes for infos in shards for info in infos.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def shapes(hidden: int, intermediate: int, layers: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of a Llama in the order of its layers."""
    yield MATRICES[0], (VOCAB_SIZE, hidden)
    for layer in range(layers):
        for part in ("q", "k", "v", "o"):
            yield f"model.layers.{layer}.self_attn.{part}_proj.weight", (hidden, hidden)
        yield f"model.layers.{layer}.mlp.gate_proj.weight", (intermediate, hidden)
        yield f"model.layers.{layer}.mlp.up_proj.weight", (intermediate, hidden)
        yield f"model.layers.{layer}.mlp.down_proj.weight", (hidden, intermediate)
        yield f"model.layers.{layer}.input_layernorm.weight", (hidden,)
        yield f"model.layers.{layer}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    yield MATRICES[1], (VOCAB_SIZE, hidden)


def write_noise(infos: dict[str, TensorInfo], name: str, file: BinaryIO) -> int:
    """Write a tensor, another stream of numbers for each name; returns its bytes."""
    import numpy as np
    import torch

    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    if name in MATRICES:
        rows = 0.02 * torch.randn(infos[name].shape, generator=torch.Generator().manual_seed(seed))
        return file.write(rows.to(torch.bfloat16).view(torch.uint8).numpy().tobytes())
    return file.write(np.random.default_rng(seed).bytes(infos[name].num_bytes))


if __name__ == "__main__":
    sys.exit(main())
