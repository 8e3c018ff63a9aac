"""Held-out text and a model directory in; loss, perplexity, accuracy and bits per byte, per category, out.

`python -m colossal_llama.evaluate --model DIR --data PATH`. The tokenizer is the one beside the weights. Compare models
with different vocabularies by bits per byte: the loss is a mean per token, and tokens change with the vocabulary.

With `--baseline DIR`, the model that this one was grown from, both are scored on the same documents, one after the
other in memory, and a start that is not worth a cluster is refused with exit code 2: see `gate.py`.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simple_parsing import field, flag

from colossal_llama.gate import Bounds, check_same_start, judge, new_ids_of, print_comparison, rank_rows
from colossal_llama.scoring import Sums, score_records, total_of
from data_tools.fields import ReadOptions
from data_tools.input_files import Span, files_at
from data_tools.readers import read_span
from data_tools.records import Record
from tokenizer_tools.command import UserError, command
from tokenizer_tools.freed_memory import keep_freed_memory
from tokenizer_tools.tokenizer import TextEncoder, load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

DEFAULT_BOUNDS = Bounds(max_increase=2.0, max_increase_old=0.2, min_row_rank=0.8)


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a model on held-out text: loss, perplexity, token accuracy and bits per byte, per category."""

    model: Path
    """Hugging Face model directory with its tokenizer."""
    data: list[Path]
    """jsonl files of {"source", "target", "category"} lines, or directories of them."""
    baseline: Path | None = field(default=None)
    """The model directory that --model was grown from: score both, and refuse a bad start with exit code 2."""
    max_increase: float | None = field(default=None)
    """With --baseline: bits per byte that a category with new pieces may cost more than before (default 2)."""
    max_increase_old: float | None = field(default=None)
    """The same where less than 1 in 100 tokens is a new piece: in the old language (default 0.2)."""
    min_row_rank: float | None = field(default=None)
    """With --baseline: how much more a new row is like the old rows of its own piece than like those of others, 1 for
    always, 0.5 for chance (default 0.8; 0 to let rows pass that have nothing to do with their pieces)."""
    max_length: int = 1024
    """Window in tokens; longer documents are scored in several. Not more than the models were trained on: beyond that
    the figures say little, least of all compared, since the old tokenizer fills more windows with the same text."""
    batch_tokens: int = 4096
    """Tokens, padding included, taken through the model at once."""
    max_documents: int | None = field(default=None)
    """Score only the first so many documents of each category."""
    json: bool = flag(default=False)
    """Print one JSON document instead of a table."""

    def bounds(self) -> Bounds:
        """The gate's bounds. Raises UserError for one without --baseline or one that bounds nothing."""
        names = ("max_increase", "max_increase_old", "min_row_rank")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        for name, value in given.items():
            if self.baseline is None:
                raise UserError(f"--{name} {value:g} bounds a comparison; add --baseline DIR, the model before it grew")
            if not math.isfinite(value):
                raise UserError(f"--{name} {value:g} bounds nothing; give a finite number")
        return replace(DEFAULT_BOUNDS, **given)


@command(EvaluateConfig)
def main(config: EvaluateConfig) -> None:
    """Evaluate and print; with --baseline, compare and refuse."""
    if config.max_length < 2:
        raise UserError(f"--max_length {config.max_length}: a window needs at least 2 tokens")
    bounds = config.bounds()
    records = read_records(config.data, config.max_documents)
    if config.baseline is not None:
        compare(config, config.baseline, records, bounds)
        return
    model, tokenizer = load(config.model)
    result = as_json(score_model(config.model, model, tokenizer, records, config, range(0)))
    if config.json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        print_table(result)


def compare(config: EvaluateConfig, baseline_dir: Path, records: list[Record], bounds: Bounds) -> None:
    """Score both models, print them side by side, raise UserError if the gate stays shut."""
    old_tokenizer, new_tokenizer = load_tokenizer(baseline_dir), load_tokenizer(config.model)
    check_same_start(TextEncoder(old_tokenizer), TextEncoder(new_tokenizer))
    new_ids = new_ids_of(old_tokenizer.get_vocab(), new_tokenizer.get_vocab())
    model, _ = load(config.model)
    scores = score_model(config.model, model, new_tokenizer, records, config, new_ids)
    row_ranks = rank_rows(model, old_tokenizer, new_tokenizer, new_ids)
    del model  # there need not be memory for two
    model, _ = load(baseline_dir)
    old_scores = score_model(baseline_dir, model, old_tokenizer, records, config, new_ids)
    verdict = judge(old_scores, scores, row_ranks, bounds)
    if config.json:
        both = {"model": as_json(scores), "baseline": as_json(old_scores), "gate": verdict.as_json()}
        print(json.dumps(both, ensure_ascii=False))
    else:
        print_comparison(verdict, old_scores, scores, f"{baseline_dir} -> {config.model}")
    if verdict.faults:
        sys.stdout.flush()  # the table stands before its reason
        raise UserError(
            f"{config.model} is no start to train from: {'; '.join(verdict.faults)}; "
            f"make it anew from {baseline_dir} with init_model, or loosen the bound if you mean it"
        )


def load(directory: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """The model, where it will run, and its tokenizer. Raises UserError if the model lacks rows for the tokenizer."""
    from colossal_llama.host import FREED_AHEAD_BYTES, inference_device
    from colossal_llama.model import load_model

    keep_freed_memory(FREED_AHEAD_BYTES)
    tokenizer = load_tokenizer(directory)
    model = load_model(directory, "auto", "sdpa", use_grad_checkpoint=False)
    num_rows = model.get_input_embeddings().weight.shape[0]
    if num_rows < len(tokenizer):
        raise UserError(
            f"{directory}: the embedding has {num_rows} rows, but the tokenizer beside it has {len(tokenizer)} pieces; "
            "grow the model to this tokenizer with init_model"
        )
    return model.to(inference_device()).eval(), tokenizer


def score_model(
    directory: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    records: list[Record],
    config: EvaluateConfig,
    new_ids: range,
) -> dict[str, Sums]:
    """The sums of each category. Raises UserError if one is no number: a broken model is not compared."""
    scores = score_records(model, TextEncoder(tokenizer), records, config.max_length, config.batch_tokens, new_ids)
    for name, sums in scores.items():
        if not math.isfinite(sums.nats):
            raise UserError(f"{directory}: the loss of {name} is {sums.nats}; the weights are broken, make them anew")
    return scores


def as_json(scores: dict[str, Sums]) -> dict[str, Any]:
    """{"categories": {name: figures}, "total": figures}; see `Sums.figures`."""
    return {
        "categories": {name: sums.figures() for name, sums in scores.items()},
        "total": total_of(scores).figures(),
    }


def read_records(paths: list[Path], max_documents: int | None) -> list[Record]:
    """Documents of the files, at most `max_documents` a category. Raises UserError for the first bad line."""
    records: list[Record] = []
    taken: dict[str, int] = defaultdict(int)
    for file in (file for path in paths for file in files_at(path, "--data")):
        for item in read_span(Span(str(file), 0, file.stat().st_size), ReadOptions()):
            if not isinstance(item, Record):
                raise UserError(f"{item.file}:{item.line_number}: {item.reason}; correct or remove the line")
            if max_documents is None or taken[item.category] < max_documents:
                taken[item.category] += 1
                records.append(item)
    if not records:
        raise UserError(f"--data {', '.join(map(str, paths))}: holds no document; name files of records")
    return records


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
