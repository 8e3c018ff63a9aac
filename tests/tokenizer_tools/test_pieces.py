"""The file of pieces: which lines become pieces, which do not, and what is said about them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenizer_tools.command import UserError
from tokenizer_tools.pieces import MAX_PIECE_CHARACTERS, count_reasons, fault_of, parse_line, read_pieces


def write(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return path


def test_keeps_order_and_lines(tmp_path: Path) -> None:
    file = write(
        tmp_path / "p.jsonl", '{"piece": "猜谜语"}', '{"piece": "人工智能", "count": 3}', '{"piece": "▁xylophonist"}'
    )
    found = read_pieces(file)
    assert list(found.pieces.items()) == [("猜谜语", 1), ("人工智能", 2), ("▁xylophonist", 3)]
    assert (found.num_read, found.skipped, found.refused) == (3, [], [])


def test_bom_crlf_and_missing_last_line_break(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_bytes('\ufeff{"piece": "甲"}\r\n{"piece": "乙"}'.encode())
    assert list(read_pieces(file).pieces) == ["甲", "乙"]


def test_line_separators_inside_json_do_not_split_lines(tmp_path: Path) -> None:
    found = read_pieces(write(tmp_path / "p.jsonl", '{"piece": "甲", "note": "a\u2028b\x85c"}', '{"piece": 1}'))
    assert found.num_read == 2
    assert found.refused[0].line == 2


def test_duplicates_and_blank_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    found = read_pieces(write(tmp_path / "p.jsonl", '{"piece": "甲"}', "", '{"piece": "甲"}'))
    assert list(found.pieces) == ["甲"]
    assert count_reasons(found.skipped) == {"blank line": 1, "duplicate": 1}
    assert found.describe(found.skipped[1]) == f"{found.path}:3: duplicate: '甲' stands on line 1"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"piece": "甲"', "not JSON"),
        ("[" * 100_000, "not JSON"),
        (b'{"piece": "\xff"}', "not UTF-8"),
        ('["甲"]', "not an object"),
        ('"甲"', "not an object"),
        ('{"pieces": "甲"}', 'no string "piece"'),
        ('{"piece": null}', 'no string "piece"'),
        ('{"piece": 7}', 'no string "piece"'),
        ('{"piece": ""}', "empty"),
        ('{"piece": "  "}', "only blanks"),
        ('{"piece": "▁▁"}', "only blanks"),
        ('{"piece": "\u3000"}', "only blanks"),
        ('{"piece": "a\\nb"}', "control character"),
        ('{"piece": "a\\u0000"}', "control character"),
        ('{"piece": "\\ud800"}', "control character"),
        (json.dumps({"piece": "长" * (MAX_PIECE_CHARACTERS + 1)}), f"longer than {MAX_PIECE_CHARACTERS} characters"),
        ('{"piece": "<0x0A>"}', "contains the name of a byte piece"),
        ('{"piece": "a<0xff>b"}', "contains the name of a byte piece"),
    ],
)
def test_refused_with_reason_and_place(tmp_path: Path, line: str | bytes, reason: str) -> None:
    found = read_pieces(write(tmp_path / "p.jsonl", '{"piece": "甲"}', line))
    assert list(found.pieces) == ["甲"]
    assert count_reasons(found.refused) == {reason: 1}
    shown = found.describe(found.refused[0])
    assert shown.startswith(f"{tmp_path / 'p.jsonl'}:2: {reason}: ")
    assert shown.isprintable()
    assert len(found.refused[0].detail) <= 60


def test_longest_allowed_piece() -> None:
    assert fault_of("长" * MAX_PIECE_CHARACTERS) is None


def test_unreadable_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nix.jsonl: No such file or directory; name a file of"):
        read_pieces(tmp_path / "nix.jsonl")


@given(st.binary(max_size=80))
def test_any_line_is_a_piece_or_has_a_reason(raw: bytes) -> None:
    piece, reason = parse_line(raw)
    assert (reason is None) == bool(piece)


@given(st.text(min_size=1, max_size=MAX_PIECE_CHARACTERS))
def test_json_round_trip(text: str) -> None:
    piece, reason = parse_line(json.dumps({"piece": text}).encode())
    assert (piece == text.replace(" ", "▁")) if reason is None else (reason == fault_of(text))


@given(st.lists(st.sampled_from(["甲", "乙", "", None, "<0x00>", 3]), max_size=30))
def test_every_line_is_accounted_for(tmp_path_factory: pytest.TempPathFactory, values: list[object]) -> None:
    file = tmp_path_factory.mktemp("pieces") / "p.jsonl"
    found = read_pieces(write(file, *(json.dumps({"piece": value}) for value in values)))
    assert found.num_read == len(values) == len(found.pieces) + len(found.skipped) + len(found.refused)
