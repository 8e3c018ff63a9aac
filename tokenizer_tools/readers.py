"""Everything that reads a tokenizer directory: sentencepiece, the slow and the fast class, side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from tokenizer_tools.byte_level_bpe import MERGES_FILE
from tokenizer_tools.sentencepiece_bpe import MODEL_FILE
from tokenizer_tools.spelling import is_byte_level
from tokenizer_tools.tokenizer import TextEncoder, load_slow_tokenizer, load_tokenizer


class Readers:
    """The readers that a directory has files for; all of them should give the same ids."""

    def __init__(self, directory: Path) -> None:
        self.fast = load_tokenizer(directory)
        is_bytes = is_byte_level(json.loads(self.fast.backend_tokenizer.to_str()))
        has_model = not is_bytes and (directory / MODEL_FILE).is_file()  # Llama-3 has a file of that name for tiktoken
        has_merges = is_bytes and (directory / MERGES_FILE).is_file()
        self.processor = (
            sentencepiece.SentencePieceProcessor(model_file=str(directory / MODEL_FILE)) if has_model else None
        )
        self.slow = load_slow_tokenizer(directory) if has_model or has_merges else None
        self.encoder = TextEncoder(self.fast)

    def differing(self, texts: Sequence[str]) -> list[str]:
        """For each text, which two readers give it different ids; "" where all agree.

        Two comparisons, because only the classes of transformers take text that spells a control token for one.
        """
        found = [""] * len(texts)
        if self.processor is not None:
            pairs = zip(self.processor.encode(list(texts)), self.encoder.encode_batch(texts), strict=True)
            found = ["" if ids == ours else "sentencepiece and the fast tokenizer" for ids, ours in pairs]
        if self.slow is not None:
            fast_ids = self.fast(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
            for place, (text, ids) in enumerate(zip(texts, fast_ids, strict=True)):
                if self.slow.encode(text, add_special_tokens=False, verbose=False) != ids:
                    found[place] = found[place] or "the slow and the fast tokenizer"
        return found

    def not_coming_back(self, texts: Sequence[str]) -> list[bool]:
        """For each text, whether decoding its ids gives another text, with the slow or the fast class."""
        ids_of_texts = self.encoder.encode_batch(texts)
        tokenizers = [tokenizer for tokenizer in (self.slow, self.fast) if tokenizer is not None]
        decoded = [tokenizer.batch_decode(ids_of_texts) for tokenizer in tokenizers]
        return [any(back != text for back in backs) for text, *backs in zip(texts, *decoded, strict=True)]
