"""What an expansion did: its results come in, manifest.json and a page of Markdown go out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizer_tools.closure import Closure
from tokenizer_tools.lineage import MANIFEST_VERSION, Record, describe_files, files_of, shortened
from tokenizer_tools.pieces import PieceFile, count_reasons
from tokenizer_tools.proof_texts import Effect
from tokenizer_tools.spelling import BLANK
from tokenizer_tools.tokenizer import fingerprint, load_tokenizer
from tokenizer_tools.tokenizer_files import REPORT
from tokenizer_tools.vocabulary import Vocabulary


def describe_expansion(
    old: Vocabulary,
    source: Record,
    target: Path,
    found: PieceFile,
    closure: Closure,
    reserved: Sequence[str],
    num_texts: int,
    effects: Mapping[str, Effect],
) -> dict[str, Any]:
    """The manifest of a written and proved tokenizer. `source`: the record of the one that was expanded."""
    tokenizer = load_tokenizer(target)
    ids = tokenizer.get_vocab()
    readable = [readable_piece(old, string) for string in sorted(ids, key=ids.__getitem__)] if effects else []
    return {
        "version": MANIFEST_VERSION,
        "kind": "tokenizer",
        "source_tokenizer_fingerprint": source["tokenizer_fingerprint"],
        "tokenizer_fingerprint": fingerprint(tokenizer),
        "vocab_size": {"before": len(old.ids), "after": len(ids)},
        "pieces": {
            "read": found.num_read,
            "added": len(found.pieces),
            "skipped": count_reasons(found.skipped),
            "refused": count_reasons(found.refused),
        },
        "intermediates": [readable_piece(old, string) for string in closure.intermediates],
        "reserved": list(reserved),
        "unreachable": 0,  # verify_expansion raises otherwise, as it does for old text that changed
        "old_text_changes": 0,
        "texts_compared": num_texts,
        "proof_texts": {category: effect.figures(readable) for category, effect in sorted(effects.items())},
        **describe_files(target, files_of(target, "tokenizer")),
        "made_from": {"pieces": _pieces_record(found), "source_tokenizer": shortened(source)},
    }


def _pieces_record(found: PieceFile) -> Record:
    name = found.path.name
    return {"kind": "pieces", "sizes_bytes": {name: found.num_bytes}, "sha256": {name: found.sha256}}


def readable_piece(vocabulary: Vocabulary, string: str) -> str:
    """A piece as a pieces file would write it; parts of a character stay as the vocabulary spells them."""
    text = vocabulary.text_of(string)
    return string if text is None else text.replace(" ", BLANK)


def readable_report(manifest: Mapping[str, Any], found: PieceFile, num_lines: int) -> str:
    """The manifest as Markdown, with the first `num_lines` lines of the file left out, as `file:line: reason`."""
    sizes, pieces, intermediates = manifest["vocab_size"], manifest["pieces"], manifest["intermediates"]
    lines = [
        "# Expanded tokenizer",
        "",
        f"- vocabulary: {sizes['before']} -> {sizes['after']}",
        f"- lines read: {pieces['read']}",
        f"- pieces added: {pieces['added']}, with {len(intermediates)} intermediate pieces that lead to them",
        f"- reserved pieces, to fill the vocabulary up: {len(manifest['reserved'])}",
        *(f"- skipped, {reason}: {count}" for reason, count in pieces["skipped"].items()),
        *(f"- refused, {reason}: {count}" for reason, count in pieces["refused"].items()),
        "- pieces that no text can produce: 0",
        f"- texts without new pieces whose ids changed: 0 (compared {manifest['texts_compared']} texts)",
        f"- fingerprint: {manifest['tokenizer_fingerprint']}",
        *_proof_lines(manifest["proof_texts"]),
        *_left_out_lines(found, num_lines),
    ]
    return "\n".join(lines) + "\n"


def _proof_lines(proof: Mapping[str, Mapping[str, Any]]) -> list[str]:
    if not proof:
        return []
    lines = [
        "",
        "## Real text: every tokenizer agrees on every document where the source's own did",
        "",
        "| category | documents | with other ids | tokens before | tokens after | new pieces seen | most common |",
        "|---|---|---|---|---|---|---|",
    ]
    for category, effect in proof.items():
        common = " ".join(f"`{piece}`" for piece in effect["most_common_new_pieces"])
        counts = ("documents", "changed", "tokens_before", "tokens_after", "new_ids")
        lines.append("| " + " | ".join([category, *(str(effect[name]) for name in counts), common]) + " |")
    for name, claim in (("source_disagrees", "are cut differently by"), ("source_loses", "do not come back from")):
        count = sum(effect[name] for effect in proof.values())
        if count:
            lines += ["", f"{count} documents {claim} the source's own tokenizers already."]
    return lines


def _left_out_lines(found: PieceFile, num_lines: int) -> list[str]:
    """Refused lines first: they are faults, skipped ones are harmless."""
    lines: list[str] = []
    for heading, entries in (("Refused", found.refused), ("Skipped", found.skipped)):
        if entries:
            lines += ["", f"## {heading} lines", "", *(f"- {found.describe(entry)}" for entry in entries[:num_lines])]
        if len(entries) > num_lines:
            lines.append(f"- and {len(entries) - num_lines} more in {REPORT}")
    return lines
