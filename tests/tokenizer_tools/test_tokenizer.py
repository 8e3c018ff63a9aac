"""Loading, fingerprints and plain encoding, against sentencepiece."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tokenizer_tools.test_init_tokenizer import change_settings
from tokenizer_tools.command import UserError
from tokenizer_tools.tokenizer import PROBE_TEXT, TextEncoder, fingerprint, load_slow_tokenizer, load_tokenizer

LOADERS = pytest.mark.parametrize("load", [load_tokenizer, load_slow_tokenizer])


@pytest.fixture(params=[True, False])
def directory(request: pytest.FixtureRequest, tmp_path: Path, tiny_tokenizer_dir: Path) -> Path:
    """The small tokenizer, with `legacy` on and off."""
    copy = shutil.copytree(tiny_tokenizer_dir, tmp_path / "tokenizer")
    change_settings(copy, legacy=request.param)
    return copy


@LOADERS
def test_missing_and_empty_directories_are_user_errors(tmp_path: Path, load: Callable[[Path], Any]) -> None:
    with pytest.raises(UserError, match="nix: no such directory; name a tokenizer directory"):
        load(tmp_path / "nix")
    with pytest.raises(UserError, match="holds neither tokenizer.model nor tokenizer.json; name"):
        load(tmp_path)


@LOADERS
def test_half_a_tokenizer_is_a_user_error(directory: Path, load: Callable[[Path], Any]) -> None:
    whole = (directory / "tokenizer.model").read_bytes()
    (directory / "tokenizer.model").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="not a readable tokenizer"):
        load(directory)


@LOADERS
def test_code_in_the_directory_is_never_run(
    directory: Path, tmp_path: Path, load: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # transformers asks, unless it is told
    (directory / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    change_settings(directory, tokenizer_class="Evil", auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]})
    with pytest.raises(UserError, match="not a readable tokenizer"):
        load(directory)
    assert not (tmp_path / "ran").exists()


def test_encodes_like_sentencepiece(directory: Path) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    encoder = TextEncoder(load_tokenizer(directory))
    texts = [PROBE_TEXT, "", "a", "<s>a</s><unk>", "猜\n\n谜"]
    assert encoder.encode_batch(texts) == processor.encode(texts)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text("ab </s>猜\n", max_size=20))
def test_a_continuation_is_what_follows_a_line_break(directory: Path, text: str) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    encoder = TextEncoder(load_tokenizer(directory))
    assert encoder.encode_batch([text], continuation=True)[0] == processor.encode("\x01" + text)[2:]


def test_prefix_and_end_are_those_of_the_tokenizer(directory: Path) -> None:
    encoder = TextEncoder(load_tokenizer(directory))
    assert (encoder.prefix_ids, encoder.eos_ids) == ([1], [2])
    change_settings(directory, add_bos_token=False)
    assert TextEncoder(load_tokenizer(directory)).prefix_ids == []


def test_fingerprint_tells_vocabularies_and_segmentations_apart(
    tiny_tokenizer_dir: Path, base_tokenizer_dir: Path, tmp_path: Path
) -> None:
    tiny = fingerprint(load_tokenizer(tiny_tokenizer_dir))
    assert tiny == fingerprint(load_tokenizer(tiny_tokenizer_dir))
    assert tiny != fingerprint(load_tokenizer(base_tokenizer_dir))
    other = shutil.copytree(tiny_tokenizer_dir, tmp_path / "other")
    change_settings(other, add_prefix_space=False)
    assert load_tokenizer(other).get_vocab() == load_tokenizer(tiny_tokenizer_dir).get_vocab()
    assert fingerprint(load_tokenizer(other)) != tiny


@pytest.mark.parametrize("fixture", ["base_tokenizer_dir", "tiny_tokenizer_dir", "byte_level_tokenizer_dir"])
@pytest.mark.parametrize("names_its_class", [True, False])
def test_what_is_loaded_is_what_auto_tokenizer_loads(
    request: pytest.FixtureRequest, tmp_path: Path, fixture: str, names_its_class: bool
) -> None:
    from transformers import AutoTokenizer

    directory = shutil.copytree(request.getfixturevalue(fixture), tmp_path / "tokenizer")
    if not names_its_class:  # then the model's config tells
        change_settings(directory, tokenizer_class=None)
        (directory / "config.json").write_text('{"model_type": "llama"}')
    loaded, auto = load_tokenizer(directory), AutoTokenizer.from_pretrained(directory)
    assert type(loaded) is type(auto)
    assert loaded.backend_tokenizer.to_str() == auto.backend_tokenizer.to_str()
    assert loaded.init_kwargs == auto.init_kwargs


def test_whether_text_behind_a_control_token_begins_anew(byte_level_tokenizer_dir: Path, directory: Path) -> None:
    tokenizer = load_tokenizer(directory)
    encoder = TextEncoder(tokenizer)
    behind = tokenizer.encode("</s>猜谜", add_special_tokens=False)[1:]
    assert behind == encoder.encode_batch(["猜谜"], continuation=encoder.continues_after_control)[0]
    assert encoder.encode_batch(["猜谜"])[0] != encoder.encode_batch(["猜谜"], continuation=True)[0]
    assert TextEncoder(load_tokenizer(byte_level_tokenizer_dir)).control_ids.keys() >= {"<|begin_of_text|>"}
