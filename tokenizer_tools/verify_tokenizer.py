"""The proof of an expansion: a written tokenizer directory comes in, nothing comes out, or a RuntimeError does.

Read back as users will read it: sentencepiece, the slow and the fast tokenizer have to agree, every new piece has to be
one id, and no old id and no old text may have changed. A failure is a fault of this program, never of the user.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from tokenizer_tools.proof_texts import compare_texts
from tokenizer_tools.readers import Readers
from tokenizer_tools.sentencepiece_bpe import MODEL_FILE, bare_processor, load_model
from tokenizer_tools.spelling import is_byte_level
from tokenizer_tools.tokenizer import PROBE_TEXT, load_tokenizer
from tokenizer_tools.vocabulary import Vocabulary

PIECES_PER_TEXT = 20  # joined pieces: enough neighbours for merges across their borders, short enough to be shown
PRIVATE_USE = range(0xE000, 0xF900)
MOST_CONTROLS = 64  # with which texts are compared; Llama-3 has 256 of them, all alike

Merge = Callable[[Sequence[str]], list[list[int]]]  # strings of the vocabulary -> ids, by the merges alone


def verify_expansion(old: Vocabulary, target: Path, new: Sequence[str], reserved: Sequence[str]) -> int:
    """Prove that `target` is `old` with `new` and `reserved` behind it. Returns how many texts were compared.

    Raises RuntimeError that names the first piece or text that fails.
    """
    readers = Readers(target)
    _check_ids(readers, old.ids | {string: len(old.ids) + k for k, string in enumerate([*new, *reserved])})
    old_strings = sorted(old.ids, key=old.ids.__getitem__)
    before, after = merges_of_directory(old.directory), merges_of_directory(target)
    for name, merge in after.items():
        _check_reach(name, merge, new, len(old.ids))
        _require(all(len(ids) > 1 for ids in merge(reserved)), f"{name}: a reserved piece can be made")
        _check_old_strings(name, before[name], merge, old_strings)
    for string, ids in zip(reserved, readers.encoder.encode_batch(reserved), strict=True):
        _require(len(ids) > 1, f"the reserved piece {string!r} can be made")
    before_readers = Readers(old.directory)
    _check_controls(before_readers, readers, sorted(old.special)[:MOST_CONTROLS])
    _check_in_isolation(readers, [(old.text_of(string), string) for string in new], len(old.ids))
    plain = [string for string in old_strings if string not in old.special]
    texts = [*_joined(old, new), *_joined(old, new[::-1]), *_joined(old, plain), *PROBE_TEXT.split(), PROBE_TEXT]
    compare_texts(before_readers, readers, [("", text) for text in texts])
    return len(texts)


def _joined(vocabulary: Vocabulary, strings: Sequence[str]) -> Iterator[str]:
    """Texts of pieces side by side, none starting with a blank: there the slow and the fast class differ by design."""
    texts = [text for text in map(vocabulary.text_of, strings) if text is not None]
    for start in range(0, len(texts), PIECES_PER_TEXT):
        yield "".join(texts[start : start + PIECES_PER_TEXT]).strip()


def merges_of_directory(directory: Path) -> dict[str, Merge]:
    """{reader: how it merges strings of the vocabulary}, as inside a text and whatever is put around a text."""
    from tokenizers import Tokenizer

    layout = json.loads(load_tokenizer(directory).backend_tokenizer.to_str())
    layout["model"]["ignore_merges"] = False  # Llama-3 looks whole words up first, which would hide a missing merge
    model = Tokenizer.from_str(json.dumps(layout)).model
    merges: dict[str, Merge] = {"fast tokenizer": lambda strings: [[t.id for t in model.tokenize(s)] for s in strings]}
    if not is_byte_level(layout):
        processor = bare_processor(load_model(directory / MODEL_FILE))
        merges["sentencepiece"] = lambda strings: processor.encode(list(strings))
    return merges


def _check_ids(readers: Readers, expected: dict[str, int]) -> None:
    """Every old piece keeps its id and the new ones follow in order."""
    for name, tokenizer in (("fast", readers.fast), ("slow", readers.slow)):
        if tokenizer is not None:
            ids = tokenizer.get_vocab()
            wrong = [piece for piece, piece_id in expected.items() if ids.get(piece) != piece_id]
            _require(not wrong and len(ids) == len(expected), f"{name} tokenizer: ids not as planned: {wrong[:3]}")


def _check_controls(before: Readers, after: Readers, controls: Sequence[str]) -> None:
    """Control and added tokens are taken out of a text as before, by the slow and by the fast class."""
    texts = [f"a {control} b{control}" for control in controls]
    for name, old, new in (("slow", before.slow, after.slow), ("fast", before.fast, after.fast)):
        if old is not None and new is not None:
            added = [{i: str(token) for i, token in each.added_tokens_decoder.items()} for each in (old, new)]
            _require(added[0] == added[1], f"{name} tokenizer: other added tokens than before")
            for text in texts:
                same = old.encode(text, verbose=False) == new.encode(text, verbose=False)
                _require(same, f"{name} tokenizer: {text!r} has other ids than before")


def _check_reach(name: str, merge: Merge, new: Sequence[str], first_id: int) -> None:
    """Each new piece alone is merged to exactly its one id."""
    for piece_id, (string, ids) in enumerate(zip(new, merge(new), strict=True), first_id):
        _require(ids == [piece_id], f"{name}: {string!r} gives {ids}, not its id {piece_id}")


def _check_old_strings(name: str, before: Merge, after: Merge, strings: Sequence[str]) -> None:
    """Each old piece that its own text could produce still is produced by it."""
    for string, old_ids, new_ids in zip(strings, before(strings), after(strings), strict=True):
        _require(old_ids == new_ids or len(old_ids) > 1, f"{name}: the old piece {string!r} gives {new_ids} now")


def anchor_for(strings: Sequence[str]) -> str:
    """A character in front of which no string can merge, so that what follows it is encoded as inside a text."""
    letters = set().union(*strings)
    return next(chr(code) for code in PRIVATE_USE if chr(code) not in letters)


def _check_in_isolation(readers: Readers, new: Sequence[tuple[str | None, str]], first_id: int) -> None:
    """The text of each new piece is its one id in the slow and in the fast tokenizer, as their users call them."""
    anchor = "" if readers.processor is None else anchor_for([string for _, string in new])
    tokenizers = {"slow tokenizer": readers.slow, "fast tokenizer": readers.fast}
    for name, tokenizer in tokenizers.items():
        if tokenizer is None:
            continue
        anchor_ids = tokenizer.encode(anchor, add_special_tokens=False)
        progress = tqdm(new, desc=f"proving, {name}", unit="piece", disable=None)
        for piece_id, (text, string) in enumerate(progress, first_id):
            if text is not None:
                ids = tokenizer.encode(anchor + text, add_special_tokens=False)
                _require(ids == [*anchor_ids, piece_id], f"{name}: {string!r} gives {ids}, not {piece_id}")


def _require(holds: bool, claim: str) -> None:
    if not holds:
        raise RuntimeError(f"the expanded tokenizer is not what it should be: {claim}")
