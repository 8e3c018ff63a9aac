"""A sentencepiece vocabulary grown by new pieces, checked by sentencepiece itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from tokenizer_tools.command import UserError
from tokenizer_tools.sentencepiece_bpe import (
    ModelProto,
    Piece,
    SentencePieceBpe,
    append_pieces,
    bare_processor,
    load_model,
    schema,
    scores_below,
    with_controls,
)

HARD_PIECES = ["人工智能", "猜谜语", "xylophonist", "▁xylophonist", "machine▁learning", "龘龘"]


@pytest.fixture(scope="module")
def model(tiny_tokenizer_dir: Path) -> ModelProto:
    return load_model(tiny_tokenizer_dir / "tokenizer.model")


@pytest.mark.parametrize("lowest", [-1e9, -31740.0, -1.0, 0.0])
def test_scores_fall_strictly_in_float32(lowest: float) -> None:
    scores = np.array([lowest, *scores_below(lowest, 5000)], dtype=np.float32)
    assert (np.diff(scores.astype(np.float64)) < 0).all()
    assert len(set(scores.tolist())) == 5001


def test_hard_pieces_are_unreachable_when_merely_appended(model: ModelProto) -> None:
    naive = bare_processor(append_pieces(model, HARD_PIECES))
    assert [len(ids) for ids in naive.encode(HARD_PIECES)] != [1] * len(HARD_PIECES)


def test_old_pieces_stay_as_they_are(model: ModelProto) -> None:
    grown = append_pieces(model, HARD_PIECES)
    assert list(grown.pieces)[: len(model.pieces)] == list(model.pieces)
    assert grown.normalizer_spec == model.normalizer_spec
    assert max(entry.score for entry in list(grown.pieces)[len(model.pieces) :]) < min(e.score for e in model.pieces)
    assert all(entry.type == Piece.NORMAL for entry in list(grown.pieces)[len(model.pieces) :])


def test_tokens_behind_the_pieces_become_controls_with_their_ids(model: ModelProto) -> None:
    vocabulary = [entry.piece for entry in model.pieces] + ["<pad>", "<user>"]
    processor = bare_processor(with_controls(model, vocabulary))
    assert [processor.piece_to_id(token) for token in ("<pad>", "<user>")] == [512, 513]
    assert processor.is_control(512) and processor.is_control(513)
    assert processor.encode("<pad> the") == bare_processor(model).encode("<pad> the")


def test_half_a_model_is_a_user_error(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    whole = (tiny_tokenizer_dir / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a sentencepiece model, or only a part of one; fetch the file again"):
        load_model(tmp_path / "tokenizer.model")


def test_a_missing_model_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.model: no such file; name a tokenizer directory that holds it"):
        load_model(tmp_path / "tokenizer.model")


def test_unigram_is_refused(tmp_path: Path, model: ModelProto) -> None:
    unigram = append_pieces(model, [])
    unigram.trainer_spec.model_type = schema.TrainerSpec.UNIGRAM
    (tmp_path / "tokenizer.model").write_bytes(unigram.SerializeToString())
    with pytest.raises(UserError, match="is a UNIGRAM model; only BPE can be expanded"):
        load_model(tmp_path / "tokenizer.model")


def test_bare_processor_keeps_blanks_that_the_model_removes(model: ModelProto) -> None:
    removing = append_pieces(model, [])
    removing.normalizer_spec.remove_extra_whitespaces = True
    assert bare_processor(removing).normalize("▁a▁▁b▁") == "▁a▁▁b▁"


def test_bare_processor_leaves_the_model_alone(model: ModelProto) -> None:
    before = model.SerializeToString()
    assert bare_processor(model).encode("a", out_type=str)[0] == "a"
    assert model.SerializeToString() == before
    whole = sentencepiece.SentencePieceProcessor(model_proto=before)
    assert whole.encode("a", out_type=str)[0].startswith("▁")


def test_whole_texts_are_encoded_as_sentencepiece_does(tiny_tokenizer_dir: Path, model: ModelProto) -> None:
    text = "the 人工 of </s>"
    grown = sentencepiece.SentencePieceProcessor(
        model_proto=append_pieces(model, ["人", "工", "人工"]).SerializeToString()
    )
    assert SentencePieceBpe(tiny_tokenizer_dir).encode(["人", "工", "人工"], [text]) == [grown.encode(text)]
    assert 514 in grown.encode(text)
