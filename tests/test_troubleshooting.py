"""docs/troubleshooting.md says of our messages what the code says: each one of them is found in the sources."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TABLE = ROOT / "docs" / "troubleshooting.md"
PACKAGES = ("colossal_llama", "tokenizer_tools")
SPEAKERS = {"us", "torch", "torchrun", "gloo", "NCCL", "ssh", "Slurm", "shell", "python", "colossalai", "system"}
GAP = "\0"
"""What a value stands for in a message; `...` in the table."""
FEWEST_LETTERS = 7


def rows() -> list[list[str]]:
    """The cells of every row but the heads: [what is read, who speaks, what it means, what to do]."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ") and "you read" not in line]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@cache
def spoken() -> list[str]:
    """Every string of the packages but docstrings, f-strings with a gap for each value."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    nodes = [node for file in files for node in ast.walk(ast.parse(file.read_text()))]
    docstrings = {node.value for node in nodes if isinstance(node, ast.Expr)}
    return [text for node in nodes if node not in docstrings and (text := text_of(node))]


def text_of(node: ast.AST) -> str:
    """The text of a string in the source; "" for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def is_spoken(message: str, texts: list[str]) -> bool:
    """Whether the words of `message` between its `...` stand in this order in one of `texts`."""
    pattern = re.compile(".*".join(re.escape(words) for words in message.split("...")), re.DOTALL)
    return any(pattern.search(text) for text in texts)


OURS = [message for cells in rows() if cells[1] == "us" for message in re.findall(r"`([^`]+)`", cells[0])]


@pytest.mark.parametrize("message", OURS)
def test_each_message_of_ours_is_in_the_sources(message: str) -> None:
    assert len(re.sub(r"[^a-z]", "", message.lower())) >= FEWEST_LETTERS, "too few fixed words to be known by"
    assert is_spoken(message, spoken())


def test_every_row_says_who_speaks_what_it_means_and_what_to_do() -> None:
    assert len(OURS) > 40
    assert [cells for cells in rows() if len(cells) != 4 or not all(cells) or cells[1] not in SPEAKERS] == []
    messages = [message for cells in rows() for message in re.findall(r"`([^`]+)`", cells[0])]
    assert sorted(messages) == sorted(set(messages)) and all(re.search("`", cells[0]) for cells in rows())


def test_a_message_with_other_words_is_not_taken_for_ours() -> None:
    texts = [f"{GAP}: is the same machine as {GAP}", "take one of the two"]
    assert is_spoken("is the same machine as ...", texts)
    assert is_spoken("... the same ... as ...", texts)
    assert not is_spoken("is the same host as ...", texts)
    assert not is_spoken("machine as ... is the same", texts)
    assert not is_spoken("is the same machine as ... take one of the two", texts)
