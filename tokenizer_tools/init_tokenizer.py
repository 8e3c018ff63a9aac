"""Expand a tokenizer: a source directory and a file of pieces come in, a new tokenizer directory goes out.

Ids never move: the k-th new piece of the file gets id `old size + k`, intermediates follow behind the last one, then
reserved pieces. The directory is proved (`verify_tokenizer`) before it gets its name.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from simple_parsing import field

from tokenizer_tools.closure import Closure, close
from tokenizer_tools.command import UserError, command
from tokenizer_tools.lineage import input_record
from tokenizer_tools.outputs import refuse_existing, whole_directory, write_json
from tokenizer_tools.pieces import LeftOut, PieceFile, read_pieces
from tokenizer_tools.proof_texts import Effect, close_without_changes, compare_texts
from tokenizer_tools.readers import Readers
from tokenizer_tools.texts import find_text_files, read_texts, split_paths
from tokenizer_tools.tokenizer import fingerprint, load_tokenizer
from tokenizer_tools.tokenizer_files import MANIFEST, REPORT, refuse_overlap
from tokenizer_tools.tokenizer_report import describe_expansion, readable_report
from tokenizer_tools.verify_tokenizer import verify_expansion
from tokenizer_tools.vocabulary import Vocabulary, open_vocabulary, sift

log = logging.getLogger(__name__)

LEFT_OUT_ON_TERMINAL = 10


@dataclass
class InitTokenizerConfig:
    """Add new pieces to a LLaMA-family tokenizer (sentencepiece or byte-level BPE); old ids and old text stay."""

    source_tokenizer_dir: Path
    """tokenizer to start from: with tokenizer.model (LLaMA-2) or a byte-level tokenizer.json (Llama-3, Qwen, SmolLM)"""
    target_tokenizer_dir: Path
    """directory to write: for slow and fast AutoTokenizer, with manifest.json and tokenizer_report.md"""
    expand_tokens_file: Path
    """new pieces, one {"piece": "你好"} a line, best first; `▁` or a blank for a blank"""
    strict: bool = False
    """stop at the first line that is refused, instead of going on without it"""
    max_intermediates: int | None = field(default=None)
    """refuse the last pieces that need more than so many intermediate pieces on the way to them (default: no limit)"""
    no_intermediates: bool = False
    """refuse every piece that needs an intermediate piece on the way to it"""
    pad_vocab_to_multiple_of: int = 1
    """fill the vocabulary with reserved pieces to a multiple of this (of --tp of the training, or 64)"""
    proof_texts: str = ""
    """real text (.jsonl, .txt or directories, separated by commas): all tokenizers are compared on every document"""
    forbid_old_text_changes: Path | None = field(default=None)
    """text in the old language: refuse the pieces that would change how any of its documents is cut"""
    overwrite: bool = False
    """replace an existing target directory"""

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        if self.no_intermediates and self.max_intermediates is not None:
            raise UserError("--no_intermediates means --max_intermediates 0; give only one of them")
        if self.max_intermediates is not None and self.max_intermediates < 0:
            raise UserError(
                f"--max_intermediates {self.max_intermediates}: has to be 0 or more; leave it out for no limit"
            )
        if self.pad_vocab_to_multiple_of < 1:
            raise UserError(f"--pad_vocab_to_multiple_of {self.pad_vocab_to_multiple_of}: has to be 1 (none) or more")

    @property
    def limit(self) -> int | None:
        """How many intermediates there may be."""
        return 0 if self.no_intermediates else self.max_intermediates


@command(InitTokenizerConfig)
def main(config: InitTokenizerConfig) -> None:
    """The command: see InitTokenizerConfig for its flags."""
    config.check()
    refuse_overlap(config.target_tokenizer_dir, config.source_tokenizer_dir)
    for path in (config.expand_tokens_file, config.forbid_old_text_changes, *split_paths(config.proof_texts)):
        if path is not None:
            refuse_overlap(config.target_tokenizer_dir, path)
    refuse_existing(config.target_tokenizer_dir, config.overwrite)
    proof_files = find_text_files(split_paths(config.proof_texts))
    vocabulary = open_vocabulary(config.source_tokenizer_dir)
    source = input_record(vocabulary.directory, "tokenizer", fingerprint(load_tokenizer(vocabulary.directory)))
    found, closure = close_pieces(config, sift(read_pieces(config.expand_tokens_file), vocabulary), vocabulary)
    _refuse_left_out(found, config.strict)
    new = [*closure.pieces, *closure.intermediates]
    reserved = reserved_pieces({*vocabulary.ids, *new}, config.pad_vocab_to_multiple_of)
    with whole_directory(config.target_tokenizer_dir, config.overwrite) as target:
        log.info("writing %d new pieces, %d of them intermediates", len(new), len(closure.intermediates))
        vocabulary.write(target, new, reserved)
        log.info("proving the written tokenizer")
        num_texts = verify_expansion(vocabulary, target, new, reserved)
        effects: dict[str, Effect] = {}
        if proof_files:
            effects = compare_texts(Readers(vocabulary.directory), Readers(target), read_texts(proof_files))
            if not effects:
                raise UserError(f"--proof_texts {config.proof_texts}: holds no document, so nothing is proved")
        manifest = describe_expansion(vocabulary, source, target, found, closure, reserved, num_texts, effects)
        write_json(target / MANIFEST, manifest)
        report = readable_report(manifest, found, len(found.refused) + len(found.skipped))
        (target / REPORT).write_text(report, encoding="utf-8")
    print(readable_report(manifest, found, LEFT_OUT_ON_TERMINAL), end="")


def close_pieces(config: InitTokenizerConfig, found: PieceFile, vocabulary: Vocabulary) -> tuple[PieceFile, Closure]:
    """The pieces that can stay, and their closure; the others are among the refused lines, with the reason."""
    pieces = {vocabulary.spell(piece): piece for piece in found.pieces}
    if config.forbid_old_text_changes is None:
        closure = close(vocabulary, list(pieces), config.limit)
    else:
        texts = [text for _, text in read_texts(find_text_files([config.forbid_old_text_changes]))]
        if not texts:
            raise UserError(f"--forbid_old_text_changes {config.forbid_old_text_changes}: holds no document")
        closure = close_without_changes(vocabulary, list(pieces), config.limit, texts)
    left_out = [
        LeftOut(found.pieces[pieces[string]], reason, f"{pieces[string]!r} {detail}")
        for string, (reason, detail) in closure.refused.items()
    ]
    kept = {pieces[string]: found.pieces[pieces[string]] for string in closure.pieces}
    return replace(
        found, pieces=kept, refused=sorted([*found.refused, *left_out], key=lambda entry: entry.line)
    ), closure


def _refuse_left_out(found: PieceFile, strict: bool) -> None:
    """Raise UserError if no piece is left, or if any line is refused and `strict` forbids it."""
    left_out = [*found.refused, *found.skipped]
    first = found.describe(left_out[0]) if left_out else ""
    if strict and found.refused:
        raise UserError(
            f"{first}; correct or remove the line, or leave out --strict ({len(found.refused)} are refused)"
        )
    if not found.pieces:
        raise UserError(
            f"{found.path}: no new piece in {found.num_read} lines{', for example ' if first else ''}{first}; "
            'write one {"piece": "..."} a line, with text that the tokenizer does not have yet'
        )


def reserved_pieces(taken: set[str], multiple: int) -> list[str]:
    """`<reserved_0>`, ...: as many free names as bring the size of `taken` to a multiple of `multiple`."""
    names: list[str] = []
    number = 0
    while (len(taken) + len(names)) % multiple:
        name = f"<reserved_{number}>"
        number += 1
        if name not in taken:
            names.append(name)
    return names


if __name__ == "__main__":
    sys.exit(main())
