"""Old tokens as letters: what they spell and what they cost, against the tokenizer itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import CHINESE
from tokenizer_tools.savings import tokens_in
from tokenizer_tools.symbols import SymbolTable, covered_characters
from tokenizer_tools.tokenizer import TextEncoder, load_tokenizer
from tokenizer_tools.vocabulary import open_vocabulary

UNITS = ["人工智能", " language", "学习了新", "naïve", " Привет", "한국어", "  x"]


def test_coverage_takes_the_most_frequent() -> None:
    units = {"甲甲甲甲甲乙": 1, "乙乙丙": 1}
    assert covered_characters(units, 1.0) == set("甲乙丙")
    assert covered_characters(units, 0.8) == set("甲乙")
    assert covered_characters(units, 0.5) == set("甲")


@pytest.mark.parametrize("fixture", ["tiny_tokenizer_dir", "base_tokenizer_dir", "byte_level_tokenizer_dir"])
def test_symbols_spell_the_units_and_cost_the_old_tokens(fixture: str, request: pytest.FixtureRequest) -> None:
    directory: Path = request.getfixturevalue(fixture)
    table = SymbolTable(open_vocabulary(directory), set("".join(UNITS)))
    spelling = table.spell(UNITS)
    encoded = TextEncoder(load_tokenizer(directory)).encode_batch(UNITS, continuation=True)
    for unit, ids in zip(UNITS, encoded, strict=True):
        assert "".join(map(table.text_of, spelling[unit])) == unit.replace(" ", "▁")
        assert tokens_in(dict.fromkeys(spelling[unit], 1), table.costs) == len(ids)


def test_old_pieces_cost_one_and_new_characters_their_bytes(tiny_tokenizer_dir: Path) -> None:
    table = SymbolTable(open_vocabulary(tiny_tokenizer_dir), {"智"})
    (symbols,) = table.spell([" the智"])[" the智"]
    assert {table.text_of(symbol): table.costs[symbol] for symbol in symbols} == {"▁the": 1, "智": 3}


def test_a_unit_is_cut_at_characters_that_are_left_to_bytes(tiny_tokenizer_dir: Path) -> None:
    table = SymbolTable(open_vocabulary(tiny_tokenizer_dir), set("人工"))
    parts = table.spell(["人工智能人"])["人工智能人"]
    assert [table.text_of(part) for part in parts] == ["人工", "人"]


def test_a_unit_is_cut_where_a_byte_level_tokenizer_cuts(byte_level_tokenizer_dir: Path) -> None:
    table = SymbolTable(open_vocabulary(byte_level_tokenizer_dir), set("".join(CHINESE)))
    parts = table.spell(["人工智能，学习 the"])["人工智能，学习 the"]
    assert [table.text_of(part) for part in parts] == ["人工智能", "，学习", "▁the"]


def test_symbols_do_not_depend_on_order(tiny_tokenizer_dir: Path) -> None:
    spellings = [
        SymbolTable(open_vocabulary(tiny_tokenizer_dir), set("人工")).spell(units) for units in (UNITS, UNITS[::-1])
    ]
    assert spellings[0] == spellings[1]
