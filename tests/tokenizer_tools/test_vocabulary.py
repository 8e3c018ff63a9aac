"""Which directories can be expanded, and which pieces a vocabulary can take."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tokenizer_tools.byte_level_bpe import ByteLevelBpe
from tokenizer_tools.command import UserError
from tokenizer_tools.pieces import PieceFile, count_reasons
from tokenizer_tools.sentencepiece_bpe import Piece, SentencePieceBpe, load_model, schema
from tokenizer_tools.vocabulary import Vocabulary, open_vocabulary, sift


def file_of(*pieces: str) -> PieceFile:
    return PieceFile(Path("p.jsonl"), len(pieces), {piece: line for line, piece in enumerate(pieces, 1)})


@pytest.fixture(params=["tiny_tokenizer_dir", "byte_level_tokenizer_dir"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    return open_vocabulary(request.getfixturevalue(request.param))


def test_each_kind_is_known(tiny_tokenizer_dir: Path, byte_level_tokenizer_dir: Path) -> None:
    assert isinstance(open_vocabulary(tiny_tokenizer_dir), SentencePieceBpe)
    assert isinstance(open_vocabulary(byte_level_tokenizer_dir), ByteLevelBpe)


def test_sifts_known_and_special_pieces(vocabulary: Vocabulary) -> None:
    control = sorted(vocabulary.special)[-1]
    found = sift(file_of("猜", "▁the", control, f"a{control}b"), vocabulary)
    assert list(found.pieces) == ["猜"]
    assert count_reasons(found.skipped) == {"already in the vocabulary": 1}
    assert count_reasons(found.refused) == {"contains a special token": 2}
    assert found.describe(found.refused[-1]) == (
        f"p.jsonl:4: contains a special token: 'a{control}b' contains {control!r}"
    )


def with_normaliser(source: Path, target: Path, rule: str) -> Path:
    """A copy of a sentencepiece tokenizer that normalises text by `rule`."""
    import io

    import sentencepiece

    normaliser = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c"]),
        model_writer=normaliser,
        model_type="char",
        vocab_size=8,
        normalization_rule_name=rule,
        minloglevel=2,
    )
    model = load_model(shutil.copytree(source, target) / "tokenizer.model")
    trained = schema.ModelProto.FromString(normaliser.getvalue())
    model.normalizer_spec.precompiled_charsmap = trained.normalizer_spec.precompiled_charsmap
    (target / "tokenizer.model").write_bytes(model.SerializeToString())
    return target


@pytest.mark.parametrize("kind", ["tiny", "byte_level"])
def test_what_the_normaliser_changes_is_refused_and_repeats_are_named(
    kind: str, tiny_tokenizer_dir: Path, byte_level_tokenizer_dir: Path, tmp_path: Path
) -> None:
    if kind == "tiny":
        source = with_normaliser(tiny_tokenizer_dir, tmp_path / "source", "nfkc")
    else:
        source = shutil.copytree(byte_level_tokenizer_dir, tmp_path / "source")
        layout = json.loads((source / "tokenizer.json").read_text())
        (source / "tokenizer.json").write_text(json.dumps(layout | {"normalizer": {"type": "NFKC"}}))
    found = sift(file_of("ＱＸＹ", "ｔ", "ﾊﾋ", "ハヒ"), open_vocabulary(source))
    assert list(found.pieces) == ["ハヒ"]
    assert [(left.line, left.reason, left.detail) for left in found.refused] == [
        (1, "changed by the normaliser", "'ＱＸＹ' becomes 'QXY'"),
        (2, "duplicate after normalisation", "'ｔ' becomes 't'"),
        (3, "duplicate after normalisation", "'ﾊﾋ' becomes 'ハヒ'"),
    ]


def test_what_the_pre_tokenizer_splits_is_refused(byte_level_tokenizer_dir: Path) -> None:
    found = sift(file_of("你好，世界", "▁世界", "世▁界"), open_vocabulary(byte_level_tokenizer_dir))
    assert list(found.pieces) == ["▁世界"]
    assert count_reasons(found.refused) == {"split by the pre-tokenizer": 2}


def test_user_defined_symbols_cannot_be_merged_over(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    source = shutil.copytree(tiny_tokenizer_dir, tmp_path / "source")
    model = load_model(source / "tokenizer.model")
    model.pieces.add(piece="甲乙", score=0.0, type=Piece.USER_DEFINED)
    (source / "tokenizer.model").write_bytes(model.SerializeToString())
    found = sift(file_of("甲乙丙"), open_vocabulary(source))
    assert count_reasons(found.refused) == {"contains a special token": 1}


def test_a_tokenizer_of_neither_kind_is_refused(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    from tokenizer_tools.tokenizer import load_tokenizer

    source = tmp_path / "source"
    load_tokenizer(tiny_tokenizer_dir).save_pretrained(source, legacy_format=False)
    (source / "tokenizer.model").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"neither a sentencepiece BPE \(it has no tokenizer.model\) nor a byte-level"):
        open_vocabulary(source)


def test_a_hole_in_the_ids_is_refused(tmp_path: Path, byte_level_tokenizer_dir: Path) -> None:
    source = shutil.copytree(byte_level_tokenizer_dir, tmp_path / "source")
    layout = json.loads((source / "tokenizer.json").read_text())
    ids = layout["model"]["vocab"]
    for token in layout["added_tokens"]:
        ids[token["content"]] = token["id"]
    ids["zzzz"] = len(ids) + 1
    (source / "tokenizer.json").write_text(json.dumps(layout))
    with pytest.raises(UserError, match="source: no token has id 703, though others have higher ones"):
        open_vocabulary(source)
