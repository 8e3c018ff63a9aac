"""Real text through everything that reads a tokenizer: differences are found wherever the source had none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CHINESE
from tokenizer_tools.proof_texts import compare_texts
from tokenizer_tools.readers import Readers
from tokenizer_tools.tokenizer import load_tokenizer

TEXTS = ["the machine and the copyright", "天气 of the work"]


def copy_with(source: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a tokenizer directory whose tokenizer.json is changed."""
    shutil.copytree(source, target)
    load_tokenizer(source).backend_tokenizer.save(str(target / "tokenizer.json"))
    layout = json.loads((target / "tokenizer.json").read_text())
    change(layout)
    (target / "tokenizer.json").write_text(json.dumps(layout))
    return target


def without_merges(layout: dict[str, Any]) -> None:
    layout["model"]["merges"] = []


def with_another_decoder(layout: dict[str, Any]) -> None:
    layout["decoder"] = {"type": "Strip", "content": "t", "start": 1, "stop": 1}


def test_sound_directories_agree(tiny_tokenizer_dir: Path, byte_level_tokenizer_dir: Path) -> None:
    for directory in (tiny_tokenizer_dir, byte_level_tokenizer_dir):
        readers = Readers(directory)
        assert readers.differing([*TEXTS, *CHINESE]) == [""] * (len(TEXTS) + len(CHINESE))
        assert not any(readers.not_coming_back([*TEXTS, *CHINESE]))


def test_sentencepiece_and_fast_are_compared(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    readers = Readers(copy_with(tiny_tokenizer_dir, tmp_path / "target", without_merges))
    assert readers.differing([TEXTS[0], ""]) == ["sentencepiece and the fast tokenizer", ""]
    readers.processor = None
    assert readers.differing([TEXTS[0], ""]) == ["the slow and the fast tokenizer", ""]


def test_a_difference_that_the_source_has_is_counted_only(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    source, target = (
        Readers(copy_with(tiny_tokenizer_dir, tmp_path / name, without_merges)) for name in ("source", "target")
    )
    documents = [("en", text) for text in TEXTS]
    effects = compare_texts(source, target, documents)
    assert (effects["en"].documents, effects["en"].source_disagrees, effects["en"].changed) == (2, 2, 0)
    with pytest.raises(RuntimeError, match="sentencepiece and the fast tokenizer differ on 'the machine and the"):
        compare_texts(Readers(tiny_tokenizer_dir), target, documents)


def test_text_that_does_not_come_back_is_found(byte_level_tokenizer_dir: Path, tmp_path: Path) -> None:
    target = Readers(copy_with(byte_level_tokenizer_dir, tmp_path / "target", with_another_decoder))
    with pytest.raises(RuntimeError, match="decoding does not give back 'the machine"):
        compare_texts(Readers(byte_level_tokenizer_dir), target, [("en", TEXTS[0])])
    assert compare_texts(target, target, [("en", TEXTS[0])])["en"].source_loses == 1


def test_text_that_only_the_slow_class_loses_is_found(
    tiny_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers = Readers(tiny_tokenizer_dir)
    monkeypatch.setattr(readers.slow, "batch_decode", lambda ids: ["lost" for _ in ids])
    assert readers.not_coming_back(TEXTS) == [True, True]


def test_old_text_with_other_ids_is_found(byte_level_tokenizer_dir: Path, tmp_path: Path) -> None:
    target = Readers(copy_with(byte_level_tokenizer_dir, tmp_path / "target", without_merges))
    target.fast.backend_tokenizer.model.ignore_merges = False
    with pytest.raises(RuntimeError, match="old text got other ids: 'copyrightthe'"):
        compare_texts(Readers(byte_level_tokenizer_dir), target, [("en", "copyrightthe")])
