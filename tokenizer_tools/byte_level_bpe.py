"""A byte-level BPE vocabulary (Llama-3, Qwen, SmolLM): tokenizer.json comes in, grown by new pieces it goes out.

Here a table of merges, best first, says what is made of what. New merges go behind all old ones, so text without new
pieces keeps its ids. Each new piece gets every merge of two known parts that gives it, as sentencepiece would have it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer_tools.command import UserError
from tokenizer_tools.spelling import BLANK, spell_bytes, text_of_bytes
from tokenizer_tools.tokenizer import load_slow_tokenizer, load_tokenizer, special_inside
from tokenizer_tools.tokenizer_files import SETTINGS_FILES, copy_files

if TYPE_CHECKING:
    from tokenizers import Tokenizer

VOCABULARY_FILE, MERGES_FILE = "vocab.json", "merges.txt"  # what the slow GPT-2 and Qwen classes read


class ByteLevelBpe:
    """The vocabulary of a directory with a byte-level tokenizer.json; see `vocabulary.Vocabulary`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.spell: Callable[[str], str] = spell_bytes
        self.text_of: Callable[[str], str | None] = text_of_bytes
        tokenizer = load_tokenizer(directory)
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self.layout: dict[str, Any] = json.loads(self._backend.to_str())
        if self.layout["model"]["type"] != "BPE":
            raise UserError(f"{directory}: is a {self.layout['model']['type']} tokenizer; only BPE can be expanded")
        if '"add_prefix_space": true' in json.dumps(self.layout["pre_tokenizer"]):
            raise UserError(f"{directory}: puts a blank before every text (add_prefix_space); such are not expanded")
        self._fast = tokenizer
        slow = load_slow_tokenizer(directory) if (directory / MERGES_FILE).is_file() else None
        self._slow_words = getattr(slow, "pat", None)  # GPT-2 and Qwen: what the slow class cuts a text into
        self.ids: dict[str, int] = tokenizer.get_vocab()
        self.special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}

    def fault_of(self, piece: str) -> tuple[str, str] | None:
        """Why the text of `piece` does not reach the merges as it is: (reason, what becomes of it), or None."""
        text = piece.replace(BLANK, " ")
        token = special_inside(self._fast, self.special, text)
        if token is not None:
            return "contains a special token", token
        if self._backend.normalizer is not None:
            normalised = self._backend.normalizer.normalize_str(text)
            if normalised != text:
                return "changed by the normaliser", normalised.replace(" ", BLANK)
        words = [word for word, _ in self._backend.pre_tokenizer.pre_tokenize_str(text)]
        if words != [spell_bytes(piece)]:
            return "split by the pre-tokenizer", " + ".join(text_of_bytes(word) or word for word in words)
        if self._slow_words is not None and self._slow_words.findall(text) != [text]:
            return "split by the slow tokenizer", " + ".join(self._slow_words.findall(text))
        return None

    def needed_parts(self, string: str) -> list[str]:
        """The different characters of `string`, whole: without them, pieces would be made of halves of characters."""
        text = text_of_bytes(string)
        return [] if text is None else [spell_bytes(character) for character in dict.fromkeys(text)]

    def segment(self, new: Sequence[str], strings: Sequence[str]) -> list[list[str]]:
        """The pieces of each string, by its merges alone, once `new` stand behind the old pieces."""
        from tokenizers.models import BPE

        model = grow_layout(self.layout, self.ids, new)["model"]
        merges = BPE(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]])
        return [[token.value for token in merges.tokenize(string)] for string in strings]

    def encode(self, new: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
        """The ids of whole texts once `new` stand behind the old pieces."""
        from tokenizers import Tokenizer

        grown = Tokenizer.from_str(json.dumps(grow_layout(self.layout, self.ids, new)))
        grown.encode_special_tokens = True
        return [encoding.ids for encoding in grown.encode_batch_fast(list(texts), add_special_tokens=False)]

    def write(self, target: Path, new: Sequence[str], reserved: Sequence[str]) -> None:
        """The tokenizer's files, grown; the slow class's own files too where the source has them."""
        copy_files(self.directory, target, SETTINGS_FILES)
        layout = grow_layout(self.layout, self.ids, new)
        vocabulary = layout["model"]["vocab"]
        vocabulary |= {piece: len(vocabulary) + k for k, piece in enumerate(reserved)}
        (target / "tokenizer.json").write_text(json.dumps(layout, ensure_ascii=False, indent=2), encoding="utf-8")
        if (self.directory / VOCABULARY_FILE).is_file():
            (target / VOCABULARY_FILE).write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        if (self.directory / MERGES_FILE).is_file():
            lines = ["#version: 0.2", *(" ".join(merge) for merge in layout["model"]["merges"])]
            (target / MERGES_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def grow_layout(layout: Mapping[str, Any], ids: Mapping[str, int], new: Sequence[str]) -> dict[str, Any]:
    """A tokenizer.json with `new` behind the old `ids`: the k-th gets id `len(ids) + k`, its merges go last.

    Added tokens become entries of the vocabulary too: without, the library would move them behind the new pieces.
    """
    vocabulary = dict(sorted(ids.items(), key=lambda item: item[1]))
    vocabulary |= {piece: len(ids) + k for k, piece in enumerate(new)}
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in layout["model"]["merges"]]
    merges += [list(merge) for piece in parts_first(new, vocabulary) for merge in merges_of(piece, vocabulary)]
    return {**layout, "model": {**layout["model"], "vocab": vocabulary, "merges": merges}}


def merges_of(piece: str, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every pair of known parts that gives `piece`."""
    cuts = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
    return [(left, right) for left, right in cuts if left in vocabulary and right in vocabulary]


def parts_first(new: Sequence[str], vocabulary: Mapping[str, int]) -> list[str]:
    """`new` in their order, but each behind the new pieces it is made of.

    So no merge makes a better one possible, and taking the best merge's places one by one (the fast classes) or all at
    once (the slow ones) comes to the same.
    """
    waiting = set(new)
    ordered: list[str] = []

    def place(piece: str) -> None:
        if piece in waiting:
            waiting.remove(piece)
            for parts in merges_of(piece, vocabulary):
                for part in parts:
                    place(part)
            ordered.append(piece)

    for piece in new:
        place(piece)
    return ordered
