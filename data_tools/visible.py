"""Strange text on a terminal or a page: any string comes in, one in which nothing acts unseen goes out."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # categories of Unicode: controls, direction marks, half surrogates, line ends
HARMLESS = "\n\t\u200c\u200d"  # the last two join letters in Persian and the parts of an emoji


def terminal() -> Console:
    """A console of rich that leaves a broken pipe (`| head`) to the command; rich itself would end with code 1."""
    from rich.console import Console

    class Terminal(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return Terminal(highlight=False)


def visible(text: str) -> str:
    """The text with hidden characters spelt as Python spells them (`\\x1b`); line ends and tabs stay as they are."""
    return "".join(_spelt(character) for character in text)


def visible_name(name: str) -> str:
    """A name, which stands on one line: line ends and tabs are spelt too."""
    return visible(name).replace("\n", "\\n").replace("\t", "\\t")


def _spelt(character: str) -> str:
    is_hidden = unicodedata.category(character) in HIDDEN and character not in HARMLESS
    return character.encode("unicode_escape").decode() if is_hidden else character
