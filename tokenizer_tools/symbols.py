"""Text as the old tokenizer leaves it, a letter a token: units come in, strings of symbols go out, and back.

New merges start where the old ones end. So each old token is written as one letter, its symbol, and what BPE or unigram
joins on these letters is exactly what the old tokenizer still lacks. A character that it spells in several tokens
(bytes) is a symbol as well, one that is new itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from tqdm import tqdm

from tokenizer_tools.pieces import BYTE_PIECE
from tokenizer_tools.spelling import BLANK, is_byte_level
from tokenizer_tools.tokenizer import TextEncoder, load_tokenizer
from tokenizer_tools.vocabulary import Vocabulary

FIRST_SYMBOL = 0x10000  # from here on a million letters without a meaning to the trainer
UNITS_PER_BATCH = 20_000


def covered_characters(units: Mapping[str, int], coverage: float) -> set[str]:
    """The most frequent characters, as many as make up the share `coverage` of all characters of `units`."""
    counts: Counter[str] = Counter()
    for unit, count in units.items():
        for character in unit:
            counts[character] += count
    missing = coverage * counts.total()
    covered: set[str] = set()
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if missing <= 0:
            break
        covered.add(character)
        missing -= count
    return covered


class SymbolTable:
    """Writes units in symbols. Only `characters` become new symbols; at any other new character a unit is cut.

    `costs` is the number of old tokens that a symbol takes: 1 for an old piece, more for a new character.
    """

    def __init__(self, vocabulary: Vocabulary, characters: set[str]) -> None:
        tokenizer = load_tokenizer(vocabulary.directory)
        self._encoder = TextEncoder(tokenizer)
        # only a byte-level tokenizer cuts text into words before its merges
        self._pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer if is_byte_level(vocabulary.layout) else None
        self._bytes = token_bytes(vocabulary)
        self._characters = characters
        self._symbols: dict[str, str] = {}
        self._texts: list[str] = []
        self.costs: dict[str, int] = {}

    def text_of(self, symbols: str) -> str:
        """The piece that a string of symbols spells, with `▁` for a blank."""
        return "".join(self._texts[ord(symbol) - FIRST_SYMBOL] for symbol in symbols)

    def spell(self, units: Iterable[str]) -> dict[str, list[str]]:
        """unit -> its parts in symbols; between two parts no piece can lie. Same units, same symbols, in any order."""
        spelling: dict[str, list[str]] = {}
        texts = sorted(set(units))
        with tqdm(total=len(texts), desc="spelling", unit="unit", disable=None) as progress:
            for first in range(0, len(texts), UNITS_PER_BATCH):
                batch = [(text, part) for text in texts[first : first + UNITS_PER_BATCH] for part in self._cut(text)]
                encoded = self._encoder.encode_batch([part for _, part in batch], continuation=True)
                for (text, _), ids in zip(batch, encoded, strict=True):
                    spelling.setdefault(text, []).extend(self._spell(ids))
                progress.update(min(UNITS_PER_BATCH, len(texts) - first))
        return spelling

    def _cut(self, unit: str) -> list[str]:
        """`unit` in the parts between which the tokenizer itself never merges (Llama-3, Qwen)."""
        if self._pre_tokenizer is None:
            return [unit]
        return [unit[start:end] for _, (start, end) in self._pre_tokenizer.pre_tokenize_str(unit)]

    def _spell(self, ids: Sequence[int]) -> list[str]:
        parts, waiting, num_waiting = [""], b"", 0
        for token_id in ids:
            waiting += self._bytes[token_id]
            num_waiting += 1
            try:
                text = waiting.decode()
            except UnicodeDecodeError:  # a part of a character
                continue
            if num_waiting == 1 or text in self._characters:
                parts[-1] += self._symbol(text, num_waiting)
            else:
                parts.append("")
            waiting, num_waiting = b"", 0
        return [part for part in parts if part]

    def _symbol(self, text: str, cost: int) -> str:
        piece = text.replace(" ", BLANK)
        if piece not in self._symbols:
            self._symbols[piece] = chr(FIRST_SYMBOL + len(self._texts))
            self._texts.append(piece)
            self.costs[self._symbols[piece]] = cost
        return self._symbols[piece]


def token_bytes(vocabulary: Vocabulary) -> dict[int, bytes]:
    """id -> the UTF-8 bytes that it stands for; the unknown token of a vocabulary without bytes gives its name."""
    if is_byte_level(vocabulary.layout):
        from transformers.models.gpt2.tokenization_gpt2 import bytes_to_unicode

        byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
        text_ids = {piece: i for piece, i in vocabulary.ids.items() if byte_of.keys() >= set(piece)}
        return {i: bytes(byte_of[letter] for letter in piece) for piece, i in text_ids.items()}
    return {
        i: bytes([int(piece[3:5], 16)]) if BYTE_PIECE.fullmatch(piece) else piece.encode()
        for piece, i in vocabulary.ids.items()
    }
