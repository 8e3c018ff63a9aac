"""sentencepiece on strings of symbols: strings with their numbers come in, the joins worth making go out, best first.

A symbol is any letter. BPE and unigram both only propose; `choose` makes of the proposals a list of BPE merges of which
every head is closed, and `Merges` counts what these merges do to a text.
"""

from __future__ import annotations

import io
import math
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

MODEL_TYPES = ("bpe", "unigram")
MAX_UNIT_BYTES = 4000 * 4
MAX_PIECE_SYMBOLS = 16
NUM_CONTROLS = 3  # <unk>, <s>, </s> take a place each in the trainer's vocabulary
MARGIN = 1.25  # proposals for a place: some are twins, or steps that come anyway


def propose(units: Mapping[str, int], model_type: str, num_pieces: int) -> dict[str, int]:
    """Strings of two symbols or more, with the number of tokens that making them saves. Same units, same proposals."""
    if not units:
        return {}
    processor = sentencepiece.SentencePieceProcessor(model_proto=_train(units, model_type, num_pieces))
    order = [processor.id_to_piece(i) for i in range(NUM_CONTROLS, processor.get_piece_size())]
    joins = [piece for piece in order if len(piece) > 1]
    if model_type == "bpe":
        made = Merges(joins, {symbol for unit in units for symbol in unit}).count(units).made
        return {piece: made[piece] for piece in joins if made[piece]}
    used = _count_used(processor, units)
    return {piece: used[piece] * (len(piece) - 1) for piece in joins if used[piece]}


def _train(units: Mapping[str, int], model_type: str, num_pieces: int) -> bytes:
    num_symbols = len({symbol for unit in units for symbol in unit})
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "units.tsv"
        table.write_text("".join(f"{unit}\t{units[unit]}\n" for unit in sorted(units)), encoding="utf-8")
        options = {
            "input": str(table),
            "input_format": "tsv",
            "model_writer": model,
            "model_type": model_type,
            "vocab_size": num_symbols + int(MARGIN * num_pieces) + NUM_CONTROLS,
            "hard_vocab_limit": False,  # a small corpus may hold fewer
            "character_coverage": 1.0,
            "max_sentence_length": MAX_UNIT_BYTES,
            "max_sentencepiece_length": MAX_PIECE_SYMBOLS,
            "normalization_rule_name": "identity",
            "add_dummy_prefix": False,
            "split_by_unicode_script": False,
            "minloglevel": 2,
        }
        _interruptible(lambda: sentencepiece.SentencePieceTrainer.train(**options))
    return model.getvalue()


def _interruptible(work: Callable[[], None]) -> None:
    """Run `work` so that Ctrl-C is heard: Python hears no signal while its main thread sits in a C++ function."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def _count_used(processor: sentencepiece.SentencePieceProcessor, units: Mapping[str, int]) -> Counter[str]:
    used: Counter[str] = Counter()
    texts = sorted(units)
    for text, pieces in zip(texts, processor.encode(texts, out_type=str), strict=True):
        for piece in pieces:
            used[piece] += units[text]
    return used


class Counts:
    """How often each symbol or piece is `used` as a token, and how often it is `made`, as a token or as a step."""

    def __init__(self, used: Counter[str], made: Counter[str]) -> None:
        self.used, self.made = used, made


class Merges:
    """BPE with `order` as its merges, best first, over single `symbols`."""

    def __init__(self, order: Sequence[str], symbols: Iterable[str]) -> None:
        self._ranks = {piece: rank for rank, piece in enumerate(order)}
        self._parts = {piece: last_merge(piece, self._ranks) for piece in order}
        self._processor = _bpe_processor([*sorted(set(symbols)), *order])

    def count(self, units: Mapping[str, int]) -> Counts:
        """What becomes of `units`. Symbols that were not named stay single."""
        used = _count_used(self._processor, units)
        made = Counter(used)
        for piece in reversed(self._ranks):  # a piece is made of better ones: all its own makings are counted by now
            for part in self._parts[piece]:
                made[part] += made[piece]
        return Counts(used, made)


def _bpe_processor(pieces: Sequence[str]) -> sentencepiece.SentencePieceProcessor:
    """A sentencepiece BPE model of exactly `pieces`, the first merged first."""
    schema = sentencepiece_model_pb2.ModelProto
    model = schema()
    model.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.BPE
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = False
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = False
    model.pieces.add(piece="<unk>", score=0.0, type=schema.SentencePiece.UNKNOWN)
    for rank, piece in enumerate(pieces):
        model.pieces.add(piece=piece, score=-float(rank), type=schema.SentencePiece.NORMAL)
    return sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())


def segment(symbols: Sequence[str], ranks: Mapping[str, int], leave: int = 1) -> list[str]:
    """BPE by hand: join the pair with the lowest rank, then the leftmost, until `leave` are left or none has a rank."""
    parts = list(symbols)
    while len(parts) > leave:
        joins = [left + right for left, right in zip(parts, parts[1:], strict=False)]
        best = min(range(len(joins)), key=lambda k: ranks.get(joins[k], math.inf))
        if joins[best] not in ranks:
            break
        parts[best : best + 2] = [joins[best]]
    return parts


def last_merge(piece: str, ranks: Mapping[str, int]) -> tuple[str, str]:
    """The two parts that BPE joins last to get `piece`. Raises ValueError if its merges do not lead there."""
    parts = segment(piece, ranks, leave=2)
    if len(parts) != 2 or piece not in ranks:
        raise ValueError(f"no merges lead to {piece!r}: {parts}")
    return parts[0], parts[1]
