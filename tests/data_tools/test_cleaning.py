"""Cleaning: each reason at its very limit, each flag that cannot be meant, and the cleaner of a worker."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools import cleaning as module
from data_tools.cleaning import REASONS, Cleaner, CleaningConfig, fault, repeated_line_share
from data_tools.near_duplicates import SKETCH_VALUES, sketches_of
from tests.data_tools.naive_ngrams import LETTERS
from tokenizer_tools.command import UserError, parse_config

OFF = CleaningConfig()


@pytest.mark.parametrize(
    ("flags", "text", "reason"),
    [
        ({"min_characters": 3}, "字字", "too_short"),
        ({"min_characters": 3}, "字字字", None),
        ({"max_characters": 3}, "字字字字", "too_long"),
        ({"max_characters": 3}, "字字字", None),
        ({"min_letter_share": 0.5}, "ab 字 \n 1.!🙂", "few_letters"),
        ({"min_letter_share": 0.5}, "ab 字 \n 1.!", None),
        ({"min_letter_share": 1.0}, " \n", None),
        ({"min_letter_share": 1.0}, "हिन्दी ภาษาไทย cafe\u0301", None),
        ({"only_scripts": "han", "min_script_share": 0.6}, "中文ab, 2024!", "other_script"),
        ({"only_scripts": "han", "min_script_share": 0.5}, "中文ab, 2024!", None),
        ({"only_scripts": "Han, latin", "min_script_share": 1.0}, "中文 abc é —— 2024", None),
        ({"only_scripts": "han,latin", "min_script_share": 1.0}, "中文 abc я", "other_script"),
        ({"only_scripts": "hiragana,katakana,han", "min_script_share": 1.0}, "東京タワーです", None),
        ({"only_scripts": "latin"}, "12.5 %", None),
        ({"only_scripts": "latin"}, "ไทย", "other_script"),
        ({"max_repeated_line_share": 0.4}, "ab\nab\ncdef\n ab \n", None),
        ({"max_repeated_line_share": 0.39}, "ab\nab\ncdef\n ab \n", "repeated_lines"),
        ({"min_characters": 9, "min_letter_share": 1.0, "only_scripts": "han"}, "1 a", "too_short"),
        ({"min_letter_share": 1.0, "only_scripts": "han", "max_repeated_line_share": 0.0}, "1 a\n1 a", "few_letters"),
        ({"only_scripts": "han", "max_repeated_line_share": 0.0}, "1 a\n1 a", "other_script"),
    ],
)
def test_each_reason_at_its_limit(flags: dict[str, Any], text: str, reason: str | None) -> None:
    config = CleaningConfig(**flags)
    config.check()
    assert fault(text, config) == reason
    assert reason is None or reason in REASONS


@given(st.text())
def test_nothing_is_left_out_by_default(text: str) -> None:
    assert fault(text, OFF) is None


@settings(deadline=None)  # the first example makes the tables
@given(st.text(alphabet=LETTERS, min_size=1), st.sampled_from([0.25, 0.5, 1.0]))
def test_letters_are_what_unicode_calls_letters_and_marks(text: str, share: float) -> None:
    visible = [character for character in text if not character.isspace()]
    letters = [character for character in visible if unicodedata.category(character)[0] in "LM"]
    letters = [character for character in letters if ord(character) < 0x40000]  # no selectors of variants
    is_poor = bool(visible) and len(letters) / len(visible) < share
    assert fault(text, CleaningConfig(min_letter_share=share)) == ("few_letters" if is_poor else None)


@given(st.lists(st.sampled_from(["", " ", "a", "a ", "bb", "ccc\t"]), max_size=8))
def test_repeated_lines_are_those_that_came_before(lines: list[str]) -> None:
    lengths = [len(line.strip()) for line in lines]
    bare = [line.strip() for line in lines]
    repeated = sum(length for place, length in enumerate(lengths) if bare[place] in bare[:place])
    assert repeated_line_share("\n".join(lines)) == pytest.approx(repeated / max(sum(lengths), 1))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"min_characters": -1}, "--min_characters -1: a number of characters; choose 0 or more"),
        ({"max_characters": 0}, "--max_characters 0: would leave out every document; choose 1 or more"),
        (
            {"max_characters": 5, "min_characters": 6},
            "--max_characters 5: would leave out every document; choose 6 or more",
        ),
        ({"min_letter_share": 1.5}, "--min_letter_share 1.5: a share; choose 0 to 1"),
        ({"min_letter_share": float("nan")}, "--min_letter_share nan: a share; choose 0 to 1"),
        ({"only_scripts": "han", "min_script_share": -0.1}, "--min_script_share -0.1: a share; choose 0 to 1"),
        ({"max_repeated_line_share": 20}, "--max_repeated_line_share 20: a share; choose 0 to 1"),
        ({"only_scripts": "han,chinese"}, "--only_scripts chinese: no script of Unicode; name some of han, latin, "),
        ({"only_scripts": "han}|."}, "--only_scripts han}|.: no script of Unicode; name some of han, latin, "),
        ({"min_script_share": 0.9}, "--min_script_share 0.9: has no effect without --only_scripts; add it"),
        ({"decontaminate_ngram": 8}, "--decontaminate_ngram 8: has no effect without --decontaminate; add it"),
        (
            {"decontaminate": Path("x"), "decontaminate_ngram": 4},
            "--decontaminate_ngram 4: shorter runs occur everywhere, longer ones nowhere; choose 5 to 100",
        ),
        ({"decontaminate": Path("x"), "decontaminate_ngram": 101}, "--decontaminate_ngram 101: shorter runs"),
        ({"near_duplicate_similarity": 0.4}, "--near_duplicate_similarity 0.4: choose 0.5 to 1; "),
        ({"near_duplicate_similarity": 80.0}, "--near_duplicate_similarity 80.0: choose 0.5 to 1; "),
    ],
)
def test_flags_that_cannot_be_meant(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        CleaningConfig(**flags).check()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@dataclass
class CommandConfig:
    """A command that cleans."""

    cleaning: CleaningConfig = OFF
    """Cleaning"""


def test_the_flags_of_a_command_that_cleans() -> None:
    assert parse_config(CommandConfig, []).cleaning == OFF
    OFF.check()
    flags = ["--only_scripts", "han,latin", "--max_characters", "9", "--near_duplicate_similarity", "0.8"]
    config = parse_config(CommandConfig, [*flags, "--drop_exact_duplicates", "--decontaminate", "set"]).cleaning
    assert config == replace(
        OFF,
        only_scripts="han,latin",
        max_characters=9,
        near_duplicate_similarity=0.8,
        drop_exact_duplicates=True,
        decontaminate=Path("set"),
    )
    config.check()


QUESTION = "Which of these rivers runs through the most countries on its way to the sea?"


@pytest.fixture
def evaluation_set(tmp_path: Path) -> Path:
    path = tmp_path / "set.txt"
    path.write_text(QUESTION)
    return path


def test_a_cleaner_names_every_fault(evaluation_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 100)
    cleaner = Cleaner(CleaningConfig(min_characters=3, decontaminate=evaluation_set))
    texts = ["ab", *["a clean text"] * 20, f"Question: {QUESTION}", "a", "clean", QUESTION]
    assert cleaner.faults(texts) == ["too_short", *[None] * 20, "contaminated", "too_short", None, "contaminated"]
    assert cleaner.faults([]) == []
    assert Cleaner(OFF).faults(texts) == [None] * len(texts)


def test_a_cleaner_sketches_only_for_near_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 10)
    texts = ["one two three", "four", "five", "", "six seven eight", "nine"]
    sketches = Cleaner(CleaningConfig(near_duplicate_similarity=0.8)).sketches(texts)
    assert np.array_equal(sketches, sketches_of(texts))
    assert Cleaner(CleaningConfig(near_duplicate_similarity=0.8)).sketches([]).shape == (0, SKETCH_VALUES)
    assert Cleaner(OFF).sketches(texts).shape == (6, 0)


def test_an_evaluation_set_of_short_texts_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.txt"
    path.write_text("yes or no")
    with pytest.raises(UserError, match=r"set\.txt: no text of 8 words or more; shorter ones occur everywhere; name"):
        Cleaner(CleaningConfig(decontaminate=path))


def test_a_cleaner_means_what_it_does_to_one_text(evaluation_set: Path) -> None:
    """Whatever changes a part of the cache changes the meaning, and nothing else does."""
    copy = evaluation_set.with_name("copy.txt")
    copy.write_text(QUESTION.upper())
    other = evaluation_set.with_name("other.txt")
    other.write_text(QUESTION + " Name it.")
    configs = {
        "off": OFF,
        "off, exact": replace(OFF, drop_exact_duplicates=True),
        "scripts": replace(OFF, only_scripts="han"),
        "letters": replace(OFF, min_letter_share=0.5),
        "near": replace(OFF, near_duplicate_similarity=0.8),
        "near, too": replace(OFF, near_duplicate_similarity=0.9),
        "set": replace(OFF, decontaminate=evaluation_set),
        "set, too": replace(OFF, decontaminate=copy),
        "other set": replace(OFF, decontaminate=other),
    }
    meanings = {name: Cleaner(config).meaning() for name, config in configs.items()}
    same = [{b for b in configs if meanings[a] == meanings[b]} for a in configs]
    off, near, decontaminated = {"off", "off, exact"}, {"near", "near, too"}, {"set", "set, too"}
    alone = [{"scripts"}, {"letters"}, {"other set"}]
    assert same == [off, off, *alone[:2], near, near, decontaminated, decontaminated, alone[2]]
