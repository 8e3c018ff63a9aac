"""Mining pieces: counts against brute force, order, closure, and the command."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import CHINESE, write_jsonl
from tests.tokenizer_tools.test_init_tokenizer import only_error
from tokenizer_tools import init_tokenizer, train_pieces
from tokenizer_tools.expand import find_intermediates, load_model
from tokenizer_tools.mine import best_first, count_made, count_runs, last_merge, learn_model


def run(data: Path, tokenizer: Path, output: Path, *more: str) -> int:
    flags = {"data_input_dirs": data, "tokenizer_dir": tokenizer, "output_file": output}
    return train_pieces.main([*(part for name, value in flags.items() for part in (f"--{name}", str(value))), *more])


def read(file: Path) -> dict[str, int]:
    records = [json.loads(line) for line in file.read_text().splitlines()]
    assert all(record.keys() == {"piece", "count"} for record in records)
    return {record["piece"]: record["count"] for record in records}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two Chinese categories and an English one."""
    records = [{"target": text * 3, "category": "essays"} for text in CHINESE]
    records += [{"target": "龘龘龘，猜谜语。", "category": "riddles"}, {"target": "no Chinese", "category": "english"}]
    write_jsonl(tmp_path / "corpus" / "a.jsonl", records)
    return tmp_path / "corpus"


def test_runs_are_cut_at_everything_that_is_not_han() -> None:
    assert count_runs(["人工智能AI，人工智能。", "々〇㐀𠀀カ 한"]) == {"人工智能": 2, "々〇㐀𠀀": 1}


def test_very_long_runs_are_cut_not_lost() -> None:
    runs = count_runs(["长" * 9001])
    assert sum(len(run) * count for run, count in runs.items()) == 9001
    assert count_made(learn_model(runs, 5, 1.0), runs)["长"] == 9001


def brute_force_made(runs: dict[str, int], ranks: dict[str, int]) -> Counter[str]:
    """Encode each run by hand, lowest rank first then leftmost, and count whatever is made."""
    made: Counter[str] = Counter()
    for run, count in runs.items():
        symbols = list(run)
        made.update({character: run.count(character) * count for character in set(run)})
        while True:
            pairs = [
                (ranks[a + b], k) for k, (a, b) in enumerate(zip(symbols, symbols[1:], strict=False)) if a + b in ranks
            ]
            if not pairs:
                break
            k = min(pairs)[1]
            symbols[k : k + 2] = ["".join(symbols[k : k + 2])]
            made[symbols[k]] += count
    return made


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text("甲乙丙丁", min_size=2, max_size=12), min_size=3, max_size=20))
def test_counts_are_those_of_encoding_by_hand(texts: list[str]) -> None:
    import sentencepiece

    runs = count_runs(texts)
    model = learn_model(runs, 12, 1.0)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ranks = {processor.id_to_piece(i): i for i in range(3, processor.get_piece_size())}
    assert count_made(model, runs) == {p: n for p, n in brute_force_made(runs, ranks).items() if n}


def test_last_merge() -> None:
    ranks = {"乙丙": 0, "甲乙": 1, "甲乙丙": 2}
    assert last_merge("甲乙丙", ranks) == ("甲", "乙丙")
    with pytest.raises(ValueError, match="no merges lead to"):
        last_merge("甲乙丁", {"丁": 0})


def test_best_saves_most_tokens_and_a_character_saves_its_bytes() -> None:
    assert best_first({"甲": 5, "𠀀": 4, "甲乙": 11, "甲乙丙": 11, "丙": 1}) == ["𠀀", "甲乙", "甲乙丙", "甲", "丙"]


def test_any_head_of_the_file_is_closed(corpus: Path, tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    assert run(corpus, tiny_tokenizer_dir, tmp_path / "p.jsonl", "--num_pieces", "80") == 0
    pieces = list(read(tmp_path / "p.jsonl"))
    assert len(pieces) == 80
    model = load_model(tiny_tokenizer_dir / "tokenizer.model")
    for head in (10, 25, 60, 80):
        assert find_intermediates(model, pieces[:head]) == []


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
    assert not pieces.keys() & {entry.piece for entry in load_model(base_tokenizer_dir / "tokenizer.model").pieces}


def test_a_second_round_finds_as_many_again(corpus: Path, tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    assert run(corpus, tiny_tokenizer_dir, tmp_path / "p.jsonl", "--num_pieces", "120") == 0
    flags = ["--source_tokenizer_dir", str(tiny_tokenizer_dir), "--expand_tokens_file", str(tmp_path / "p.jsonl")]
    assert init_tokenizer.main([*flags, "--target_tokenizer_dir", str(tmp_path / "expanded")]) == 0
    assert run(corpus, tmp_path / "expanded", tmp_path / "q.jsonl", "--num_pieces", "12") == 0
    assert len(read(tmp_path / "q.jsonl")) == 12
    assert not read(tmp_path / "q.jsonl").keys() & read(tmp_path / "p.jsonl").keys()


def test_characters_are_not_normalised() -> None:
    runs = count_runs(["\uf900甲" * 5])  # a compatibility ideograph, which NFKC would replace
    assert count_made(learn_model(runs, 5, 1.0), runs)["\uf900"] == 5


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
        (["--num_pieces", "5", "--categories", "english"], "holds no Chinese text in the categories english"),
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
