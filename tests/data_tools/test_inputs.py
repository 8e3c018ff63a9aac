"""What a dataset was made from: a digest a file, and what has changed since in few words."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from data_tools.input_files import Span
from data_tools.inputs import changed_files, changed_settings, file_digests, part_digests, read_inputs, write_inputs
from data_tools.parts import Part
from tokenizer_tools.command import UserError


def test_the_digest_of_a_file_is_that_of_its_bytes_or_of_its_pieces_in_order(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"one\ntwo\n")
    whole = hashlib.sha256(b"one\ntwo\n").hexdigest()
    assert part_digests(Part((Span(str(path), 0, 8),))) == [(str(path), whole)]
    assert file_digests([("a", "x"), ("b", whole), ("a", "y")]) == {"a": hashlib.sha256(b"xy").hexdigest(), "b": whole}
    assert file_digests([("a", "x"), ("a", "y")]) != file_digests([("a", "y"), ("a", "x")])
    write_inputs(tmp_path, {"日": whole})
    assert read_inputs(tmp_path) == {"日": whole}
    with pytest.raises(UserError, match="no such file; expected the inputs of prepare_pretrain_dataset"):
        read_inputs(tmp_path / "absent")


def test_settings_that_differ_are_named_with_both_values() -> None:
    old = {"same": 1, "length": 4096, "gone": 1, "template": "{{ bos_token }}"}
    new = {"same": 1, "length": 2048, "new": True, "template": "x" * 25}
    assert changed_settings(old, new) == [
        "length 4096 -> 2048",
        "new None -> True",
        "template {{ bos_token }} -> " + "x" * 24 + "...",
    ]
    assert changed_settings({"name": "y"}, {"name": "x" * 24}) == ["name y -> " + "x" * 24]


def test_files_that_differ_are_named_a_few_by_name() -> None:
    old = {"same": [1, 2], "changed": [1, 2], "gone": [1, 2]}
    assert changed_files(old, {"same": [1, 2], "changed": [1, 3], "new": [1, 2]}) == [
        "changed changed",
        "new new",
        "gone gone",
    ]
    assert changed_files({}, {"a": 1, "b": 1, "c": 1}) == ["new a, b, c"]
    assert changed_files({}, {"a": 1, "b": 1, "c": 1, "d": 1, "e": 1}) == ["new a, b, c and 2 more"]
    assert changed_files(old, old) == []
