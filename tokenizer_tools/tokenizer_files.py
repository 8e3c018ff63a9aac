"""Which files make up a tokenizer directory, and their way from one directory into another."""

from __future__ import annotations

import shutil
from pathlib import Path

from tokenizer_tools.command import UserError

# How texts and chats are wrapped; none of them depends on the size of the vocabulary.
SETTINGS_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
VOCABULARY_FILES = ("tokenizer.model", "tokenizer.json")
MANIFEST = "manifest.json"
REPORT = "tokenizer_report.md"


def copy_files(source: Path, target: Path, names: tuple[str, ...]) -> None:
    """Copy those of `names` that lie in `source`."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def refuse_overlap(target: Path, source: Path) -> None:
    """Raise UserError if writing `target` would replace the directory `source` is read from."""
    if target.resolve() in (source.resolve(), *source.resolve().parents):
        raise UserError(
            f"{target}: writing here would replace {source}, which is read; choose another target directory"
        )
