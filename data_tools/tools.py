"""What a process loads once before it can encode: settings come in, tokenizer, template and cleaner go out."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from data_tools.backends import REFERENCE, BackendName, proved_backend
from data_tools.chat import ChatTemplate
from data_tools.chunks import smallest_dtype
from data_tools.cleaning import Cleaner, CleaningConfig
from data_tools.encode import Encoders, encoders_of
from data_tools.fields import ReadOptions
from tokenizer_tools.command import UserError
from tokenizer_tools.tokenizer import TextEncoder, fingerprint_of, load_tokenizer

FROM_TOKENIZER = ("chat", "bos_token", "eos_token")
VERSION = 1  # of what lies in the cache


@dataclass(frozen=True)
class Settings:
    """All that decides what a document becomes. `read` as the flags say; what the tokenizer adds is in `Tools`."""

    tokenizer_dir: Path
    read: ReadOptions
    cleaning: CleaningConfig


class Tools:
    """Encoders by library, the chat template if there is one, the cleaner, and what names the tokenizer."""

    def __init__(self, settings: Settings) -> None:
        self.tokenizer = load_tokenizer(settings.tokenizer_dir)
        self.text_encoder = TextEncoder(self.tokenizer)
        self.read_options = replace(
            settings.read,
            chat=ChatTemplate(self.tokenizer) if self.tokenizer.chat_template else None,
            bos_token=self.tokenizer.bos_token if self.text_encoder.prefix_ids else None,
            eos_token=self._eos_token(settings),
        )
        self.cleaner = Cleaner(settings.cleaning)
        self._settings = settings
        self._encoders: dict[BackendName, Encoders] = {}

    def _eos_token(self, settings: Settings) -> str:
        token = self.tokenizer.eos_token
        if token is None and settings.read.text_format != "plain":
            raise UserError(
                f"{settings.tokenizer_dir}: this tokenizer has no end-of-sequence token, which --text_format "
                f"{settings.read.text_format} ends every turn with; name one that has"
            )
        return token or ""

    def encoders(self, backend: BackendName) -> Encoders:
        """The encoders that go through one library; it is loaded with the first text."""
        if backend not in self._encoders:
            directory = self._settings.tokenizer_dir
            start, inside = (proved_backend(backend, self.text_encoder, directory, inside) for inside in (False, True))
            self._encoders[backend] = encoders_of(self.text_encoder, start, inside)
        return self._encoders[backend]

    @property
    def reference(self) -> Encoders:
        """The encoders of transformers' own library."""
        return self.encoders(REFERENCE)

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        return self.tokenizer.get_vocab()

    @cached_property
    def dtype(self) -> np.dtype:
        """The smallest integer that holds every id."""
        return smallest_dtype(max(self._vocabulary.values()) + 1)

    @cached_property
    def fingerprint(self) -> str:
        """The tokenizer's fingerprint."""
        return fingerprint_of(self._vocabulary, self.text_encoder)

    def meaning(self) -> dict[str, object]:
        """Everything that decides what a document becomes, by the names users know it by."""
        return {
            "cache_version": VERSION,
            "tokenizer": self.fingerprint,
            "prefix_ids": self.text_encoder.prefix_ids,
            "eos_ids": self.text_encoder.eos_ids,
            "chat_template": self.tokenizer.chat_template,
            **{name: value for name, value in asdict(self._settings.read).items() if name not in FROM_TOKENIZER},
            **self.cleaner.meaning(),
        }


def digest_of_meaning(meaning: dict[str, object]) -> str:
    """sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(meaning, sort_keys=True, default=str).encode()).hexdigest()


@lru_cache(maxsize=1)
def tools_of(settings: Settings) -> Tools:
    """The tools of a run; forked workers find them made."""
    return Tools(settings)
