"""The core of the expansion: scores, intermediates and what is sifted out, checked by sentencepiece itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenizer_tools.command import UserError
from tokenizer_tools.expand import (
    ModelProto,
    Piece,
    append_pieces,
    bare_processor,
    find_intermediates,
    load_model,
    schema,
    scores_below,
    sift_known,
)
from tokenizer_tools.pieces import PieceFile, count_reasons

HARD_PIECES = ["人工智能", "猜谜语", "xylophonist", "▁xylophonist", "machine▁learning", "龘龘"]


@pytest.fixture(scope="module")
def model(tiny_tokenizer_dir: Path) -> ModelProto:
    return load_model(tiny_tokenizer_dir / "tokenizer.model")


def file_of(*pieces: str) -> PieceFile:
    return PieceFile(Path("p.jsonl"), len(pieces), {piece: line for line, piece in enumerate(pieces, 1)})


@pytest.mark.parametrize("lowest", [-1e9, -31740.0, -1.0, 0.0])
def test_scores_fall_strictly_in_float32(lowest: float) -> None:
    scores = np.array([lowest, *scores_below(lowest, 5000)], dtype=np.float32)
    assert (np.diff(scores.astype(np.float64)) < 0).all()
    assert len(set(scores.tolist())) == 5001


def test_hard_pieces_are_unreachable_when_merely_appended(model: ModelProto) -> None:
    naive = bare_processor(append_pieces(model, HARD_PIECES))
    assert [len(ids) for ids in naive.encode(HARD_PIECES)] != [1] * len(HARD_PIECES)


def test_every_piece_becomes_one_id_in_order(model: ModelProto) -> None:
    intermediates = find_intermediates(model, HARD_PIECES)
    grown = append_pieces(model, [*HARD_PIECES, *intermediates])
    ids = bare_processor(grown).encode([*HARD_PIECES, *intermediates])
    assert ids == [[len(model.pieces) + k] for k in range(len(ids))]


def test_intermediates_have_no_repeats_and_no_known_piece(model: ModelProto) -> None:
    names = [entry.piece for entry in model.pieces] + HARD_PIECES + find_intermediates(model, HARD_PIECES)
    assert len(set(names)) == len(names)


def test_no_intermediates_where_none_are_needed(model: ModelProto) -> None:
    assert find_intermediates(model, ["人", "工", "人工"]) == []


def test_old_pieces_stay_as_they_are(model: ModelProto) -> None:
    grown = append_pieces(model, HARD_PIECES)
    assert list(grown.pieces)[: len(model.pieces)] == list(model.pieces)
    assert grown.normalizer_spec == model.normalizer_spec
    assert max(entry.score for entry in list(grown.pieces)[len(model.pieces) :]) < min(e.score for e in model.pieces)
    assert all(entry.type == Piece.NORMAL for entry in list(grown.pieces)[len(model.pieces) :])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pieces=st.lists(st.text("甲乙丙ab▁", min_size=1, max_size=6), min_size=1, max_size=8, unique=True),
    text=st.text("甲乙丙丁abc▁", max_size=30),
)
def test_closed_and_old_text_unchanged_for_any_pieces(model: ModelProto, pieces: list[str], text: str) -> None:
    new = list(sift_known(file_of(*pieces), model, []).pieces)
    added = [*new, *find_intermediates(model, new)]
    processor = bare_processor(append_pieces(model, added))
    assert processor.encode(added) == [[len(model.pieces) + k] for k in range(len(added))]
    if not any(piece in text for piece in added):
        assert processor.encode(text) == bare_processor(model).encode(text)


def test_sifts_known_special_and_normalised_pieces(model: ModelProto) -> None:
    old = model.pieces[300].piece
    found = sift_known(file_of("猜", old, "</s>", "a<unk>b", "<pad>", "hello world"), model, ["<pad>"])
    assert list(found.pieces) == ["猜"]
    assert count_reasons(found.skipped) == {"already in the vocabulary": 1}
    assert count_reasons(found.refused) == {"contains a special token": 3, "changed by the normaliser": 1}
    assert found.describe(found.refused[-1]) == (
        "p.jsonl:6: changed by the normaliser: 'hello world' becomes 'hello▁world'"
    )


def test_user_defined_symbols_cannot_be_merged_over(model: ModelProto) -> None:
    with_symbol = append_pieces(model, ["甲乙"])
    with_symbol.pieces[-1].type = Piece.USER_DEFINED
    found = sift_known(file_of("甲乙丙"), with_symbol, [])
    assert count_reasons(found.refused) == {"contains a special token": 1}


def test_missing_directory_and_missing_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nix: no such directory; name a tokenizer directory"):
        load_model(tmp_path / "nix" / "tokenizer.model")
    with pytest.raises(UserError, match="only sentencepiece tokenizers can be expanded so far"):
        load_model(tmp_path / "tokenizer.model")


def test_half_a_model_is_a_user_error(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    whole = (tiny_tokenizer_dir / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a sentencepiece model, or only a part of one; fetch the file again"):
        load_model(tmp_path / "tokenizer.model")


def test_unigram_is_refused(tmp_path: Path, model: ModelProto) -> None:
    unigram = schema.ModelProto()
    unigram.CopyFrom(model)
    unigram.trainer_spec.model_type = schema.TrainerSpec.UNIGRAM
    (tmp_path / "tokenizer.model").write_bytes(unigram.SerializeToString())
    with pytest.raises(UserError, match="is a UNIGRAM model; only BPE can be expanded so far"):
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
