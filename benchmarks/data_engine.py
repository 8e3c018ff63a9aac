"""Stage 3 beside a plain `datasets.map` script and beside the bare tokenizer: CPU seconds, disk and memory in one run.

Text comes from the files of the installed Python packages, or from --data; the tokenizer from --tokenizer_dir, or it is
the 32,000-piece model of the package mistral-common. Every figure is of a child process with all that it starts:
user + system seconds, bytes handed to the disk, resident memory of its largest process. Nothing is asserted.

    python benchmarks/data_engine.py --directory DIR [--megabytes 48] [--data TEXT_DIR] [--tokenizer_dir DIR]
"""

from __future__ import annotations

import json
import os
import shutil
import site
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizer_tools.command import UserError, command

COMMAND = Path(__file__).resolve().parent.parent / "data_tools" / "prepare_pretrain_dataset.py"
BLOCK_BYTES = 512  # what ru_oublock counts
DOCUMENT_CHARACTERS = 1500
TIMES_MORE = 10

TOKENIZER_CONFIG = {
    **{"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, "add_eos_token": False},
    **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "model_max_length": 4096},
}

RAW = """
import glob, resource, sys, orjson
from pathlib import Path
from data_tools.backends import make_backend
from tokenizer_tools.tokenizer import TextEncoder, load_tokenizer
directory = Path(sys.argv[2])
files = sorted(glob.glob(sys.argv[1] + "/*.jsonl"))
texts = [orjson.loads(line)["target"] for file in files for line in open(file, "rb")]
encode = make_backend("gigatoken", TextEncoder(load_tokenizer(directory)), directory, False)
encode(["warm"])
before = resource.getrusage(resource.RUSAGE_SELF)
num_tokens = sum(len(encode(texts[i : i + 2000]).flat) for i in range(0, len(texts), 2000))
after = resource.getrusage(resource.RUSAGE_SELF)
print(num_tokens, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
"""

PLAIN = """
import itertools, sys
from datasets import load_dataset
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
data = load_dataset("json", data_files=sys.argv[1] + "/*.jsonl", split="train", cache_dir=sys.argv[3] + "/cache")
def tokenize(batch):
    ids = tokenizer(batch["target"])["input_ids"]
    return {"input_ids": [one + [tokenizer.eos_token_id] for one in ids]}
def group(batch):
    ids = list(itertools.chain(*batch["input_ids"]))
    rows = [ids[i : i + 4096] for i in range(0, len(ids) // 4096 * 4096, 4096)]
    return {"input_ids": rows, "labels": [list(row) for row in rows]}
data = data.map(tokenize, batched=True, remove_columns=data.column_names).map(group, batched=True)
data.save_to_disk(sys.argv[3] + "/bins")
"""


WANTED = {
    "bare encode_batch, CPU s": "",
    "stage 3 with its start-up, CPU s": "",
    "stage 3, steady state, CPU s": "",
    "datasets.map script, CPU s": "",
    "script / stage 3": "at least 5",
    "bare encode / steady state": "at least 0.4",
    "many small files / usual files": "",
    "one huge file / usual files": "",
    "disk written / final bins": "under 1.3",
    "peak memory, MiB": "",
    f"peak memory with {TIMES_MORE} x the text": "within 1.2",
}


@dataclass
class BenchmarkConfig:
    """Stage 3 beside a plain `datasets.map` script and beside the bare tokenizer."""

    directory: Path
    """Where text and outputs lie meanwhile; about 30 bytes a byte of text are needed"""
    megabytes: int = 48
    """Text of the first runs, in MB; memory is also measured with ten times as much"""
    rounds: int = 3
    """How often everything is measured, in turn; medians are printed, and the range of each ratio"""
    data: Path | None = None
    """Directory of .jsonl text, default: the files of the installed packages"""
    tokenizer_dir: Path | None = None
    """Tokenizer, default: the one of the package mistral-common"""


@dataclass(frozen=True)
class Cost:
    """What a child process and all that it started have used."""

    cpu_seconds: float
    written_bytes: int
    peak_bytes: int
    output: str


def run(*words: object) -> Cost:
    """Run Python with these words. Raises UserError if it fails."""
    environment = os.environ | {"PYTHONPATH": str(COMMAND.parent.parent), "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    output, errors = process.stdout.read(), process.stderr.read()  # type: ignore[union-attr]
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise UserError(f"{words[0]}: failed; {errors[-500:]}")
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_oublock * BLOCK_BYTES, usage.ru_maxrss * 1024, output)


def prepare(text: Path, tokenizer: Path, target: Path) -> Cost:
    """Stage 3 as a user runs it; the output is left for a look at its size."""
    shutil.rmtree(target, ignore_errors=True)
    flags = ("--data_input_dirs", text, "--tokenizer_dir", tokenizer, "--data_arrow_output_dir", target)
    return run(COMMAND, *flags)


def package_texts() -> Iterator[str]:
    """The text of all files of the installed packages, in pieces of DOCUMENT_CHARACTERS, again and again, numbered."""
    files = [
        path for path in sorted(Path(site.getsitepackages()[0]).rglob("*")) if path.suffix in (".py", ".md", ".txt")
    ]
    for number in range(1000):
        for path in files:
            text = path.read_text(encoding="utf-8", errors="ignore").replace("\0", "")
            for start in range(0, len(text), DOCUMENT_CHARACTERS):
                yield f"{number} {text[start : start + DOCUMENT_CHARACTERS]}"


def given_texts(directory: Path) -> Iterator[str]:
    """The targets of all .jsonl files, again and again, numbered."""
    files = sorted(directory.rglob("*.jsonl"))
    for number in range(1000):
        for path in files:
            with path.open(encoding="utf-8") as lines:
                yield from (f"{number} {json.loads(line)['target']}" for line in lines)


def write_text(texts: Iterator[str], directory: Path, num_bytes: int, file_bytes: int) -> None:
    """Files of about `file_bytes`, in three categories, `num_bytes` of text in all."""
    directory.mkdir(parents=True)
    written = number = 0
    while written < num_bytes:
        with (directory / f"{number:06d}.jsonl").open("w", encoding="utf-8") as file:
            start = written
            while written < min(start + file_bytes, num_bytes):
                text = next(texts)
                file.write(json.dumps({"target": text, "category": "abc"[len(text) % 3]}, ensure_ascii=False) + "\n")
                written += len(text.encode())
        number += 1


def write_tokenizer(directory: Path) -> Path:
    """The 32,000 pieces that the package mistral-common ships."""
    import importlib.util

    package = importlib.util.find_spec("mistral_common")
    if package is None or not package.submodule_search_locations:
        raise UserError("the package mistral-common is not installed; name a --tokenizer_dir")
    directory.mkdir(parents=True)
    model = Path(package.submodule_search_locations[0]) / "data" / "tokenizer.model.v1"
    shutil.copy(model, directory / "tokenizer.model")
    (directory / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG))
    return directory


def size_of(directory: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def measure(root: Path, tokenizer: Path) -> dict[str, float]:
    """Every figure once, one after the other."""
    num_tokens, raw = map(float, run("-c", RAW, root / "whole", tokenizer).output.split())
    quarter, whole, small, huge, more = (
        prepare(root / name, tokenizer, root / f"bins-{name}") for name in ("quarter", "whole", "small", "huge", "more")
    )
    shutil.rmtree(root / "plain", ignore_errors=True)
    plain = run("-c", PLAIN, root / "whole", tokenizer, root / "plain")
    steady = (whole.cpu_seconds - quarter.cpu_seconds) / 0.75
    return {
        "tokens": num_tokens,
        "bare encode_batch, CPU s": raw,
        "stage 3 with its start-up, CPU s": whole.cpu_seconds,
        "stage 3, steady state, CPU s": steady,
        "datasets.map script, CPU s": plain.cpu_seconds,
        "script / stage 3": plain.cpu_seconds / whole.cpu_seconds,
        "bare encode / steady state": raw / steady,
        "many small files / usual files": small.cpu_seconds / whole.cpu_seconds,
        "one huge file / usual files": huge.cpu_seconds / whole.cpu_seconds,
        "disk written / final bins": whole.written_bytes / size_of(root / "bins-whole"),
        "peak memory, MiB": whole.peak_bytes / 2**20,
        f"peak memory with {TIMES_MORE} x the text": more.peak_bytes / whole.peak_bytes,
    }


@command(BenchmarkConfig)
def main(config: BenchmarkConfig) -> None:
    """Measure and print."""
    root = config.directory
    shutil.rmtree(root, ignore_errors=True)
    tokenizer = config.tokenizer_dir or write_tokenizer(root / "tokenizer")
    num_bytes = config.megabytes * 10**6
    texts = package_texts() if config.data is None else given_texts(config.data)
    for name, size, file_bytes in [
        ("quarter", num_bytes // 4, 10**7),
        ("whole", num_bytes, 10**7),
        ("more", TIMES_MORE * num_bytes, 10**7),
        ("small", num_bytes, 10**4),
        ("huge", num_bytes, 10**12),
    ]:
        write_text(texts, root / name, size, file_bytes)

    rounds = [measure(root, tokenizer) for _ in range(config.rounds)]
    print(f"{config.megabytes} MB of text, {rounds[0]['tokens']:,.0f} tokens; medians of {config.rounds} rounds")
    for name, wanted in WANTED.items():
        values = [one[name] for one in rounds]
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"{name:42}{statistics.median(values):8.2f}   ({spread}){f'; wanted: {wanted}' if wanted else ''}")
    shutil.rmtree(root)


if __name__ == "__main__":
    sys.exit(main())
