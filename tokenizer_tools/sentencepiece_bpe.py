"""A sentencepiece BPE vocabulary (LLaMA, Mistral): tokenizer.model comes in, grown by new pieces it goes out.

Why the scores matter: the best score merges first, and equal scores let implementations disagree. So new pieces get
distinct scores below every old one: old merges still come first, and text without new pieces keeps its ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from tokenizer_tools.command import UserError
from tokenizer_tools.outputs import read_json, write_json
from tokenizer_tools.spelling import BLANK, spell_characters, text_of_characters
from tokenizer_tools.tokenizer import load_slow_tokenizer, load_tokenizer, special_inside
from tokenizer_tools.tokenizer_files import SETTINGS_FILES, copy_files

schema: Any = sentencepiece_model_pb2  # generated code, without types
ModelProto = Any  # schema.ModelProto
Piece = schema.ModelProto.SentencePiece
NEVER_MERGED = (Piece.CONTROL, Piece.UNKNOWN, Piece.USER_DEFINED)
BPE = schema.TrainerSpec.BPE
MODEL_FILE = "tokenizer.model"
SETTINGS = "tokenizer_config.json"
INSIDE = "\ue000"  # of no script and no normaliser: what follows it stands inside a text


class SentencePieceBpe:
    """The vocabulary of a directory with tokenizer.model; see `vocabulary.Vocabulary`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.spell: Callable[[str], str] = spell_characters
        self.text_of: Callable[[str], str | None] = text_of_characters
        model = load_model(directory / MODEL_FILE)
        tokenizer, fast = load_slow_tokenizer(directory), load_tokenizer(directory)
        self.ids: dict[str, int] = tokenizer.get_vocab()
        _refuse_two_vocabularies(directory, self.ids, fast.get_vocab())
        self._slow_added_tokens = {str(i): _as_json(token) for i, token in tokenizer.added_tokens_decoder.items()}
        self._fast, self._inside = fast, processor_without(model, add_dummy_prefix=True)
        self.layout: dict[str, Any] = json.loads(fast.backend_tokenizer.to_str())
        # control tokens behind the pieces have their ids from the settings: they become pieces of the model here
        self.model = with_controls(model, sorted(self.ids, key=self.ids.__getitem__))
        self.special = {entry.piece for entry in self.model.pieces if entry.type in NEVER_MERGED}
        self.special |= {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}

    def fault_of(self, piece: str) -> tuple[str, str] | None:
        """Why the text of `piece` does not reach the merges as it is: (reason, what becomes of it), or None."""
        text = piece.replace(BLANK, " ")
        token = special_inside(self._fast, self.special, text)
        if token is not None:
            return "contains a special token", token
        normalised = self._inside.normalize(INSIDE + text).removeprefix(INSIDE)
        return None if normalised == piece else ("changed by the normaliser", normalised)

    def needed_parts(self, string: str) -> list[str]:
        """The different characters of `string`, and `New▁York` of `▁New▁York`.

        The slow class takes the blank off the first piece of a text before it decodes: what is left has to be a piece.
        """
        words = string.removeprefix(BLANK)
        return [*dict.fromkeys(string), *([words] if words != string and BLANK in words else [])]

    def segment(self, new: Sequence[str], strings: Sequence[str]) -> list[list[str]]:
        """The pieces of each string, as inside a text, once `new` stand behind the old pieces."""
        return bare_processor(append_pieces(self.model, new)).encode(list(strings), out_type=str)

    def encode(self, new: Sequence[str], texts: Sequence[str]) -> list[list[int]]:
        """The ids of whole texts once `new` stand behind the old pieces."""
        grown = append_pieces(self.model, new)
        return sentencepiece.SentencePieceProcessor(model_proto=grown.SerializeToString()).encode(list(texts))

    def write(self, target: Path, new: Sequence[str], reserved: Sequence[str]) -> None:
        """The tokenizer's files, grown: the fast one keeps its layout and takes pieces and merges from the slow one."""
        copy_files(self.directory, target, SETTINGS_FILES)
        grown = append_pieces(append_pieces(self.model, new), reserved, Piece.UNUSED)
        (target / MODEL_FILE).write_bytes(grown.SerializeToString())
        layout = self.layout | {"model": self.layout["model"] | pieces_and_merges(target / MODEL_FILE, grown)}
        self._keep_added_tokens(target)
        (target / "tokenizer.json").write_text(json.dumps(layout, ensure_ascii=False, indent=2), encoding="utf-8")

    def _keep_added_tokens(self, target: Path) -> None:
        """Beside a tokenizer.json the slow class takes its added tokens from there, unless its settings name them."""
        settings = read_json(target / SETTINGS, "the settings of a tokenizer")
        of_slow = {token["content"] for token in self._slow_added_tokens.values()}
        of_fast = {token["content"] for token in self.layout["added_tokens"]}
        if of_slow != of_fast and "added_tokens_decoder" not in settings:
            write_json(target / SETTINGS, settings | {"added_tokens_decoder": self._slow_added_tokens})


def _refuse_two_vocabularies(directory: Path, slow_ids: dict[str, int], fast_ids: dict[str, int]) -> None:
    apart = sorted(slow_ids.items() ^ fast_ids.items(), key=lambda item: item[1])
    if not apart:
        return
    if not (directory / "tokenizer.json").is_file():
        raise UserError(
            f"{directory}: the slow and the fast class disagree about the id of {apart[0][0]!r} ({apart[0][1]}); added "
            "tokens have to follow the pieces of tokenizer.model without a hole"
        )
    raise UserError(
        f"{directory}: tokenizer.json and tokenizer.model hold different vocabularies (the first difference is "
        f"{apart[0][0]!r}: {apart[0][1]}); remove the one that is out of date"
    )


def _as_json(token: Any) -> dict[str, Any]:
    """An AddedToken as tokenizer_config.json has it."""
    flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
    return {"content": token.content, **{name: getattr(token, name) for name in flags}}


def pieces_and_merges(path: Path, model: ModelProto) -> dict[str, Any]:
    """`vocab` and `merges` of a tokenizer.json, as transformers makes them of a sentencepiece model."""
    from transformers.convert_slow_tokenizer import SentencePieceExtractor

    scores = [(entry.piece, entry.score) for entry in model.pieces]
    _, merges = SentencePieceExtractor(str(path)).extract(scores)
    return {"vocab": {piece: i for i, (piece, _) in enumerate(scores)}, "merges": merges}


def load_model(path: Path) -> ModelProto:
    """Read tokenizer.model as it lies on the disk. Raises UserError if it is missing, broken or not BPE."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; name a tokenizer directory that holds it")
    serialized = path.read_bytes()
    try:
        sentencepiece.SentencePieceProcessor(model_proto=serialized)
        model = schema.ModelProto.FromString(serialized)
    except Exception:  # two C++ parsers, each with errors of its own
        model = schema.ModelProto()
    if not model.pieces:
        raise UserError(f"{path}: not a sentencepiece model, or only a part of one; fetch the file again")
    if model.trainer_spec.model_type != BPE:
        kind = schema.TrainerSpec.ModelType.Name(model.trainer_spec.model_type)
        raise UserError(f"{path}: is a {kind} model; only BPE can be expanded, start from a BPE one")
    return model


def bare_processor(model: ModelProto) -> sentencepiece.SentencePieceProcessor:
    """The model as it sees the inside of a text: nothing is put before the first word, no blank is removed."""
    return processor_without(model, add_dummy_prefix=True, remove_extra_whitespaces=True)


def processor_without(
    model: ModelProto, *, add_dummy_prefix: bool = False, remove_extra_whitespaces: bool = False
) -> sentencepiece.SentencePieceProcessor:
    """The model without those of its normaliser's habits that are named."""
    changed = schema.ModelProto()
    changed.CopyFrom(model)
    changed.normalizer_spec.add_dummy_prefix &= not add_dummy_prefix
    changed.normalizer_spec.remove_extra_whitespaces &= not remove_extra_whitespaces
    return sentencepiece.SentencePieceProcessor(model_proto=changed.SerializeToString())


def scores_below(lowest: float, count: int) -> list[float]:
    """`count` float32 values, strictly falling, all below `lowest`: the nearest ones that float32 can tell apart."""
    scores = []
    score = np.float32(lowest)
    for _ in range(count):
        score = np.nextafter(score, np.float32(-np.inf))
        scores.append(float(score))
    return scores


def append_pieces(model: ModelProto, pieces: Sequence[str], kind: int = Piece.NORMAL) -> ModelProto:
    """A copy of `model` with `pieces` behind its own, in order: the k-th gets id `len(model.pieces) + k`."""
    grown = schema.ModelProto()
    grown.CopyFrom(model)
    lowest = min(entry.score for entry in model.pieces)
    for piece, score in zip(pieces, scores_below(lowest, len(pieces)), strict=True):
        grown.pieces.add(piece=piece, score=score, type=kind)
    grown.trainer_spec.vocab_size = len(grown.pieces)
    return grown


def with_controls(model: ModelProto, vocabulary: Sequence[str]) -> ModelProto:
    """A copy of `model` in which the tokens of `vocabulary` behind its own pieces are control pieces, never text."""
    grown = schema.ModelProto()
    grown.CopyFrom(model)
    for token in vocabulary[len(model.pieces) :]:
        grown.pieces.add(piece=token, score=0.0, type=Piece.CONTROL)
    grown.trainer_spec.vocab_size = len(grown.pieces)
    return grown
