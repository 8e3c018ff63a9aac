"""What a dataset was made from: finished parts come in, `inputs.json` goes out; later it tells what has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from data_tools.input_files import shown_name
from data_tools.parts import Part, digest_of
from tokenizer_tools.outputs import read_json, write_json

INPUTS_NAME = "inputs.json"
MOST_NAMES = 3  # of files in a message
MOST_CHARACTERS = 24  # of a setting

Digests = dict[str, str]  # file -> hex digest of what it holds


def part_digests(part: Part) -> list[tuple[str, str]]:
    """(file, digest) of each span."""
    return [(shown_name(span.path), digest_of(span)) for span in part.spans]


def file_digests(spans: Iterable[tuple[str, str]]) -> Digests:
    """A digest a file: that of its only span, or the sha256 over those of its spans in order."""
    of_file: dict[str, list[str]] = {}
    for file, digest in spans:
        of_file.setdefault(file, []).append(digest)
    return {
        file: digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        for file, digests in of_file.items()
    }


def write_inputs(directory: Path, digests: Digests) -> None:
    """Write `inputs.json`."""
    write_json(directory / INPUTS_NAME, {"files": digests})


def read_inputs(directory: Path) -> Digests:
    """Read `inputs.json`. Raises UserError if it is none."""
    return cast(Digests, read_json(directory / INPUTS_NAME, "the inputs of prepare_pretrain_dataset")["files"])


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`max_length 4096 -> 2048`, for each setting that differs."""
    return [f"{name} {_short(old.get(name))} -> {_short(new[name])}" for name in new if old.get(name) != new[name]]


def changed_files(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """`changed a.jsonl`, `new b.jsonl and 7 more`, `gone c.jsonl`, from what is known of each file."""
    named = {
        "changed": [file for file, known in new.items() if old.get(file, known) != known],
        "new": [file for file in new if file not in old],
        "gone": [file for file in old if file not in new],
    }
    return [f"{word} {_some(files)}" for word, files in named.items() if files]


def _some(files: list[str]) -> str:
    more = len(files) - MOST_NAMES
    return ", ".join(files[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."
