"""How much there is to read, and for which vocabulary: flags come in, rows and figures of tokenizers go out."""

from __future__ import annotations

import math
from pathlib import Path

from colossal_llama.planning.plan_config import PlanConfig, count_of
from colossal_llama.planning.speed import Amount
from tokenizer_tools.command import UserError
from tokenizer_tools.outputs import read_json

MANIFEST = "manifest.json"


def amount_of(config: PlanConfig) -> Amount:
    """Rows of --dataset as they were written, or so many full ones as --num_tokens fill."""
    if config.num_tokens is not None:
        num_tokens = count_of(config.num_tokens, "--num_tokens")
        return Amount(math.ceil(num_tokens / config.max_length), num_tokens, config.max_length, "--num_tokens")
    from data_tools.bins import open_bins

    bins = open_bins(config.dataset)
    if bins.max_length > config.max_length:
        raise UserError(
            f"--dataset has rows of {bins.max_length} tokens, but --max_length is {config.max_length}; "
            f"raise it or prepare the data with a smaller --max_length"
        )
    num_tokens = sum(part.num_tokens for part in bins.bins)
    return Amount(bins.num_rows, num_tokens, bins.max_length, ", ".join(map(str, config.dataset)))


def vocabulary_before(config: PlanConfig) -> int | None:
    """Rows of the embeddings before the expansion; None if there was none that anybody tells of."""
    if config.vocab_before is not None:
        return config.vocab_before
    if config.compared is not None:
        return int(_compared(config.compared)[0]["vocab_size"])
    manifest = config.pretrained / MANIFEST
    if not manifest.is_file():
        return None
    sizes = read_json(manifest, "the manifest of init_model").get("vocab_size", {})
    before, after = sizes.get("before", 0), sizes.get("after", 0)
    return before if 0 < before < after else None


def tokens_per_character(config: PlanConfig) -> tuple[float, float] | None:
    """With the old and the new tokenizer; None where nobody has measured it."""
    if config.tokens_per_character:
        before, after = config.tokens_per_character
        return before, after
    if config.compared is None:
        return None
    old, new = _compared(config.compared)
    return old["total"]["tokens_per_character"], new["total"]["tokens_per_character"]


def _compared(path: Path) -> list[dict]:
    tokenizers = read_json(path, "the output of compare_tokenizers OLD NEW --data PATH --json").get("tokenizers", {})
    if not isinstance(tokenizers, dict) or len(tokenizers) != 2:
        raise UserError(f"--compared {path}: must compare two tokenizers, the old and the new; run it with both")
    return list(tokenizers.values())
