"""Units: what a piece may not reach beyond."""

from __future__ import annotations

import pytest

from tokenizer_tools.units import find_units


@pytest.mark.parametrize(
    ("unit", "text", "units"),
    [
        ("han", "人工智能AI，人工智能。", ["人工智能", "人工智能"]),
        ("han", "々〇㐀𠀀カ 한", ["々〇㐀𠀀"]),
        ("words", "Das Haus, l'été 42 x_y", ["Das", " Haus", " l", "été", " x", "y"]),
        ("words", "한국어 문장", ["한국어", " 문장"]),
        ("words", "ภาษาไทยที่ดี", ["ภาษาไทยที่ดี"]),
        ("words", "使用Linux系统 食べる", ["使用", "Linux", "系统", " 食べる"]),
        ("text", "a  b，c。\n\tx▁y\u2028z", ["a  b，c。", "x", "y", "z"]),
    ],
)
def test_units(unit: str, text: str, units: list[str]) -> None:
    assert find_units(text, unit) == units


@pytest.mark.parametrize("unit", ["han", "words", "text"])
def test_very_long_units_are_cut_not_lost(unit: str) -> None:
    units = find_units("长" * 9001, unit)
    assert "".join(units) == "长" * 9001
    assert max(map(len, units)) == 4000
