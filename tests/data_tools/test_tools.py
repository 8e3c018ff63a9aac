"""Tools of a run: what decides what a document becomes decides the name of its cache, nothing else does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools import tools
from data_tools.cleaning import CleaningConfig
from data_tools.fields import ReadOptions
from data_tools.tools import Settings, Tools, digest_of_meaning
from tokenizer_tools.command import UserError


def changed_tokenizer(directory: Path, target: Path, **config: Any) -> Path:
    shutil.copytree(directory, target)
    path = target / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return target


def test_whatever_decides_what_a_document_becomes_makes_another_digest(
    tmp_path: Path, tiny_tokenizer_dir: Path, base_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Settings(tiny_tokenizer_dir, ReadOptions(), CleaningConfig())
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    others = [
        replace(one, tokenizer_dir=base_tokenizer_dir),
        replace(one, tokenizer_dir=changed_tokenizer(tiny_tokenizer_dir, tmp_path / "chat", chat_template=template)),
        replace(one, tokenizer_dir=changed_tokenizer(tiny_tokenizer_dir, tmp_path / "no bos", add_bos_token=False)),
        replace(one, read=ReadOptions(text_field="text")),
        replace(one, read=ReadOptions(max_document_bytes=1000)),
        replace(one, read=ReadOptions(text_format="human_assistant")),
        replace(one, read=ReadOptions(txt_documents="line")),
        replace(one, cleaning=CleaningConfig(min_characters=9)),
        replace(one, cleaning=CleaningConfig(near_duplicate_similarity=0.8)),
    ]
    digests = [digest_of_meaning(Tools(settings).meaning()) for settings in [one, *others]]
    assert len(set(digests)) == len(digests)
    shutil.copytree(tiny_tokenizer_dir, tmp_path / "elsewhere")
    alike = Tools(replace(one, tokenizer_dir=tmp_path / "elsewhere"))
    assert digest_of_meaning(alike.meaning()) == digests[0]
    monkeypatch.setattr(tools, "VERSION", tools.VERSION + 1)
    assert digest_of_meaning(alike.meaning()) != digests[0]


@pytest.mark.parametrize(("top_id", "dtype"), [(65535, np.uint16), (65536, np.uint32)])
def test_the_largest_id_fits(
    tiny_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, top_id: int, dtype: type
) -> None:
    own = Tools(Settings(tiny_tokenizer_dir, ReadOptions(), CleaningConfig()))
    monkeypatch.setattr(own, "tokenizer", type("Tokenizer", (), {"get_vocab": lambda self: {"a": top_id, "b": 0}})())
    assert own.dtype == dtype


def test_turns_begin_with_a_token_only_where_documents_do(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    def options_of(directory: Path) -> ReadOptions:
        return Tools(Settings(directory, ReadOptions(), CleaningConfig())).read_options

    assert options_of(tiny_tokenizer_dir).bos_token == "<s>"
    without = changed_tokenizer(tiny_tokenizer_dir, tmp_path / "no bos", add_bos_token=False)
    assert options_of(without).bos_token is None
    assert options_of(without).eos_token == "</s>"


def test_turns_need_a_token_that_ends_them(tiny_tokenizer_dir: Path) -> None:
    own = Tools(Settings(tiny_tokenizer_dir, ReadOptions(), CleaningConfig()))
    own.tokenizer.eos_token = None
    turns = Settings(tiny_tokenizer_dir, ReadOptions(text_format="human_assistant"), CleaningConfig())
    with pytest.raises(UserError, match="no end-of-sequence token, which --text_format human_assistant ends"):
        own._eos_token(turns)
    assert own._eos_token(replace(turns, read=ReadOptions())) == ""
