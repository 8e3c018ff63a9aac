"""What a directory was made from: `python -m colossal_llama.lineage DIR` prints the whole chain and verifies it.

DIR is a tokenizer, a model (an export, too), bins, a run or a checkpoint: it is what lies in it, whatever its name. Its
files are hashed and compared with its manifest, the records of the chain with one another, and with --inputs what it
was made from, as it lies on the disk today. Exit code 0: whole; 2: the first broken seam, in one line.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simple_parsing import field, flag

from tokenizer_tools.command import UserError, command
from tokenizer_tools.lineage import (
    DIGITS,
    LINEAGE,
    Kind,
    Record,
    describe_files,
    files_of,
    read_manifest,
    read_record,
    shortened,
)

MEGABYTE = 10**6
SHOWN_DIGITS = 12


@dataclass(frozen=True)
class LineageConfig:
    """Print and verify what a tokenizer, model, dataset, run, checkpoint or export was made from."""

    directory: Path = field(positional=True)
    """Tokenizer, model, bins, run, checkpoint or exported model."""
    inputs: list[Path] = field(default_factory=list)
    """Directories, or a file of pieces, that it was made from: each of their files has to be one of the chain."""
    json: bool = flag(default=False)
    """The chain as one JSON document on stdout."""


@dataclass(frozen=True)
class Link:
    """A record of a chain: what it is for the one above it, and how far below the top it is."""

    role: str
    depth: int
    record: Record


@command(LineageConfig)
def main(config: LineageConfig) -> None:
    """Open, verify, print."""
    chain = open_chain(config.directory)
    links = list(walk(config.directory.name, chain))
    check_seams(links)
    for path in config.inputs:
        refuse_stranger(path, config.directory, links)
    if config.json:
        print(json.dumps({"directory": str(config.directory), "is_whole": True, "chain": chain}, ensure_ascii=False))
    else:
        print_links(links)


def open_chain(directory: Path) -> Record:
    """The record of a directory, whose files are hashed. Raises UserError if they are not those of its manifest."""
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; name a tokenizer, model, dataset, run or checkpoint")
    if read_manifest(directory) is None:
        from colossal_llama.start import kind_of

        kind_of_run = kind_of(directory)
        if kind_of_run in ("run", "checkpoint"):
            return _run(directory) if kind_of_run == "run" else _checkpoint(directory)
        if next(directory.glob("**/*.arrow"), None) is not None:
            return _bins(directory)
    if files_of(directory, "model"):
        kind: Kind = "model" if files_of(directory, "model") != files_of(directory, "tokenizer") else "tokenizer"
        return shortened(read_record(directory, kind, describe_files(directory, files_of(directory, kind))))
    raise UserError(
        f"{directory}: holds no tokenizer, model, dataset, run or checkpoint; name a directory that holds one itself"
    )


def _run(directory: Path) -> Record:
    """A run: its newest checkpoint, its finished model if it is there, and that both have one origin."""
    from colossal_llama.checkpoint import latest_checkpoint

    checkpoint = latest_checkpoint(directory)
    if checkpoint is None:
        raise UserError(f"{directory}: a run without a complete checkpoint, so nothing can be verified yet")
    made_from: dict[str, Any] = {"checkpoint": _checkpoint(checkpoint.path)}
    finished = directory / "modeling"
    if finished.is_dir():
        made_from["finished_model"] = open_chain(finished)
    return {"kind": "run directory", "made_from": made_from}


def _checkpoint(directory: Path) -> Record:
    from colossal_llama.checkpoint import check_hashes, open_checkpoint
    from colossal_llama.made_from import read_run

    checkpoint = open_checkpoint(directory)
    check_hashes(checkpoint)
    lineage = directory / LINEAGE
    if not lineage.is_file():
        raise UserError(
            f"{directory}: an older checkpoint without {LINEAGE}; its files are intact, but its chain is unknown"
        )
    files = {key: checkpoint.manifest[key] for key in ("sizes_bytes", "sha256")}
    run = shortened(read_run(directory))
    return {"kind": "checkpoint", "version": checkpoint.manifest["version"], **files, "made_from": {"run": run}}


def _bins(directory: Path) -> Record:
    from colossal_llama.made_from import check_bin
    from data_tools.bin_writer import ARROW_NAME
    from data_tools.bins import open_bins
    from tokenizer_tools.lineage import hash_files

    opened = open_bins([directory])
    digests = hash_files([one.path / ARROW_NAME for one in opened.bins])
    for one, digest in zip(opened.bins, digests, strict=True):
        check_bin(one, digest)
    return opened.records[0]


def walk(role: str, record: Record, depth: int = 0) -> Iterator[Link]:
    """A record and all that it was made from, each before what it was made from itself."""
    yield Link(role, depth, record)
    for name, made in record.get("made_from", {}).items():
        for part in made if isinstance(made, list) else [made]:
            yield from walk(name, part, depth + 1)


def check_seams(links: Sequence[Link]) -> None:
    """Raise UserError for the first record that names another tokenizer than what it was made with."""
    for link in links:
        made_from = link.record.get("made_from", {})
        tokenizer = made_from.get("tokenizer", {})
        data = made_from.get("data", [])
        for role, above in ((link.role, link.record), *(("data", one) for one in data)):
            _refuse_two_marks(role, above.get("tokenizer_fingerprint"), tokenizer.get("tokenizer_fingerprint"))
        source = made_from.get("source_tokenizer", {})
        _refuse_two_marks(
            link.role, link.record.get("source_tokenizer_fingerprint"), source.get("tokenizer_fingerprint")
        )


def _refuse_two_marks(role: str, mark: str | None, other: str | None) -> None:
    if mark is not None and other is not None and mark != other:
        raise UserError(
            f"{role}: belongs to tokenizer {mark[:DIGITS]}, but was made with {other[:DIGITS]}; a manifest was edited "
            "or copied from elsewhere, make what it describes again"
        )


def refuse_stranger(path: Path, directory: Path, links: Sequence[Link]) -> None:
    """Raise UserError for the first file of an input, a directory or a file of pieces, that is not in the chain."""
    if not path.exists():
        raise UserError(f"--inputs {path}: no such file; name the input as it lies on the disk today")
    record = open_chain(path) if path.is_dir() else describe_files(path.parent, [path.name])
    recorded = [link.record["sha256"] for link in links if "sha256" in link.record]
    known = {digest for digests in recorded for digest in digests.values()}
    for name, digest in record.get("sha256", {}).items():
        if digest not in known:
            same_name = sorted({digests[name][:DIGITS] for digests in recorded if name in digests})
            raise UserError(
                f"{path / name if path.is_dir() else path}: sha256 {digest[:DIGITS]}, but {directory} was made from "
                f"{' or '.join(same_name) or 'no such file'}; name the input that it was made from, or make it again"
            )


def print_links(links: Sequence[Link]) -> None:
    """The chain on stdout, a record a line; what a record was made from is printed where it occurs first."""
    seen: set[str] = set()
    deepest = sys.maxsize  # what lies further down is below a record that was printed before
    for link in links:
        if link.depth > deepest:
            continue
        record, whole = link.record, json.dumps(link.record, sort_keys=True)
        deepest = link.depth if whole in seen else sys.maxsize
        files = ""
        if "sha256" in record:
            sizes = record.get("sizes_bytes", {}).values()
            files = f"{len(record['sha256'])} file(s)" + (f", {sum(sizes) / MEGABYTE:,.1f} MB" if sizes else "")
        mark = record.get("tokenizer_fingerprint", "")[:SHOWN_DIGITS]
        columns = (
            f"{'  ' * link.depth + link.role:<34}",
            f"{record.get('kind', ''):<15}",
            f"{files:<24}",
            f"{content_sha256(record)[:SHOWN_DIGITS]:<{SHOWN_DIGITS}}",
            f"tokenizer {mark}" if mark else "",
            "as above" if whole in seen and record.get("made_from") else "",
        )
        print("  ".join(columns).rstrip())
        seen.add(whole)


def content_sha256(record: Record) -> str:
    """The sha256 of a record's only file; of several, that of the lines `sha256  name` in the order of their names."""
    digests = record.get("sha256", {})
    if len(digests) < 2:
        return next(iter(digests.values()), "")
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
