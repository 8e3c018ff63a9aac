"""The command: what it finds, what it writes, what it predicts, what it refuses."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from tests.conftest import CHINESE, write_jsonl, write_llama_tokenizer
from tests.tokenizer_tools.test_init_tokenizer import only_error
from tokenizer_tools import init_tokenizer, train_pieces
from tokenizer_tools.closure import close
from tokenizer_tools.held_out import LEARN, PROOF, share_of
from tokenizer_tools.sentencepiece_bpe import append_pieces, load_model
from tokenizer_tools.tokenizer import TextEncoder, load_tokenizer
from tokenizer_tools.vocabulary import open_vocabulary

COLUMNS = ["piece", "count", "tokens_saved", "tokens_per_character", "expected_occurrences"]


def run(data: Path, tokenizer: Path, output: Path, *more: str) -> int:
    flags = {"data_input_dirs": data, "tokenizer_dir": tokenizer, "output_file": output, "held_out_share": 0}
    return train_pieces.main([*(part for name, value in flags.items() for part in (f"--{name}", str(value))), *more])


def read_lines(file: Path) -> list[dict[str, Any]]:
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert all(list(record) == COLUMNS for record in records)
    return records


def read(file: Path) -> dict[str, int]:
    return {record["piece"]: record["count"] for record in read_lines(file)}


def expand(tokenizer: Path, pieces: Path, target: Path) -> Path:
    flags = ["--source_tokenizer_dir", str(tokenizer), "--expand_tokens_file", str(pieces)]
    assert init_tokenizer.main([*flags, "--target_tokenizer_dir", str(target)]) == 0
    return target


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two Chinese categories and an English one."""
    records = [{"target": text * 3, "category": "essays"} for text in CHINESE]
    records += [{"target": "龘龘龘，猜谜语。", "category": "riddles"}, {"target": "no Chinese", "category": "english"}]
    write_jsonl(tmp_path / "corpus" / "a.jsonl", records)
    return tmp_path / "corpus"


def made_up_texts(seed: int, num_texts: int, alphabet: str, blank: str) -> list[str]:
    """Texts of words of 1 to 4 letters, the n-th 1/n as frequent as the first, each text with a taste of its own."""
    generator = random.Random(seed)
    words = list({"".join(generator.choices(alphabet, k=generator.choice((1, 2, 2, 3, 4)))) for _ in range(1500)})
    words.sort()
    generator.shuffle(words)
    weights = [1 / (rank + 2) for rank in range(len(words))]
    texts = []
    for _ in range(num_texts):
        taste = generator.choices(words, k=20)
        drawn = [*generator.choices(words, weights, k=150), *generator.choices(taste, k=20)]
        generator.shuffle(drawn)
        texts.append(blank.join(drawn) + "。")
    return texts


@pytest.fixture(scope="module")
def large_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 200,000 characters in two categories of different words."""
    alphabets = {"common": "".join(map(chr, range(0x4E00, 0x4F00))), "rare": "".join(map(chr, range(0x4EC0, 0x5000)))}
    records = [
        {"target": f"Chapter {i}: {text}", "category": category}
        for seed, (category, alphabet) in enumerate(alphabets.items())
        for i, text in enumerate(made_up_texts(seed, 300, alphabet, ""))
    ]
    return write_jsonl(tmp_path_factory.mktemp("large") / "large.jsonl", records)


def held_out_lines(output: str) -> dict[int, tuple[int, int]]:
    """{number of pieces: (predicted, real)} of the report."""
    pattern = (
        r"held-out documents with (\d+) pieces(?: and \d+ intermediates)?: ([\d,]+) tokens predicted, ([\d,]+) real"
    )
    return {
        int(head): (int(predicted.replace(",", "")), int(real.replace(",", "")))
        for head, predicted, real in re.findall(pattern, output)
    }


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_predicted_tokens_are_within_one_per_cent_of_the_real_ones(
    large_corpus: Path, tmp_path: Path, tiny_tokenizer_dir: Path, model_type: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--num_pieces", "1200", "--held_out_share", "0.3", "--model_type", model_type]
    assert run(large_corpus, tiny_tokenizer_dir, tmp_path / "p.jsonl", *flags) == 0
    proofs = held_out_lines(capsys.readouterr().out)
    assert list(proofs) == [300, 600, 1200]
    lines = (tmp_path / "p.jsonl").read_text().splitlines(keepends=True)
    texts = [json.loads(line)["target"] for line in large_corpus.read_text().splitlines()]
    texts = [text for text in texts if share_of(text, 0.3) == PROOF]
    for head, (predicted, real) in proofs.items():
        (tmp_path / f"{head}.jsonl").write_text("".join(lines[:head]))
        expanded = expand(tiny_tokenizer_dir, tmp_path / f"{head}.jsonl", tmp_path / f"{model_type}{head}")
        processor = sentencepiece.SentencePieceProcessor(model_file=str(expanded / "tokenizer.model"))
        assert processor.get_piece_size() == 512 + head  # no intermediates
        assert real == sum(map(len, processor.encode(texts)))
        assert abs(predicted / real - 1) < 0.01


@pytest.mark.parametrize(
    ("unit", "first_letter", "blank", "needs_intermediates"), [("words", 0x430, " ", False), ("han", 0x5000, "", True)]
)
def test_predictions_for_a_byte_level_tokenizer(
    tmp_path: Path,
    byte_level_tokenizer_dir: Path,
    unit: str,
    first_letter: int,
    blank: str,
    needs_intermediates: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    alphabet = "".join(map(chr, range(first_letter, first_letter + 20)))
    records = [{"target": text} for text in made_up_texts(5, 500, alphabet, blank)]
    data = write_jsonl(tmp_path / "a.jsonl", records)
    flags = ["--num_pieces", "150", "--held_out_share", "0.3", "--unit", unit]
    assert run(data, byte_level_tokenizer_dir, tmp_path / "p.jsonl", *flags) == 0
    output = capsys.readouterr().out
    predicted, real = held_out_lines(output)[150]
    texts = [record["target"] for record in records if share_of(record["target"], 0.3) == PROOF]
    expanded = load_tokenizer(expand(byte_level_tokenizer_dir, tmp_path / "p.jsonl", tmp_path / "expanded"))
    assert real == sum(map(len, TextEncoder(expanded).encode_batch(texts)))
    assert abs(predicted / real - 1) < 0.01
    num_intermediates = len(expanded) - len(load_tokenizer(byte_level_tokenizer_dir)) - 150
    assert (num_intermediates > 0) == needs_intermediates
    assert (f"with 150 pieces and {num_intermediates} intermediates:" in output) == needs_intermediates
    assert any(piece.startswith("▁") for piece in read(tmp_path / "p.jsonl")) == (unit == "words")


def test_columns_are_what_the_expanded_tokenizer_does(
    large_corpus: Path, tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    flags = ["--num_pieces", "500", "--held_out_share", "0.3", "--planned_tokens", "5e6"]
    assert run(large_corpus, tiny_tokenizer_dir, tmp_path / "p.jsonl", *flags) == 0
    lines = read_lines(tmp_path / "p.jsonl")
    texts = [json.loads(line)["target"] for line in large_corpus.read_text().splitlines()]
    texts = [text for text in texts if share_of(text, 0.3) == LEARN]
    expanded = expand(tiny_tokenizer_dir, tmp_path / "p.jsonl", tmp_path / "expanded")
    encode = sentencepiece.SentencePieceProcessor(model_file=str(expanded / "tokenizer.model")).encode
    old = sentencepiece.SentencePieceProcessor(model_file=str(tiny_tokenizer_dir / "tokenizer.model")).encode
    used = [piece for pieces in encode(texts, out_type=str) for piece in pieces]
    assert sum(line["tokens_saved"] for line in lines) == sum(map(len, old(texts))) - len(used)
    for line in lines[::7]:
        expected = 5e6 * used.count(line["piece"]) / len(used)
        assert line["expected_occurrences"] == pytest.approx(expected, abs=0.06)
        assert line["tokens_saved"] == line["count"] * (2 if len(line["piece"]) == 1 else 1)
    ratios = [line["tokens_per_character"] for line in lines]
    assert ratios == sorted(ratios, reverse=True)
    assert ratios[-1] == pytest.approx(len(used) / sum(map(len, texts)), rel=0.03)


def test_cut_off_is_where_pieces_become_rarer_than_asked(
    large_corpus: Path, tmp_path: Path, tiny_tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--num_pieces", "900", "--planned_tokens", "1e6", "--min_occurrences", "900"]
    assert run(large_corpus, tiny_tokenizer_dir, tmp_path / "p.jsonl", *flags) == 0
    found = re.search(
        r"suggested cut-off: (\d+) pieces .* fewer than 900 times in 1,000,000 tokens", capsys.readouterr().out
    )
    assert found is not None
    cut_off = int(found[1])
    assert 0 < cut_off < 900
    lines = (tmp_path / "p.jsonl").read_text().splitlines(keepends=True)
    texts = [json.loads(line)["target"] for line in large_corpus.read_text().splitlines()]
    for head, enough in ((cut_off, True), (cut_off + 1, False)):  # as a list that really ends there would have it
        (tmp_path / f"{head}.jsonl").write_text("".join(lines[:head]))
        expanded = expand(tiny_tokenizer_dir, tmp_path / f"{head}.jsonl", tmp_path / f"expanded{head}")
        ids = sentencepiece.SentencePieceProcessor(model_file=str(expanded / "tokenizer.model")).encode(texts)
        occurrences = sum(row.count(512 + head - 1) for row in ids)
        assert (1e6 * occurrences / sum(map(len, ids)) >= 900) == enough


def test_raw_text_gives_pieces_over_words_and_signs(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", [{"target": "Quo vadis, domine? Quo vadis!\nZz"}] * 9)
    assert run(data, tiny_tokenizer_dir, tmp_path / "p.jsonl", "--num_pieces", "40", "--unit", "text") == 0
    assert any(re.search(r"\w[,?]", piece) or "▁" in piece[1:] for piece in read(tmp_path / "p.jsonl"))


def test_twins_are_handled_once_and_reported(
    tmp_path: Path, tiny_tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "中国人, 中国人, 中国, 在中国. ＡＢＣＤ ABCD ＡＢＣＤ"
    data = write_jsonl(tmp_path / "a.jsonl", [{"target": text}] * 9)
    assert run(data, tiny_tokenizer_dir, tmp_path / "p.jsonl", "--num_pieces", "40", "--unit", "words") == 0
    pieces = read(tmp_path / "p.jsonl")
    assert "中国" in pieces
    assert "▁中国" not in pieces
    wide = {piece for piece in pieces if not piece.isascii() and len(piece.replace("▁", "")) > 1}
    assert any("Ａ" in piece for piece in wide)
    assert not {unicodedata.normalize("NFKC", piece) for piece in wide if "Ａ" in piece} & pieces.keys()
    left_out = re.search(r"left out: (\d+) that differ", capsys.readouterr().out)
    assert left_out is not None and int(left_out[1]) > 0


def test_plot(large_corpus: Path, tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    flags = ["--num_pieces", "50", "--held_out_share", "0.3", "--plot", str(tmp_path / "new" / "p.png")]
    assert run(large_corpus, tiny_tokenizer_dir, tmp_path / "p.jsonl", *flags) == 0
    assert (tmp_path / "new" / "p.png").read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["p.png"]


def test_without_held_out_text_it_says_so(
    corpus: Path, tmp_path: Path, tiny_tokenizer_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(corpus, tiny_tokenizer_dir, tmp_path / "p.jsonl", "--num_pieces", "5") == 0
    assert "no held-out text to draw the curve with" in caplog.text


def test_text_without_anything_new_is_refused(
    tmp_path: Path, tiny_tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "a.jsonl", [{"target": "a b"}])
    assert run(data, tiny_tokenizer_dir, tmp_path / "p.jsonl", "--num_pieces", "5", "--unit", "words") == 2
    assert "the tokenizer has every piece of this text already; name other text" in only_error(capsys)


@pytest.mark.parametrize(("proved", "admitted"), [("{} 甲乙甲乙", False), ("{} 甲丙乙丙", True)])
def test_poor_predictions_are_admitted(
    tmp_path: Path, tiny_tokenizer_dir: Path, proved: str, admitted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [text for text in map("{} 甲乙甲乙".format, range(40)) if share_of(text, 0.5) != PROOF]
    texts += [text for text in map(proved.format, range(40)) if share_of(text, 0.5) == PROOF]
    data = write_jsonl(tmp_path / "a.jsonl", [{"target": text} for text in texts])
    assert run(data, tiny_tokenizer_dir, tmp_path / "p.jsonl", "--num_pieces", "4", "--held_out_share", "0.5") == 0
    assert ("predictions are off by more than 1 %" in caplog.text) == admitted


def test_any_head_of_the_file_is_closed(corpus: Path, tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    assert run(corpus, tiny_tokenizer_dir, tmp_path / "p.jsonl", "--num_pieces", "80") == 0
    pieces = list(read(tmp_path / "p.jsonl"))
    assert len(pieces) == 80
    vocabulary = open_vocabulary(tiny_tokenizer_dir)
    for head in (10, 25, 60, 80):
        assert not close(vocabulary, pieces[:head]).intermediates


def test_output_is_deterministic_and_blind_to_the_order_of_files(
    corpus: Path, tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    lines = (corpus / "a.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "turned").mkdir()
    for k, line in enumerate(reversed(lines)):
        (tmp_path / "turned" / f"{k}.jsonl").write_text(line)
    for data, name in ((corpus, "one"), (corpus, "two"), (tmp_path / "turned", "three")):
        assert run(data, tiny_tokenizer_dir, tmp_path / name, "--num_pieces", "50") == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == (tmp_path / "three").read_bytes()


def test_pieces_of_the_old_tokenizer_are_left_out(corpus: Path, tmp_path: Path, base_tokenizer_dir: Path) -> None:
    assert run(corpus, base_tokenizer_dir, tmp_path / "p.jsonl", "--num_pieces", "20") == 0
    pieces = read(tmp_path / "p.jsonl")
    assert len(pieces) == 20
    assert not pieces.keys() & load_tokenizer(base_tokenizer_dir).get_vocab().keys()


def test_an_old_piece_that_nothing_leads_to_is_not_written_again(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    model = append_pieces(load_model(tiny_tokenizer_dir / "tokenizer.model"), ["甲乙丙"])
    tokenizer = write_llama_tokenizer(tmp_path / "unreached", model.SerializeToString())
    data = write_jsonl(tmp_path / "a.jsonl", [{"target": "甲乙丙。甲乙丙丁"}] * 9)
    assert run(data, tokenizer, tmp_path / "p.jsonl", "--num_pieces", "40") == 0
    assert read(tmp_path / "p.jsonl").keys() == {"甲", "乙", "丙", "丁", "甲乙"}


def test_a_second_round_finds_as_many_again(corpus: Path, tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    assert run(corpus, tiny_tokenizer_dir, tmp_path / "p.jsonl", "--num_pieces", "120") == 0
    expand(tiny_tokenizer_dir, tmp_path / "p.jsonl", tmp_path / "expanded")
    assert run(corpus, tmp_path / "expanded", tmp_path / "q.jsonl", "--num_pieces", "12") == 0
    assert len(read(tmp_path / "q.jsonl")) == 12
    assert not read(tmp_path / "q.jsonl").keys() & read(tmp_path / "p.jsonl").keys()


def test_characters_are_not_normalised(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    compatible = "\uf900甲"  # a compatibility ideograph, which NFKC would replace
    data = write_jsonl(tmp_path / "a.jsonl", [{"target": compatible * 5}])
    assert run(data, tiny_tokenizer_dir, tmp_path / "p.jsonl", "--num_pieces", "9") == 0
    assert read(tmp_path / "p.jsonl")["\uf900"] == 5


def test_categories_filter(corpus: Path, tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    flags = ["--num_pieces", "50", "--categories", "riddles,english"]
    assert run(corpus, tiny_tokenizer_dir, tmp_path / "p.jsonl", *flags) == 0
    pieces = read(tmp_path / "p.jsonl")
    assert set("".join(pieces)) == set("龘猜谜语")
    assert pieces["龘"] == 3


def test_coverage_leaves_rare_characters_to_bytes(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    write_jsonl(tmp_path / "c.jsonl", [{"target": "甲乙" * 1000 + "龘"}])
    for coverage, has_it in (("1.0", True), ("0.999", False)):
        flags = ["--num_pieces", "9", "--character_coverage", coverage, "--overwrite"]
        assert run(tmp_path / "c.jsonl", tiny_tokenizer_dir, tmp_path / "p.jsonl", *flags) == 0
        assert ("龘" in read(tmp_path / "p.jsonl")) == has_it


def test_small_text_says_how_many_it_holds(
    corpus: Path, tmp_path: Path, tiny_tokenizer_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert run(corpus, tiny_tokenizer_dir, tmp_path / "p.jsonl", "--num_pieces", "9999") == 0
    assert f"the text holds only {len(read(tmp_path / 'p.jsonl'))} new pieces, not 9999; add text" in caplog.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_pieces", "0"], "--num_pieces 0: has to be at least 1"),
        (["--num_pieces", "5", "--character_coverage", "99"], "--character_coverage 99.0: has to lie in 0.5 to 1"),
        (["--num_pieces", "5", "--categories", "nix"], "no text of ['nix']; there is english, essays, riddles"),
        (["--num_pieces", "5", "--categories", "english"], "holds no Chinese text in the categories english to learn"),
        (["--num_pieces", "5", "--categories", "riddles", "--held_out_share", "0.7"], "0.7: has to lie in 0 to 0.5"),
        (["--num_pieces", "5", "--planned_tokens", "0"], "--planned_tokens 0.0: has to be at least 1"),
        (["--num_pieces", "5", "--min_occurrences", "nan"], "--min_occurrences nan: has to be at least 0"),
        (["--num_pieces", "5", "--plot", "curve.pdf"], "--plot curve.pdf: has to end in .png"),
        (["--num_pieces", "5", "--unit", "syllable"], "invalid choice: 'syllable'"),
        (["--num_pieces", "5", "--model_type", "word"], "invalid choice: 'word'"),
    ],
)
def test_refusals(
    corpus: Path,
    tmp_path: Path,
    tiny_tokenizer_dir: Path,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(corpus, tiny_tokenizer_dir, tmp_path / "p.jsonl", *flags) == 2
    assert message in only_error(capsys)
    assert not (tmp_path / "p.jsonl").exists()


def test_existing_output_needs_overwrite(
    corpus: Path, tmp_path: Path, tiny_tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p.jsonl").write_text("keep")
    assert run(corpus, tiny_tokenizer_dir, tmp_path / "p.jsonl", "--num_pieces", "5") == 2
    assert "p.jsonl: exists; add --overwrite to replace it" in only_error(capsys)
    assert (tmp_path / "p.jsonl").read_text() == "keep"
