"""What an expansion does to real text: documents come in, how many change and by which new pieces goes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from tokenizer_tools.closure import Closure, close
from tokenizer_tools.figures import batches
from tokenizer_tools.readers import Readers
from tokenizer_tools.vocabulary import Vocabulary

CHANGES_OLD_TEXT = "changes old text"
PIECES_NAMED = 10


@dataclass
class Effect:
    """What became of the documents of one category."""

    documents: int = 0
    changed: int = 0  # documents with other ids than before
    tokens_before: int = 0
    tokens_after: int = 0
    source_disagrees: int = 0  # documents that the source's own readers cut differently
    source_loses: int = 0  # documents that the source does not decode to themselves
    new_ids: Counter[int] = field(default_factory=Counter)

    def figures(self, pieces: Sequence[str]) -> dict[str, Any]:
        """The counts by name, with the `pieces` (old and new ones by id) that changed most."""
        common = {pieces[new_id]: count for new_id, count in self.new_ids.most_common(PIECES_NAMED)}
        return {**vars(self), "new_ids": len(self.new_ids), "most_common_new_pieces": common}


def compare_texts(old: Readers, new: Readers, documents: Iterable[tuple[str, str]]) -> dict[str, Effect]:
    """{category: effect} of the expansion `old` -> `new` over (category, text) documents.

    Raises RuntimeError, a fault of ours, if a document has several segmentations, does not come back, or has other ids
    though it holds no new piece, where the source was sound.
    """
    effects: dict[str, Effect] = {}
    first_new_id = len(old.fast)
    new_pieces = frozenset(piece for piece, piece_id in new.fast.get_vocab().items() if piece_id >= first_new_id)
    progress = tqdm(documents, desc="comparing on text", unit="doc", disable=None)
    for batch in batches(progress):
        texts = [text for _, text in batch]
        unsound = _unsound(old, new, texts)
        encoded = zip(old.encoder.encode_batch(texts), new.encoder.encode_batch(texts), strict=True)
        for (category, text), (disagrees, loses), (old_ids, new_ids) in zip(batch, unsound, encoded, strict=True):
            effect = effects.setdefault(category, Effect())
            effect.documents += 1
            effect.source_disagrees += disagrees
            effect.source_loses += loses
            effect.tokens_before += len(old_ids)
            effect.tokens_after += len(new_ids)
            effect.changed += old_ids != new_ids
            used = [new_id for new_id in new_ids if new_id >= first_new_id]
            effect.new_ids.update(used)
            if old_ids != new_ids and not used and not pieces_inside(text, new_pieces):
                raise RuntimeError(f"old text got other ids: {_shown(text)}")
    return effects


def _unsound(old: Readers, new: Readers, texts: Sequence[str]) -> list[tuple[bool, bool]]:
    """For each text, whether the source's readers differ on it and whether it loses it; `new` may do no worse."""
    found = []
    for text, pair, loses in zip(texts, new.differing(texts), new.not_coming_back(texts), strict=True):
        old_disagrees = bool(pair) and bool(old.differing([text])[0])
        old_loses = loses and old.not_coming_back([text])[0]
        if pair and not old_disagrees:
            raise RuntimeError(f"{pair} differ on {_shown(text)}")
        if loses and not old_loses:
            raise RuntimeError(f"decoding does not give back {_shown(text)}")
        found.append((old_disagrees, old_loses))
    return found


def close_without_changes(
    vocabulary: Vocabulary, strings: Sequence[str], max_intermediates: int | None, texts: Sequence[str]
) -> Closure:
    """`closure.close`, but pieces that would change the ids of any of `texts` are refused, with their steps."""
    refused: dict[str, tuple[str, str]] = {}
    old_ids = vocabulary.encode([], texts)
    while True:
        kept = [string for string in strings if string not in refused]
        closure = close(vocabulary, kept, max_intermediates)
        changing = _changing(vocabulary, [*closure.pieces, *closure.intermediates], texts, old_ids)
        culprits = {
            string: (CHANGES_OLD_TEXT, f"changes the ids of {_shown(changing[step])}")
            for string in closure.pieces
            for step in [string, *closure.needs.get(string, ())]
            if step in changing
        }
        if not culprits:
            closure.refused |= refused
            return closure
        refused |= closure.refused | culprits


def _changing(
    vocabulary: Vocabulary, new: Sequence[str], texts: Sequence[str], ids_before: Sequence[list[int]]
) -> dict[str, str]:
    """{new string: a text whose ids it changes}"""
    first_new_id = len(vocabulary.ids)
    changing: dict[str, str] = {}
    for text, old_ids, new_ids in zip(texts, ids_before, vocabulary.encode(new, texts), strict=True):
        if old_ids != new_ids:
            used = [new[new_id - first_new_id] for new_id in new_ids if new_id >= first_new_id]
            for string in used or pieces_inside(text, frozenset(new)):  # a new step may lead to an old piece
                changing.setdefault(string, text)
    return changing


def pieces_inside(text: str, pieces: frozenset[str]) -> list[str]:
    """Those of `pieces` (as sentencepiece spells them) that stand in `text`."""
    spelled = "▁" + text.replace(" ", "▁")
    return [piece for piece in sorted(pieces) if piece in spelled]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
