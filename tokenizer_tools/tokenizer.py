"""The only place that loads a tokenizer: a directory comes in, ids that mean the same everywhere go out.

`transformers` is imported inside the functions: it costs seconds, and `--help` must not pay them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from tokenizer_tools.command import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizer
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast  # the package itself shows mypy a dummy

MOST_OF_A_REASON = 160  # characters: transformers can say pages
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json")

# Letters, digits, CJK, full-width forms, an emoji, runs of blanks, a control token spelt as text and a rare character:
# what segmentations differ in.
PROBE_TEXT = (
    "Hello world,  12345 naïve café\n\tdef f(x): return x  你好，世界！人工智能的發展 ＡＢＣ 🙂 </s> 龘 www.example.org"
)


def _check_directory(directory: Path) -> None:
    if not directory.is_dir():
        raise UserError(f"{directory}: no such directory; name a tokenizer directory")
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{directory}: holds neither {' nor '.join(TOKENIZER_FILES)}; name a tokenizer directory")


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a local directory; no remote code, no download. Raises UserError if there is none."""
    return _load(directory, use_fast=True)


def load_slow_tokenizer(directory: Path) -> PreTrainedTokenizer:
    """The slow (sentencepiece) tokenizer of a local directory. Raises UserError if there is none."""
    return _load(directory, use_fast=False)


def _load(directory: Path, use_fast: bool) -> Any:
    _check_directory(directory)
    try:
        # trust_remote_code has to be said: left out, transformers asks on stdin and would take a "y"
        safely = {"local_files_only": True, "trust_remote_code": False}
        tokenizer_class = _fast_class(directory) if use_fast else None
        if tokenizer_class is not None:
            tokenizer = tokenizer_class.from_pretrained(directory, **safely)
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(directory, use_fast=use_fast, **safely)
    except Exception as error:  # transformers raises whatever its parsers raise: OSError, KeyError, RuntimeError, ...
        reason = " ".join(str(error).split())
        raise UserError(
            f"{directory}: not a readable tokenizer ({reason[:MOST_OF_A_REASON]}); name an intact directory, whose "
            "tokenizer_config.json names a tokenizer_class of transformers"
        ) from None
    if tokenizer is False:  # what transformers returns when sentencepiece cannot read tokenizer.model
        raise UserError(f"{directory}: not a readable tokenizer (tokenizer.model is broken); fetch the file again")
    return tokenizer


def _fast_class(directory: Path) -> Any:
    """The class that AutoTokenizer would choose, where tokenizer_config.json names one of transformers' own; else None.

    Importing AutoTokenizer takes a third of a second more, for models that a tokenizer has no need of.
    """
    import transformers

    try:
        config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
        name = config["tokenizer_class"].removesuffix("Fast") + "Fast"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # AutoTokenizer knows more ways, and what to say
        return None
    return None if "auto_map" in config else getattr(transformers, name, None)


def special_inside(tokenizer: PreTrainedTokenizerFast, special: Collection[str], text: str) -> str | None:
    """A token of `special` that the tokenizer cuts out of a text, whatever its normaliser and its flags, or None."""
    found = [token for token in tokenizer.tokenize(text) if token in special and token != tokenizer.unk_token]
    return found[0] if found else None


def fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """sha256 over every piece with its id and over the ids of PROBE_TEXT: equal if and only if ids mean the same."""
    return fingerprint_of(tokenizer.get_vocab(), TextEncoder(tokenizer))


def fingerprint_of(vocabulary: Mapping[str, int], encoder: TextEncoder) -> str:
    """The same, of a tokenizer whose vocabulary and encoder are at hand: making them takes a while."""
    pieces = sorted(vocabulary.items(), key=lambda item: item[1])
    probe = encoder.encode_batch([PROBE_TEXT])[0]
    return hashlib.sha256(json.dumps([pieces, probe], ensure_ascii=False).encode()).hexdigest()


class TextEncoder:
    """Text -> ids, without BOS or EOS; text that spells a control token (`</s>`) stays text.

    `prefix_ids` (BOS or nothing) are what the tokenizer itself puts before a text: training and inference agree.
    `control_ids` tell what the spelling of a control token stands for where it is meant as one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        self._layout = tokenizer.backend_tokenizer.to_str()
        self.prefix_ids: list[int] = _prefix_ids(tokenizer)
        self.eos_ids: list[int] = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self.control_ids: dict[str, list[int]] = {
            token.content: [index] for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }

    @cached_property
    def _inside(self) -> Tokenizer:
        """Made when it is asked for: a large vocabulary takes a second."""
        return _backend(self.layout(continuation=True))

    def layout(self, continuation: bool = False) -> str:
        """The tokenizer.json, as transformers has loaded it, with which a text or its `continuation` is encoded."""
        return self._layout_inside if continuation else self._layout

    @cached_property
    def _layout_inside(self) -> str:
        return orjson.dumps(_without_leading_blank(orjson.loads(self._layout))).decode()

    @cached_property
    def continues_after_control(self) -> bool:
        """Whether the tokenizer puts no blank before the first word behind a control token."""
        control, ids = next(iter(self.control_ids.items()))
        return self._tokenizer.encode(control + "a", add_special_tokens=False) != ids + self.encode_batch(["a"])[0]

    def encode_batch(self, texts: Sequence[str], continuation: bool = False) -> list[list[int]]:
        """One list of ids a text. A `continuation` goes on after other text: no blank is put before its first word."""
        if continuation:
            return _ids(self._inside, texts)
        backend = self._tokenizer.backend_tokenizer
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = True
        try:
            return _ids(backend, texts)
        finally:
            backend.encode_special_tokens = False


def _ids(backend: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]


def _backend(layout: str) -> Tokenizer:
    """A tokenizer of its own to which control tokens are text, without padding and truncation."""
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(layout)
    backend.encode_special_tokens = True
    backend.no_padding()
    backend.no_truncation()
    return backend


def _prefix_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """[bos_token_id] if the tokenizer puts BOS before a text, else []."""
    bos_token_id = tokenizer.bos_token_id
    adds_bos = bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [bos_token_id]
    return [bos_token_id] if adds_bos else []


def _without_leading_blank(layout: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer.json, but no blank or `▁` is put before a text's first word."""
    for room in ("normalizer", "pre_tokenizer"):
        parts = layout[room]
        if parts is None:
            continue
        nested = parts.get("normalizers") or parts.get("pretokenizers") or [parts]
        for part in nested:
            if part["type"] == "Prepend":  # Llama, legacy
                part["prepend"] = ""
            elif part["type"] == "Metaspace":  # Llama, legacy off
                part["prepend_scheme"] = "never"
            elif part["type"] == "ByteLevel":
                part["add_prefix_space"] = False
    return layout
