"""Expand a tokenizer: a source directory and a file of pieces come in, a new tokenizer directory goes out.

Ids never move: the k-th new piece of the file gets id `old size + k`, intermediates follow behind the last one. The
directory is proved (`verify_tokenizer`) before it gets its name, and carries `manifest.json` and a readable report.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizer_tools.command import UserError, command
from tokenizer_tools.expand import ModelProto, append_pieces, find_intermediates, load_model, sift_known
from tokenizer_tools.outputs import refuse_existing, whole_directory, write_json
from tokenizer_tools.pieces import PieceFile, count_reasons, read_pieces
from tokenizer_tools.tokenizer import fingerprint, load_slow_tokenizer, load_tokenizer
from tokenizer_tools.tokenizer_files import MANIFEST, REPORT, SETTINGS_FILES, copy_files, refuse_overlap
from tokenizer_tools.verify_tokenizer import verify_expansion

log = logging.getLogger(__name__)

MANIFEST_VERSION = 1
REFUSED_LINES_ON_TERMINAL = 10


@dataclass
class InitTokenizerConfig:
    """Add new pieces to a LLaMA-style (sentencepiece BPE) tokenizer; old ids and old text stay as they are."""

    source_tokenizer_dir: Path
    """tokenizer to start from: tokenizer.model, tokenizer_config.json, special_tokens_map.json"""
    target_tokenizer_dir: Path
    """directory to write: for slow and fast AutoTokenizer, with manifest.json and tokenizer_report.md"""
    expand_tokens_file: Path
    """new pieces, one {"piece": "你好"} a line, best first"""
    overwrite: bool = False
    """replace an existing target directory"""


@command(InitTokenizerConfig)
def main(config: InitTokenizerConfig) -> None:
    """The command: see InitTokenizerConfig for its flags."""
    refuse_overlap(config.target_tokenizer_dir, config.source_tokenizer_dir)
    refuse_existing(config.target_tokenizer_dir, config.overwrite)
    source = config.source_tokenizer_dir
    model = load_model(source / "tokenizer.model")
    found = sift_known(read_pieces(config.expand_tokens_file), model, _special_tokens(source, model))
    _refuse_nothing_new(found)
    intermediates = find_intermediates(model, list(found.pieces))
    with whole_directory(config.target_tokenizer_dir, config.overwrite) as target:
        new_pieces = [*found.pieces, *intermediates]
        log.info("writing %d new pieces, %d of them intermediates", len(new_pieces), len(intermediates))
        write_tokenizer(source, target, append_pieces(model, new_pieces))
        log.info("proving the written tokenizer")
        num_texts = verify_expansion(source, target, new_pieces)
        manifest = _manifest(source, target, found, intermediates, num_texts)
        write_json(target / MANIFEST, manifest)
        report = readable_report(manifest, found, len(found.refused))
        (target / REPORT).write_text(report, encoding="utf-8")
    print(readable_report(manifest, found, REFUSED_LINES_ON_TERMINAL), end="")


def _special_tokens(source: Path, model: ModelProto) -> list[str]:
    """The source's special and added tokens. Raises UserError if its vocabulary is more than tokenizer.model."""
    tokenizer = load_slow_tokenizer(source)
    beyond = {token: i for token, i in tokenizer.get_added_vocab().items() if i >= len(model.pieces)}
    if beyond:
        raise UserError(
            f"{source}: has added tokens beyond tokenizer.model ({_some(beyond)}), whose ids new pieces would take; "
            "start from the tokenizer without them"
        )
    fast_ids = load_tokenizer(source).get_vocab()
    apart = {entry.piece: i for i, entry in enumerate(model.pieces) if fast_ids.get(entry.piece) != i}
    if apart or len(fast_ids) != len(model.pieces):
        raise UserError(
            f"{source}: tokenizer.json and tokenizer.model hold different vocabularies ({_some(apart or fast_ids)}); "
            "remove the one that is out of date"
        )
    return [*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()]


def _some(ids: dict[str, int]) -> str:
    return ", ".join(f"{token!r}: {i}" for token, i in list(ids.items())[:3])


def _refuse_nothing_new(found: PieceFile) -> None:
    if not found.pieces:
        left_out = [*found.refused, *found.skipped]
        first = f", for example {found.describe(left_out[0])}" if left_out else ""
        raise UserError(
            f"{found.path}: no new piece in {found.num_read} lines{first}; "
            'write one {"piece": "..."} a line, with text that the tokenizer does not have yet'
        )


def write_tokenizer(source: Path, target: Path, model: ModelProto) -> None:
    """Write `model` with the settings of `source`: the slow tokenizer's file first, the fast one's made from it."""
    copy_files(source, target, SETTINGS_FILES)
    (target / "tokenizer.model").write_bytes(model.SerializeToString())
    load_tokenizer(target).backend_tokenizer.save(str(target / "tokenizer.json"))


def _manifest(source: Path, target: Path, found: PieceFile, intermediates: list[str], num_texts: int) -> dict[str, Any]:
    old, new = load_tokenizer(source), load_tokenizer(target)
    return {
        "version": MANIFEST_VERSION,
        "kind": "tokenizer",
        "source_tokenizer_fingerprint": fingerprint(old),
        "tokenizer_fingerprint": fingerprint(new),
        "vocab_size": {"before": len(old), "after": len(new)},
        "pieces": {
            "read": found.num_read,
            "added": len(found.pieces),
            "skipped": count_reasons(found.skipped),
            "refused": count_reasons(found.refused),
        },
        "intermediates": intermediates,
        "unreachable": 0,  # verify_expansion raises otherwise, as it does for old text that changed
        "old_text_changes": 0,
        "texts_compared": num_texts,
    }


def readable_report(manifest: dict[str, Any], found: PieceFile, num_lines: int) -> str:
    """The manifest as Markdown, with the first `num_lines` refused lines of the pieces file by `file:line: reason`."""
    sizes, pieces, intermediates = manifest["vocab_size"], manifest["pieces"], manifest["intermediates"]
    lines = [
        "# Expanded tokenizer",
        "",
        f"- vocabulary: {sizes['before']} -> {sizes['after']}",
        f"- lines read: {pieces['read']}",
        f"- pieces added: {pieces['added']}, with {len(intermediates)} intermediate pieces that lead to them",
        *(f"- skipped, {reason}: {count}" for reason, count in pieces["skipped"].items()),
        *(f"- refused, {reason}: {count}" for reason, count in pieces["refused"].items()),
        "- pieces that no text can produce: 0",
        f"- texts without new pieces whose ids changed: 0 (compared {manifest['texts_compared']} texts)",
        f"- fingerprint: {manifest['tokenizer_fingerprint']}",
    ]
    if found.refused:
        lines += ["", "## Refused lines", "", *(f"- {found.describe(entry)}" for entry in found.refused[:num_lines])]
    if len(found.refused) > num_lines:
        lines.append(f"- and {len(found.refused) - num_lines} more in {REPORT}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
