"""Held-out text and a model directory in; loss, perplexity, accuracy and bits per byte, per category, out.

`python -m colossal_llama.evaluate --model DIR --data PATH`. The tokenizer is the one beside the weights. Compare models
with different vocabularies by bits per byte: the loss is a mean per token, and tokens change with the vocabulary.

A document is scored in windows of --max_length tokens that begin with the last token of the window before (or BOS), so
every token of the text is predicted exactly once; the end-of-sequence token is not counted. (Without BOS a
document's first token has nothing before it and is not scored.) Where a record has a
`source`, only its `target` is scored.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_parsing import field, flag

from data_tools.encode import encode_records
from data_tools.records import Record, find_files, parse_line, read_lines
from tokenizer_tools.command import UserError, command
from tokenizer_tools.tokenizer import TextEncoder, load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NATS_PER_BIT = math.log(2)


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a model on held-out text: loss, perplexity, token accuracy and bits per byte, per category."""

    model: Path
    """Hugging Face model directory with its tokenizer."""
    data: list[Path]
    """jsonl files of {"source", "target", "category"} lines, or directories of them."""
    max_length: int = 1024
    """Window in tokens; longer documents are scored in several."""
    batch_tokens: int = 4096
    """Tokens, padding included, taken through the model at once."""
    max_documents: int | None = field(default=None)
    """Score only the first so many documents of each category."""
    json: bool = flag(default=False)
    """Print one JSON document instead of a table."""


@dataclass(frozen=True)
class Window:
    """Consecutive ids of a document; the loss counts from position `loss_start` on."""

    category: str
    input_ids: list[int]
    loss_start: int


@dataclass
class Sums:
    """What is added up over windows and documents; every figure is a ratio of these."""

    nats: float = 0.0
    num_tokens: int = 0
    num_correct: int = 0
    num_bytes: int = 0
    num_documents: int = 0

    def add(self, other: Sums) -> None:
        """Add in place."""
        self.nats += other.nats
        self.num_tokens += other.num_tokens
        self.num_correct += other.num_correct
        self.num_bytes += other.num_bytes
        self.num_documents += other.num_documents

    def figures(self) -> dict[str, float]:
        """Loss in nats a token, perplexity, share of tokens predicted first, bits a UTF-8 byte of the text."""
        loss = self.nats / max(1, self.num_tokens)
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "accuracy": self.num_correct / max(1, self.num_tokens),
            "bits_per_byte": self.nats / NATS_PER_BIT / max(1, self.num_bytes),
            "tokens": self.num_tokens,
            "bytes": self.num_bytes,
            "documents": self.num_documents,
        }


@command(EvaluateConfig)
def main(config: EvaluateConfig) -> None:
    """Evaluate and print."""
    if config.max_length < 2:
        raise UserError(f"--max_length {config.max_length}: a window needs at least 2 tokens")
    records = read_records(config.data, config.max_documents)
    from colossal_llama.host import inference_device, keep_freed_memory
    from colossal_llama.model import load_model

    keep_freed_memory()
    encoder = TextEncoder(load_tokenizer(config.model))
    model = load_model(config.model, "auto", "sdpa", use_grad_checkpoint=False).to(inference_device()).eval()
    result = evaluate(model, encoder, records, config.max_length, config.batch_tokens)
    if config.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        print_table(result)


def read_records(paths: list[Path], max_documents: int | None) -> list[Record]:
    """Documents of the files, at most `max_documents` a category. Raises UserError for the first bad line."""
    records: list[Record] = []
    taken: dict[str, int] = defaultdict(int)
    for path in paths:
        if not path.exists():
            raise UserError(f"--data {path}: no such file or directory; name jsonl files or directories of them")
        files = find_files([path])[0] if path.is_dir() else [path]
        for parsed in map(parse_line, read_lines(files)):
            if parsed is None:
                continue
            if not isinstance(parsed, Record):
                raise UserError(f"{parsed.file}:{parsed.line_number}: {parsed.reason}; correct or remove the line")
            if max_documents is None or taken[parsed.category] < max_documents:
                taken[parsed.category] += 1
                records.append(parsed)
    if not records:
        raise UserError(f"--data {', '.join(map(str, paths))}: holds no document; name jsonl files of records")
    return records


def evaluate(
    model: PreTrainedModel, encoder: TextEncoder, records: list[Record], max_length: int, batch_tokens: int
) -> dict[str, Any]:
    """{"categories": {name: figures}, "total": figures}; see `Sums.figures`."""
    from tqdm import tqdm

    sums: dict[str, Sums] = defaultdict(Sums)
    windows = []
    for record, sequence in zip(records, encode_records(encoder, records), strict=True):
        sums[record.category].add(Sums(num_bytes=len(record.target.encode()), num_documents=1))
        if sequence is not None:
            ids = sequence.input_ids[: len(sequence.input_ids) - len(encoder.eos_ids)]
            windows += list(cut_windows(record.category, ids, sequence.loss_start, max_length))
    for batch in tqdm(list(batches(windows, batch_tokens)), desc="evaluating", unit="batch", disable=None):
        for window, window_sums in zip(batch, score(model, batch), strict=True):
            sums[window.category].add(window_sums)
    total = Sums()
    for part in sums.values():
        total.add(part)
    return {"categories": {name: sums[name].figures() for name in sorted(sums)}, "total": total.figures()}


def cut_windows(category: str, input_ids: list[int], loss_start: int, max_length: int) -> Iterator[Window]:
    """Windows of at most `max_length` ids; each begins with the last id of the one before."""
    for start in range(0, max(1, len(input_ids) - 1), max_length - 1):
        ids = input_ids[start : start + max_length]
        if len(ids) > max(1, loss_start - start):
            yield Window(category, ids, max(1, loss_start - start))


def batches(windows: list[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Windows of like length together, so that little is padded; longest first: memory runs out at once or never."""
    batch: list[Window] = []
    for window in sorted(windows, key=lambda window: -len(window.input_ids)):
        if batch and (len(batch) + 1) * len(batch[0].input_ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def score(model: PreTrainedModel, batch: list[Window]) -> list[Sums]:
    """Sums of each window. Padding is on the right, where causal attention keeps it out of every token's sight."""
    import torch

    length = len(batch[0].input_ids)
    input_ids = torch.zeros(len(batch), length, dtype=torch.int64)
    counts = torch.zeros(len(batch), length, dtype=torch.bool)  # whether position i is predicted by position i - 1
    for line, window in enumerate(batch):
        input_ids[line, : len(window.input_ids)] = torch.tensor(window.input_ids)
        counts[line, window.loss_start : len(window.input_ids)] = True
    input_ids, counts = input_ids.to(model.device), counts[:, 1:].to(model.device)
    nats, correct = token_scores(model, input_ids)
    columns = zip(
        (nats * counts).sum(1).tolist(), counts.sum(1).tolist(), (correct & counts).sum(1).tolist(), strict=True
    )
    return [Sums(nats=n, num_tokens=t, num_correct=c) for n, t, c in columns]


def token_scores(model: PreTrainedModel, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids [rows, length] -> -log p of each next token (fp64) and whether it was likeliest, [rows, length - 1]."""
    import torch

    with torch.inference_mode():
        logits = model(input_ids=input_ids).logits[:, :-1].float()
        targets = input_ids[:, 1:]
        nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return nats.view_as(targets).double(), logits.argmax(-1) == targets


def print_table(result: dict[str, Any]) -> None:
    """The figures as a table on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    table.add_column("category")
    for name in ("documents", "tokens", "loss", "perplexity", "accuracy", "bits/byte"):
        table.add_column(name, justify="right")
    for name, row in [*result["categories"].items(), ("all", result["total"])]:
        table.add_row(
            name,
            f"{row['documents']:,}",
            f"{row['tokens']:,}",
            f"{row['loss']:.4f}",
            f"{row['perplexity']:,.2f}",
            f"{row['accuracy']:.4f}",
            f"{row['bits_per_byte']:.4f}",
        )
    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
