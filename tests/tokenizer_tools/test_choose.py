"""The list of pieces: order, closure of every head, twins."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tokenizer_tools.choose import Choice, choose, twin_key
from tokenizer_tools.mine import segment


def choose_plain(savings: dict[str, int], num_pieces: int = 99, new: str = "", refused: str = "\0") -> Choice:
    """Symbols spell themselves; the symbols in `new` are no old pieces; a text with `refused` in it is refused."""
    return choose(savings, str, lambda symbol: symbol in new, lambda text: refused in text, num_pieces)


def test_best_first_and_of_equals_the_shorter() -> None:
    assert list(choose_plain({"甲乙丙": 5, "乙丙": 9, "丙甲": 5}).pieces) == ["乙丙", "丙甲", "甲乙丙"]


def test_missing_steps_stand_before_their_piece() -> None:
    assert list(choose_plain({"甲乙丙丁": 9}, new="甲丙").pieces) == ["甲", "丙", "甲乙", "甲乙丙", "甲乙丙丁"]


@given(
    st.dictionaries(st.text("甲乙丙丁", min_size=2, max_size=6), st.integers(1, 99), max_size=25), st.integers(1, 30)
)
def test_every_head_is_closed(savings: dict[str, int], num_pieces: int) -> None:
    pieces = list(choose_plain(savings, num_pieces, new="丁").pieces)
    assert len(pieces) <= num_pieces
    for end in range(1, len(pieces) + 1):
        ranks = {piece: rank for rank, piece in enumerate(pieces[:end])}
        for piece in ranks:
            assert segment(piece, ranks) == [piece]
            assert "丁" not in piece or "丁" in ranks


def test_the_budget_is_kept() -> None:
    assert list(choose_plain({"甲乙": 5, "乙丙": 9, "丙甲": 7}, num_pieces=2).pieces) == ["乙丙", "丙甲"]


def test_what_is_refused_is_left_out_with_what_is_made_of_it() -> None:
    choice = choose_plain({"甲乙": 9, "丙乙": 8, "丙乙甲": 7}, refused="丙乙")
    assert list(choice.pieces) == ["甲乙"]


def test_twins_are_handled_once_and_the_best_is_kept() -> None:
    choice = choose_plain({"▁中国": 5, "中国": 9, "ＡＢ": 8, "AB": 7, "▁AB": 6, "▁的": 4, "▁xy": 3, "xy": 2})
    assert list(choice.pieces) == ["中国", "ＡＢ", "▁的", "▁x", "▁xy"]
    assert choice.twins == {"AB": "ＡＢ", "▁AB": "ＡＢ", "▁中国": "中国", "xy": "▁xy"}


def test_a_word_with_its_blank_may_be_made_of_the_word() -> None:
    assert list(choose_plain({"аб": 9, "▁аб": 8, "ＡＢ": 7}).pieces) == ["аб", "▁аб", "ＡＢ"]
    assert list(choose_plain({"аб": 9, "▁а": 8, "▁аб": 7}).pieces) == ["аб", "▁а", "▁аб"]


def test_what_is_made_of_a_twin_goes_with_it() -> None:
    assert list(choose_plain({"中国": 9, "▁中国": 5, "▁中国人": 4}).pieces) == ["中国"]


def test_one_text_in_two_spellings_is_no_twin() -> None:
    texts = {"x": "甲乙", "y": "丙", "甲": "甲", "z": "乙丙"}
    choice = choose(
        {"xy": 9, "甲z": 5}, lambda s: "".join(map(texts.__getitem__, s)), lambda s: False, lambda t: False, 9
    )
    assert (choice.pieces, choice.twins) == ({"甲乙丙": "xy"}, {})


def test_twin_key() -> None:
    assert twin_key("▁ＡＢＣ") == twin_key("ABC") == "ABC"
    assert twin_key("ｶﾞ") == "ガ"
    assert twin_key("\uf900") != twin_key("\u8c48")  # a compatibility ideograph differs by more than its width
