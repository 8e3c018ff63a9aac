"""Bytes of text that the tokens of a row spell, against the bytes of the texts themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from colossal_llama.text_bytes import TextBytes, text_bytes
from tests.conftest import CHINESE
from tokenizer_tools.tokenizer import TextEncoder, load_tokenizer

KINDS = ["legacy off", "legacy", "no bos", "byte-level"]
TEXTS = [
    *CHINESE,
    "Hello world,  12345 naïve café\n\tdef f(x): return x",
    "🙂 龘 a </s> b",
    "x",
    "\n\nline",
]


@pytest.fixture(scope="module")
def encoders(
    base_tokenizer_dir: Path, byte_level_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[TextBytes, TextEncoder]]:
    """By kind: what puts a blank before a text, and how, and what does not."""
    directories = {"legacy off": base_tokenizer_dir, "byte-level": byte_level_tokenizer_dir}
    changes: dict[str, dict[str, Any]] = {"legacy": {"legacy": True}, "no bos": {"add_bos_token": False}}
    for kind, change in changes.items():
        directories[kind] = tmp_path_factory.mktemp("tokenizer") / kind.replace(" ", "_")
        shutil.copytree(base_tokenizer_dir, directories[kind])
        config = directories[kind] / "tokenizer_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | change))
    tokenizers = {kind: load_tokenizer(directory) for kind, directory in directories.items()}
    return {kind: (text_bytes(tokenizer), TextEncoder(tokenizer)) for kind, tokenizer in tokenizers.items()}


def row_of(encoder: TextEncoder, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Documents one behind the other as stage 3 has them: (ids, positions), [1, length]."""
    documents = [[*encoder.prefix_ids, *ids, *encoder.eos_ids] for ids in encoder.encode_batch(texts)]
    ids = [index for document in documents for index in document]
    return torch.tensor([ids]), torch.tensor([[place for document in documents for place in range(len(document))]])


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None)
@given(
    texts=st.lists(
        st.sampled_from(TEXTS) | st.text(st.sampled_from("ab 1\n你好🙂é"), min_size=1, max_size=9), max_size=5
    )
)
def test_bytes_add_up_to_those_of_the_texts(
    kind: str, encoders: dict[str, tuple[TextBytes, TextEncoder]], texts: list[str]
) -> None:
    counter, encoder = encoders[kind]
    texts = ["begin", *(text for text in texts if kind in ("legacy", "byte-level") or not text.startswith(" "))]
    num_bytes, is_text = counter.count(*row_of(encoder, texts))
    assert num_bytes.sum().item() == len("".join(texts).encode())
    num_control = len(texts) * len([*encoder.prefix_ids, *encoder.eos_ids])
    assert (~is_text).sum().item() == num_control
    assert num_bytes[~is_text].sum() == 0 and num_bytes.min() >= 0


def test_kinds_differ(encoders: dict[str, tuple[TextBytes, TextEncoder]]) -> None:
    assert [len(encoders[kind][0].prefix_ids) for kind in KINDS] == [1, 1, 0, 1]
    assert [bool(encoders[kind][0].has_blank.any()) for kind in KINDS] == [True, True, True, False]


def test_an_added_blank_alone_is_text_of_no_bytes(encoders: dict[str, tuple[TextBytes, TextEncoder]]) -> None:
    counter, encoder = encoders["legacy off"]
    ids, positions = row_of(encoder, ["你好"])
    num_bytes, is_text = counter.count(ids, positions)
    assert load_bearing(encoder, ids) == ["▁", "你", "好"]
    assert num_bytes.tolist() == [[0, 0, 3, 3, 0]]
    assert is_text.tolist() == [[False, True, True, True, False]]


def load_bearing(encoder: TextEncoder, ids: torch.Tensor) -> list[str]:
    return [encoder._tokenizer.convert_ids_to_tokens(index) for index in ids[0, 1:-1].tolist()]


@pytest.mark.parametrize("kind", ["legacy off", "byte-level"])
def test_a_document_that_is_cut_keeps_its_bytes(kind: str, encoders: dict[str, tuple[TextBytes, TextEncoder]]) -> None:
    """Wherever it is cut behind its first piece: the rest has position 0 too, but its blanks are the text's own."""
    counter, encoder = encoders[kind]
    text = "one two three four five"
    ids, _ = row_of(encoder, [text])
    for cut in range(2, ids.shape[1]):
        positions = torch.tensor([[*range(cut), *range(ids.shape[1] - cut)]])
        assert counter.count(ids, positions)[0].sum().item() == len(text)


def test_tokens_that_are_no_control_tokens_spell_what_they_say(tmp_path: Path, base_tokenizer_dir: Path) -> None:
    tokenizer = load_tokenizer(base_tokenizer_dir)
    tokenizer.add_tokens(["⟨citation⟩"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    counter = text_bytes(tokenizer)
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(["⟨citation⟩", "<|im_start|>", "<0xE4>", "▁▁", "</s>"])])
    num_bytes, is_text = counter.count(ids, torch.full_like(ids, 7))
    assert num_bytes.tolist() == [[len("⟨citation⟩".encode()), 0, 1, 2, 0]]
    assert is_text.tolist() == [[True, False, True, True, False]]
