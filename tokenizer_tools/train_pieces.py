"""Mine new pieces: text and an old tokenizer come in, a file of pieces, best first, and what they will save go out.

A line of the file: `piece`; `count`, how often the text makes it (as a token or as a step to a longer piece);
`tokens_saved` by that; `tokens_per_character` of the text with this piece and all before it (the curve);
`expected_occurrences` as a token in the planned training. Whatever head of the file is used, init_tokenizer needs no
intermediates for it.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import regex
from simple_parsing import choice
from tqdm import tqdm

from tokenizer_tools.choose import Choice, choose
from tokenizer_tools.command import UserError, command
from tokenizer_tools.curve import Curve, Proof, draw_curve, make_curve, prove, written_lines
from tokenizer_tools.held_out import CURVE, LEARN, Shares, divide, units_of
from tokenizer_tools.mine import MODEL_TYPES, propose
from tokenizer_tools.outputs import write_whole_file
from tokenizer_tools.pieces import fault_of
from tokenizer_tools.result_files import check_plot_name, refuse_existing_files
from tokenizer_tools.savings import Forecast, Savings, find_cut_off, spelled, symbols_in
from tokenizer_tools.spelling import BLANK
from tokenizer_tools.symbols import SymbolTable, covered_characters
from tokenizer_tools.texts import find_text_files, read_texts, split_paths
from tokenizer_tools.tokenizer import TextEncoder, load_tokenizer
from tokenizer_tools.units import UNITS
from tokenizer_tools.vocabulary import Vocabulary, open_vocabulary

log = logging.getLogger(__name__)

TOLERATED_ERROR = 0.01  # of a prediction, relative


@dataclass
class TrainPiecesConfig:
    """Mine the pieces that would save an old tokenizer the most tokens on some text, and tell what they will save.

    New merges start from the old tokenizer's tokens, so only what it lacks is found. Of pieces that differ only by a
    blank (`▁`) or by the width of their characters the best is kept.
    """

    data_input_dirs: str
    """directories (or files) of .jsonl records or .txt texts, separated by commas"""
    tokenizer_dir: Path
    """the old tokenizer, sentencepiece or byte-level BPE: what it has already is not mined"""
    num_pieces: int
    """the budget: how many pieces to write"""
    output_file: Path
    """file to write, for --expand_tokens_file of init_tokenizer"""
    categories: str = ""
    """use only text of these categories, separated by commas (default: all)"""
    model_type: str = choice(*MODEL_TYPES, default=MODEL_TYPES[0])
    """who proposes pieces: bpe (seconds to minutes) or unigram (many times slower)"""
    unit: str = choice(*UNITS, default="han")
    """what a piece may not reach beyond: a run of Han characters, a word (with the blank before it), a line of text"""
    character_coverage: float = 0.9995
    """share of the units' characters that may become pieces: the rarest characters beyond it are left to bytes"""
    held_out_share: float = 0.05
    """share of the documents that no piece is learned from: half draw the curve, half prove it"""
    planned_tokens: float = 1e9
    """tokens of the planned training: expected occurrences = planned tokens * (occurrences / tokens) in this text"""
    min_occurrences: float = 1000
    """suggested cut-off: beyond it each piece would be seen fewer times than this in the planned tokens"""
    plot: Path | None = None
    """file to draw the curve to (.png)"""
    overwrite: bool = False
    """replace existing output files"""

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        if self.num_pieces < 1:
            raise UserError(f"--num_pieces {self.num_pieces}: has to be at least 1; name how many pieces to write")
        if not 0.5 <= self.character_coverage <= 1:
            raise UserError(f"--character_coverage {self.character_coverage}: has to lie in 0.5 to 1; leave it out")
        if not 0 <= self.held_out_share <= 0.5:
            raise UserError(f"--held_out_share {self.held_out_share}: has to lie in 0 to 0.5; leave it out")
        if not self.planned_tokens >= 1:
            raise UserError(f"--planned_tokens {self.planned_tokens}: has to be at least 1; name a number of tokens")
        if not self.min_occurrences >= 0:
            raise UserError(f"--min_occurrences {self.min_occurrences}: has to be at least 0; leave it out")
        refuse_existing_files([self.output_file, self.plot], self.overwrite)
        check_plot_name(self.plot)


@command(TrainPiecesConfig)
def main(config: TrainPiecesConfig) -> None:
    """The command: see TrainPiecesConfig for its flags."""
    config.check()
    vocabulary = open_vocabulary(config.tokenizer_dir)
    encoder = TextEncoder(load_tokenizer(config.tokenizer_dir))
    documents = _wanted(find_text_files(split_paths(config.data_input_dirs)), config.categories)
    progress = tqdm(documents, desc="reading", unit="doc", disable=None)
    shares = divide(progress, encoder, config.unit, config.held_out_share)
    learned = units_of(shares[LEARN])
    table = SymbolTable(vocabulary, covered_characters(learned, config.character_coverage))
    spelling = table.spell(unit for share in shares.values() for unit in units_of(share))
    sequences = spelled(learned, spelling)
    log.info("mining %d different units (%s) with %s", len(learned), config.unit, config.model_type)
    chosen = _mine(sequences, table, vocabulary, config)
    if not chosen.pieces:
        raise UserError(_nothing_new(config, bool(learned)))
    savings = Savings(list(chosen.pieces.values()), table.costs, sequences)
    forecast = Forecast(savings, spelling, shares[CURVE])
    curve = make_curve(list(chosen.pieces), savings, forecast, shares, config.planned_tokens)
    cut_off = find_cut_off(curve.occurrences_if_last, config.min_occurrences)
    log.info("proving the curve on held-out documents")
    proofs = prove(curve, forecast, shares, vocabulary, cut_off)
    write_whole_file(config.output_file, written_lines(curve))
    if config.plot is not None:
        draw_curve(config.plot, curve, cut_off, proofs)
    _warn(config, chosen, shares, proofs)
    _report(config, chosen, curve, cut_off, proofs)


def _wanted(files: list[Path], categories: str) -> Iterator[tuple[str, str]]:
    """(category, text) in the wanted categories. Raises UserError for a wanted category that no document has."""
    wanted = {name.strip() for name in categories.split(",") if name.strip()}
    seen = set()
    for category, text in read_texts(files):
        seen.add(category)
        if not wanted or category in wanted:
            yield category, text
    if wanted - seen:
        raise UserError(f"--categories: no text of {sorted(wanted - seen)}; there is {', '.join(sorted(seen))}")


def _mine(sequences: Counter[str], table: SymbolTable, vocabulary: Vocabulary, config: TrainPiecesConfig) -> Choice:
    """The pieces: new characters and what BPE or unigram proposes, as far as init_tokenizer would take them."""
    special = regex.compile("|".join(map(regex.escape, sorted(vocabulary.special))) or r"(?!)")

    def is_refused(piece: str) -> bool:
        if fault_of(piece) is not None or special.search(piece) or vocabulary.spell(piece) in vocabulary.ids:
            return True
        return vocabulary.fault_of(piece) is not None

    savings = propose(sequences, config.model_type, config.num_pieces)
    for symbol, count in symbols_in(sequences).items():
        if table.costs[symbol] > 1:
            savings[symbol] = count * (table.costs[symbol] - 1)
    return choose(savings, table.text_of, lambda symbol: table.costs[symbol] > 1, is_refused, config.num_pieces)


def _nothing_new(config: TrainPiecesConfig, has_units: bool) -> str:
    if has_units:
        return f"{config.data_input_dirs}: the tokenizer has every piece of this text already; name other text"
    categories = f" in the categories {config.categories}" if config.categories else ""
    kind = "Chinese text" if config.unit == "han" else config.unit
    return f"{config.data_input_dirs}: holds no {kind}{categories} to learn from; name other text or another --unit"


def _warn(config: TrainPiecesConfig, chosen: Choice, shares: Shares, proofs: list[Proof]) -> None:
    if len(chosen.pieces) < config.num_pieces:
        log.warning("the text holds only %d new pieces, not %d; add text", len(chosen.pieces), config.num_pieces)
    if not units_of(shares[CURVE]):
        log.warning("no held-out text to draw the curve with: it is that of the learned text, and better than true")
    if any(abs(proof.error) > TOLERATED_ERROR for proof in proofs):
        log.warning(
            "predictions are off by more than 1 %%: few or uneven documents are held out; raise --held_out_share"
        )


def _report(config: TrainPiecesConfig, chosen: Choice, curve: Curve, cut_off: int, proofs: list[Proof]) -> None:
    """What was found, on stdout."""
    num_characters = sum(len(piece) == 1 for piece in chosen.pieces)
    ratios = curve.tokens_per_character
    print(f"{config.output_file}: {len(chosen.pieces)} pieces, {num_characters} of them single characters")
    print(f"left out: {len(chosen.twins)} that differ from a better piece only by `{BLANK}` or width")
    print(f"tokens per character of this text, predicted: {ratios[0]:.4f} -> {ratios[-1]:.4f}")
    print(
        f"suggested cut-off: {cut_off} pieces ({ratios[cut_off]:.4f}); beyond it a piece would be seen fewer than "
        f"{config.min_occurrences:,.0f} times in {config.planned_tokens:,.0f} tokens"
    )
    for proof in proofs:
        intermediates = f" and {proof.num_intermediates} intermediates" if proof.num_intermediates else ""
        print(
            f"held-out documents with {proof.num_pieces} pieces{intermediates}: "
            f"{proof.predicted_tokens:,.0f} tokens predicted, {proof.real_tokens:,} real ({proof.error:+.2%})"
        )


if __name__ == "__main__":
    sys.exit(main())
