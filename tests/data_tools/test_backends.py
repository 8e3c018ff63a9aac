"""Libraries that encode: equal ids as the tokenizer gives itself, and only then."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

from data_tools import backends, prove
from data_tools.backends import BackendDiffersError, Ids, laid_end_to_end, make_backend, proved_backend, same_ids
from data_tools.cleaning import CleaningConfig
from data_tools.fields import ReadOptions
from data_tools.parts import plan_parts
from data_tools.tools import Settings, Tools
from tests.conftest import CHINESE
from tests.data_tools.conftest import make_documents, write_documents
from tokenizer_tools.tokenizer import TextEncoder, load_tokenizer

TEXTS = [
    *CHINESE,
    "Hello  world\n\t1234567",
    "</s> <s> <unk>",
    "naïve 🙂 龘\u200b",
    " x",
    "",
    "a" * 3000,
    "Ａ　Ｂ",
    "ﬁ\u0301",
]
FIXTURES = ["base_tokenizer_dir", "tiny_tokenizer_dir", "byte_level_tokenizer_dir"]


@pytest.mark.parametrize("continuation", [False, True])
@pytest.mark.parametrize(
    ("name", "fixture"),
    [("gigatoken", fixture) for fixture in FIXTURES] + [("sentencepiece", fixture) for fixture in FIXTURES[:2]],
)
def test_each_library_gives_the_tokenizers_ids(
    request: pytest.FixtureRequest, name: backends.BackendName, fixture: str, continuation: bool
) -> None:
    directory = request.getfixturevalue(fixture)
    encoder = TextEncoder(load_tokenizer(directory))
    texts = TEXTS if name == "gigatoken" else [text for text in TEXTS if not text.startswith(" ")]
    ids = make_backend(name, encoder, directory, continuation)(texts)
    expected = encoder.encode_batch(texts, continuation)
    assert [part.tolist() for part in np.split(ids.flat, np.cumsum(ids.lengths)[:-1])] == expected
    assert ids.flat.dtype == np.uint32


@pytest.fixture
def tools(base_tokenizer_dir: Path) -> Tools:
    return Tools(Settings(base_tokenizer_dir, ReadOptions(), CleaningConfig()))


def sample(tmp_path: Path, tools: Tools) -> list:
    write_documents(tmp_path / "a.jsonl", make_documents(100))
    return prove.sample_records(plan_parts([tmp_path / "a.jsonl"], ReadOptions()), tools)


def test_the_fastest_is_taken_if_it_is_exact(tmp_path: Path, tools: Tools) -> None:
    records = sample(tmp_path, tools)
    assert {len(record.segments) for record in records if record.file} == {1, 2}
    assert prove.fastest_exact(tools, records) == "gigatoken"


def test_one_that_differs_is_passed_over_and_named(
    tmp_path: Path, tools: Tools, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = backends._gigatoken

    def last_id_wrong(layout: str) -> backends.Encode:
        encode = right(layout)

        def encode_wrongly(texts: Sequence[str]) -> Ids:
            ids = encode(texts)
            return Ids(np.append(ids.flat[:-1], ids.flat[-1] + 1), ids.lengths)

        return encode_wrongly

    monkeypatch.setattr(backends, "_gigatoken", last_id_wrong)
    assert prove.fastest_exact(tools, sample(tmp_path, tools)) == "tokenizers"
    assert "gigatoken gives other ids" in caplog.text
    assert "sentencepiece gives other ids" in caplog.text  # of a text that begins with a blank


def test_one_that_differs_on_the_text_alone_is_passed_over(
    tmp_path: Path, tools: Tools, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    right = backends._gigatoken

    def wrong_about_rivers(layout: str) -> backends.Encode:
        encode = right(layout)

        def encode_wrongly(texts: Sequence[str]) -> Ids:
            ids = encode(texts)
            last = np.cumsum(ids.lengths)[["river" in text for text in texts]] - 1
            flat = ids.flat.copy()
            flat[last] ^= 1
            return Ids(flat, ids.lengths)

        return encode_wrongly

    monkeypatch.setattr(backends, "_gigatoken", wrong_about_rivers)
    assert prove.fastest_exact(tools, sample(tmp_path, tools)) == "tokenizers"
    assert "gigatoken gives other ids" in caplog.text


def test_the_second_fastest_is_taken_if_the_first_is_not_there(
    tmp_path: Path, base_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tokenizer of LLaMA-2's first years, which treats blanks as sentencepiece does."""
    shutil.copytree(base_tokenizer_dir, tmp_path / "legacy")
    config = json.loads((tmp_path / "legacy" / "tokenizer_config.json").read_text())
    (tmp_path / "legacy" / "tokenizer_config.json").write_text(json.dumps(config | {"legacy": True}))
    monkeypatch.setattr(backends, "_gigatoken", lambda layout: 1 / 0)
    tools = Tools(Settings(tmp_path / "legacy", ReadOptions(), CleaningConfig()))
    assert prove.fastest_exact(tools, sample(tmp_path, tools)) == "sentencepiece"


def test_one_that_cannot_take_the_tokenizer_is_passed_over(
    tmp_path: Path, base_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The model of sentencepiece is gone, gigatoken is broken: the reference is left."""
    load_tokenizer(base_tokenizer_dir).save_pretrained(tmp_path / "fast")
    (tmp_path / "fast" / "tokenizer.model").unlink()
    monkeypatch.setattr(backends, "_gigatoken", lambda layout: 1 / 0)
    tools = Tools(Settings(tmp_path / "fast", ReadOptions(), CleaningConfig()))
    caplog.set_level(logging.INFO)
    assert prove.fastest_exact(tools, sample(tmp_path, tools)) == "tokenizers"
    assert "gigatoken cannot take this tokenizer: division by zero" in caplog.text
    assert "sentencepiece cannot take this tokenizer" in caplog.text


def test_the_sample_comes_from_every_file(tmp_path: Path, tools: Tools) -> None:
    for index in range(5):
        write_documents(tmp_path / f"{index}.jsonl", [{"target": f"text {index}"}] * 50)
    paths = sorted(tmp_path.glob("*.jsonl"))
    records = prove.sample_records(plan_parts(paths, ReadOptions()), tools)
    texts = [record.segments[0].text for record in records if record.file]
    assert sorted(texts) == [f"text {index}" for index in range(5) for _ in range(prove.RECORDS_A_PLACE)]


def test_empty_files_and_long_documents_take_no_place_in_the_sample(tmp_path: Path, tools: Tools) -> None:
    for index in range(100):
        (tmp_path / f"{index:03}.jsonl").touch()
    long = {"target": "x" * (prove.MOST_CHARACTERS + 1)}
    write_documents(tmp_path / "050.jsonl", [long, *({"target": f"text {index}"} for index in range(20))])
    records = prove.sample_records(plan_parts(sorted(tmp_path.glob("*.jsonl")), ReadOptions()), tools)
    texts = [record.segments[0].text for record in records if record.file]
    assert texts == [f"text {index}" for index in range(prove.RECORDS_A_PLACE)]


def test_no_text_at_all_makes_no_sample(tmp_path: Path, tools: Tools) -> None:
    (tmp_path / "a.jsonl").touch()
    assert not [r for r in prove.sample_records(plan_parts([tmp_path / "a.jsonl"], ReadOptions()), tools) if r.file]


def test_the_same_ids_of_other_texts_are_not_the_same() -> None:
    ids = laid_end_to_end([[1, 2], [3]])
    assert same_ids(ids, laid_end_to_end([[1, 2], [3]]))
    assert not same_ids(ids, laid_end_to_end([[1], [2, 3]]))
    assert not same_ids(ids, laid_end_to_end([[1, 2], [4]]))


def test_a_library_that_differs_on_a_probe_is_never_used(base_tokenizer_dir: Path) -> None:
    """Sentencepiece on a text that begins with a blank."""
    encoder = TextEncoder(load_tokenizer(base_tokenizer_dir))
    encode = proved_backend("sentencepiece", encoder, base_tokenizer_dir, False)
    for _ in range(2):
        with pytest.raises(BackendDiffersError, match="sentencepiece gives other ids than the tokenizer does"):
            encode(["text"])


@pytest.mark.parametrize("continuation", [False, True])
@pytest.mark.parametrize("name", ["gigatoken", "tokenizers"])
def test_an_exact_library_is_loaded_once_with_the_first_text(
    base_tokenizer_dir: Path, name: backends.BackendName, continuation: bool
) -> None:
    encoder = TextEncoder(load_tokenizer(base_tokenizer_dir))
    encode = proved_backend(name, encoder, base_tokenizer_dir, continuation)
    with mock.patch.object(backends, "make_backend", wraps=make_backend) as made:
        for text in ("Hello world", "你好"):
            assert encode([text]).flat.tolist() == encoder.encode_batch([text], continuation)[0]
    assert made.call_count == 1


def test_an_added_token_that_is_not_special_stays_one_token(tmp_path: Path, base_tokenizer_dir: Path) -> None:
    tokenizer = load_tokenizer(base_tokenizer_dir)
    tokenizer.add_tokens(["龘龘"])
    tokenizer.save_pretrained(tmp_path / "added")
    encoder = TextEncoder(load_tokenizer(tmp_path / "added"))
    ids = make_backend("gigatoken", encoder, tmp_path / "added", False)(["x龘龘y"])
    assert 32000 in ids.flat.tolist()
    assert ids.flat.tolist() == encoder.encode_batch(["x龘龘y"])[0]
    assert json.loads(encoder.layout())["added_tokens"][-1]["content"] == "龘龘"
    shutil.rmtree(tmp_path / "added")
