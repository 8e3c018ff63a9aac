"""Which files make up a tokenizer or a model directory, and their way from one directory into another."""

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
WEIGHT_PATTERNS = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth")
MANIFEST = "manifest.json"
REPORT = "tokenizer_report.md"


def holds_weights(directory: Path) -> bool:
    """Whether any file in `directory` is a model's weights, in whichever format."""
    return directory.is_dir() and any(is_weights(path) for path in directory.iterdir())


def is_weights(path: Path) -> bool:
    """Whether a file is a model's weights or their index, by its name."""
    return any(path.match(pattern) for pattern in WEIGHT_PATTERNS)


def copy_files(source: Path, target: Path, names: tuple[str, ...]) -> None:
    """Copy those of `names` that lie in `source`."""
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def read_files(directory: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Those of `names` that lie in `directory`, with their content."""
    return {name: (directory / name).read_bytes() for name in names if (directory / name).is_file()}


def refuse_overlap(target: Path, source: Path) -> None:
    """Raise UserError if writing `target` would replace the directory `source` is read from."""
    if target.resolve() in (source.resolve(), *source.resolve().parents):
        raise UserError(
            f"{target}: writing here would replace {source}, which is read; choose another target directory"
        )
