"""The gate before training: the scores of an old and of a grown model come in, a verdict comes out.

Two questions, because one does not do. Bits per byte: is the old language hurt, is the new one worse than it may be? A
model just grown reads its new language worse or better than before, whether its new rows are right or exchanged among
each other: the two lie closer together than one base model lies to the next. So the rows are asked too: is each new row
more like the old rows that spell its piece than like those that spell other pieces? Chance is 0.5.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from colossal_llama.scoring import Sums, total_of
from tokenizer_tools.command import UserError
from tokenizer_tools.tokenizer import TextEncoder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

OLD_TEXT = 0.01  # text with fewer new pieces than this share of its tokens is of the old language
MOST_PIECES_COMPARED = 2000  # each with each, in fp32: 16 MB
NOT_A_CHARACTER = "\ufffd"  # what a byte that is no whole character decodes to


@dataclass(frozen=True)
class Bounds:
    """How many bits per byte a category may cost more than before, the old language apart; how well rows must fit."""

    max_increase: float
    max_increase_old: float
    min_row_rank: float


@dataclass(frozen=True)
class Change:
    """One category: its bits per byte in both models and how far apart they may be."""

    baseline_bits_per_byte: float
    bits_per_byte: float
    increase: float
    bound: float
    new_piece_share: float


@dataclass(frozen=True)
class Verdict:
    """`faults` are empty if the start may be trained from; `row_ranks` of the input and the output matrix."""

    categories: dict[str, Change]
    total: Change
    row_ranks: dict[str, float]
    faults: list[str]

    def as_json(self) -> dict[str, Any]:
        """What --json prints under "gate"."""
        return {"passed": not self.faults, **asdict(self)}


def new_ids_of(old_vocab: dict[str, int], new_vocab: dict[str, int]) -> range:
    """The ids that only the new vocabulary has. Raises UserError if it is not the old one with pieces appended."""
    moved = [piece for piece, old_id in old_vocab.items() if new_vocab.get(piece) != old_id]
    if moved:
        raise UserError(
            f"piece {moved[0]!r} has id {old_vocab[moved[0]]} in --baseline, but {new_vocab.get(moved[0])} in --model; "
            "name as --baseline the model that --model was grown from"
        )
    return range(len(old_vocab), len(new_vocab))


def check_same_start(old: TextEncoder, new: TextEncoder) -> None:
    """Raise UserError if the first token of a document does not follow the same token in both models."""
    if old.prefix_ids != new.prefix_ids or old.eos_ids != new.eos_ids:
        raise UserError(
            f"the tokenizer of --model begins a text with ids {new.prefix_ids} and ends it with {new.eos_ids}, that of "
            f"--baseline {old.prefix_ids} and {old.eos_ids}; give both the same add_bos_token, bos_token and eos_token"
        )
    if not (new.prefix_ids or new.eos_ids):
        raise UserError(
            "neither tokenizer has a token to begin a text with, so first tokens, longer in --model, would cost "
            "nothing; give both tokenizers an eos_token"
        )


def judge(baseline: dict[str, Sums], model: dict[str, Sums], row_ranks: dict[str, float], bounds: Bounds) -> Verdict:
    """The verdict on the scores of `model`, by category, and the ranks of its new rows, by matrix."""
    categories = {name: _change(baseline[name], sums, bounds) for name, sums in model.items()}
    total = _change(total_of(baseline), total_of(model), bounds)
    faults = [
        f"{name} costs {change.bits_per_byte:.4f} bits per byte, {change.baseline_bits_per_byte:.4f} in the baseline: "
        f"{change.increase:.4f} more, the bound is {change.bound:g} (--{_flag(change.new_piece_share)})"
        for name, change in [*categories.items(), ("all text", total)]
        if not change.increase <= change.bound
    ]
    faults += [
        f"its new {name} rows are not at their pieces: rank {rank:.3f}, 0.5 is chance, the bound is "
        f"{bounds.min_row_rank:g} (--min_row_rank)"
        for name, rank in row_ranks.items()
        if not rank >= bounds.min_row_rank
    ]
    return Verdict(categories, total, row_ranks, faults)


def _change(old: Sums, new: Sums, bounds: Bounds) -> Change:
    bound = getattr(bounds, _flag(new.new_share))
    return Change(old.bits_per_byte, new.bits_per_byte, new.bits_per_byte - old.bits_per_byte, bound, new.new_share)


def _flag(new_piece_share: float) -> str:
    """The name of the bound, as a flag and as a field of Bounds."""
    return "max_increase_old" if new_piece_share < OLD_TEXT else "max_increase"


def rank_rows(
    model: PreTrainedModel, old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast, new_ids: range
) -> dict[str, float]:
    """{"input": rank, "output": rank} (one of them if they are tied); see `rank_of_own`. {} below two new pieces.

    A piece is spelled as the old tokenizer does inside a text; what is no whole character has no spelling.
    """
    decode = new.backend_tokenizer.decoder.decode
    sample = new_ids[:: max(1, len(new_ids) // MOST_PIECES_COMPARED)]
    texts = {new_id: decode([new.convert_ids_to_tokens(new_id)]) for new_id in sample}
    ids = [new_id for new_id, text in texts.items() if text and NOT_A_CHARACTER not in text]
    parts = TextEncoder(old).encode_batch([texts[new_id] for new_id in ids], continuation=True)
    if len(ids) < 2:
        return {}
    matrices = {"input": model.get_input_embeddings().weight, "output": model.get_output_embeddings().weight}
    if matrices["input"] is matrices["output"]:
        del matrices["output"]
    return {name: rank_of_own(rows[ids], [rows[part_ids] for part_ids in parts]) for name, rows in matrices.items()}


def rank_of_own(new_rows: torch.Tensor, part_rows: list[torch.Tensor]) -> float:
    """new_rows [n, hidden] and their pieces' old rows, n of [parts, hidden] -> 0 to 1, a mean over new rows.

    Of the other pieces, the share whose parts' mean has a smaller cosine to the new row than its own parts' mean has; a
    tie counts half. 1 is each row at home, 0.5 rows exchanged, drawn at random or all alike. (It is the area under the
    ROC curve of the question whether a row and a spelling belong together.)
    """
    import torch

    with torch.inference_mode():
        means = torch.stack([rows.float().mean(0) for rows in part_rows])
        cosines = torch.nn.functional.normalize(new_rows.float()) @ torch.nn.functional.normalize(means).T
        own = cosines.diagonal()[:, None]
        below = (cosines < own).sum(1) + ((cosines == own).sum(1) - 1) / 2  # each ties with itself
        return (below / (len(new_rows) - 1)).mean().item()


def print_comparison(verdict: Verdict, baseline: dict[str, Sums], model: dict[str, Sums], title: str) -> None:
    """Both models side by side as a table on stdout, the old one first."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    table.add_column("category")
    for name in ("tokens", "->", "new", "bits/byte", "->", "more", "bound", ""):
        table.add_column(name, justify="right")
    lines = [(name, change, baseline[name], model[name]) for name, change in verdict.categories.items()]
    for name, change, old, new in [*lines, ("all", verdict.total, total_of(baseline), total_of(model))]:
        table.add_row(
            name,
            f"{old.num_tokens:,}",
            f"{new.num_tokens:,}",
            f"{change.new_piece_share:.1%}",
            f"{change.baseline_bits_per_byte:.4f}",
            f"{change.bits_per_byte:.4f}",
            f"{change.increase:+.4f}",
            f"{change.bound:g}",
            "ok" if change.increase <= change.bound else "worse",
        )
    console = Console(soft_wrap=True, highlight=False)
    console.print(title, markup=False)
    console.print(table)
    for name, rank in verdict.row_ranks.items():
        console.print(f"new {name} rows at their pieces: {rank:.3f} (1 all, 0.5 chance)")
