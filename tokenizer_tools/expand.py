"""A sentencepiece BPE model and new pieces come in; a model in which each new piece is one id goes out.

Why scores and intermediates matter: BPE builds a piece by merging two neighbours that are pieces themselves, best score
first. A piece without such a path can never appear, and equal scores let implementations disagree. So new pieces get
distinct scores below every old one (old merges still come first: old text keeps its ids), and missing steps are added.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from tokenizer_tools.command import UserError
from tokenizer_tools.pieces import LeftOut, PieceFile

schema: Any = sentencepiece_model_pb2  # generated code, without types
ModelProto = Any  # schema.ModelProto
Piece = schema.ModelProto.SentencePiece
NEVER_MERGED = (Piece.CONTROL, Piece.UNKNOWN, Piece.USER_DEFINED)
BPE = schema.TrainerSpec.BPE


def load_model(path: Path) -> ModelProto:
    """Read tokenizer.model as it lies on the disk. Raises UserError if it is missing, broken or not BPE."""
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such directory; name a tokenizer directory")
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; only sentencepiece tokenizers can be expanded so far, "
            "name a directory that holds tokenizer.model"
        )
    serialized = path.read_bytes()
    try:
        sentencepiece.SentencePieceProcessor(model_proto=serialized)
        model = schema.ModelProto.FromString(serialized)
    except Exception:  # two C++ parsers, each with errors of its own
        raise UserError(f"{path}: not a sentencepiece model, or only a part of one; fetch the file again") from None
    if model.trainer_spec.model_type != BPE:
        kind = schema.TrainerSpec.ModelType.Name(model.trainer_spec.model_type)
        raise UserError(f"{path}: is a {kind} model; only BPE can be expanded so far, start from a BPE one")
    return model


def bare_processor(model: ModelProto) -> sentencepiece.SentencePieceProcessor:
    """The model as it sees the inside of a text: nothing is put before the first word, no blank is removed."""
    bare = schema.ModelProto()
    bare.CopyFrom(model)
    bare.normalizer_spec.add_dummy_prefix = False
    bare.normalizer_spec.remove_extra_whitespaces = False
    return sentencepiece.SentencePieceProcessor(model_proto=bare.SerializeToString())


def sift_known(found: PieceFile, model: ModelProto, special_tokens: Iterable[str]) -> PieceFile:
    """Take out the pieces that the model already has (skipped) or can never produce (refused)."""
    old_pieces = {entry.piece for entry in model.pieces}
    special = {entry.piece for entry in model.pieces if entry.type in NEVER_MERGED} | set(special_tokens)
    processor = bare_processor(model)
    sifted = replace(found, pieces={}, skipped=list(found.skipped), refused=list(found.refused))
    for piece, line in found.pieces.items():
        inside = next((token for token in special if token in piece), None)
        normalised = processor.normalize(piece)
        if inside is not None:
            sifted.refused.append(LeftOut(line, "contains a special token", f"{piece!r} contains {inside!r}"))
        elif piece in old_pieces:
            sifted.skipped.append(LeftOut(line, "already in the vocabulary", repr(piece)))
        elif normalised != piece:
            sifted.refused.append(LeftOut(line, "changed by the normaliser", f"{piece!r} becomes {normalised!r}"))
        else:
            sifted.pieces[piece] = line
    return sifted


def scores_below(lowest: float, count: int) -> list[float]:
    """`count` float32 values, strictly falling, all below `lowest`: the nearest ones that float32 can tell apart."""
    scores = []
    score = np.float32(lowest)
    for _ in range(count):
        score = np.nextafter(score, np.float32(-np.inf))
        scores.append(float(score))
    return scores


def append_pieces(model: ModelProto, pieces: Sequence[str]) -> ModelProto:
    """A copy of `model` with `pieces` behind its own, in order: the k-th gets id `len(model.pieces) + k`."""
    grown = schema.ModelProto()
    grown.CopyFrom(model)
    lowest = min(entry.score for entry in model.pieces)
    for piece, score in zip(pieces, scores_below(lowest, len(pieces)), strict=True):
        grown.pieces.add(piece=piece, score=score, type=Piece.NORMAL)
    grown.trainer_spec.vocab_size = len(grown.pieces)
    return grown


def find_intermediates(model: ModelProto, pieces: Sequence[str]) -> list[str]:
    """The steps that are missing between single characters and `pieces`, in the order they have to be appended.

    First every character that is no piece yet, then, round by round, the first two symbols of each piece that is still
    in parts. Each round makes every such piece at least one symbol shorter, so the longest piece bounds the rounds.
    """
    known = {entry.piece for entry in model.pieces} | set(pieces)
    intermediates = list(dict.fromkeys(character for piece in pieces for character in piece if character not in known))
    in_parts = list(pieces)
    for _ in range(max(map(len, pieces), default=1)):
        processor = bare_processor(append_pieces(model, [*pieces, *intermediates]))
        segmentations = [symbols for symbols in processor.encode(in_parts, out_type=str) if len(symbols) > 1]
        if not segmentations:
            return intermediates
        intermediates += dict.fromkeys("".join(symbols[:2]) for symbols in segmentations)
        in_parts = ["".join(symbols) for symbols in segmentations]
    raise AssertionError(f"still in parts: {in_parts[:3]}")
