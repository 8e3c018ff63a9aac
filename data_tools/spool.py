"""All encoded documents on the disk: sequences come in one by one, `Documents` (arrays over all of them) goes out.

Ids lie in one flat scratch file, in as few bytes as the vocabulary allows; about 60 bytes a document stay in memory.
Documents come out in the order of a hash over what they hold, so that neither the names nor the order of files and
directories can change a byte of what is built from them.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence as ListLike
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from data_tools.encode import Sequence
from data_tools.records import Record


@dataclass(frozen=True)
class Documents:
    """All documents, sorted by content hash.

    `tokens` [all tokens] is the memory-mapped scratch file; document d is `tokens[offset[d] : offset[d] + length[d]]`.
    The other arrays are [documents] int64; `category` indexes `category_names`; `text_bytes` are the UTF-8 bytes of the
    text that bears loss (the target).
    """

    tokens: np.ndarray
    offset: np.ndarray
    length: np.ndarray
    loss_start: np.ndarray
    category: np.ndarray
    text_bytes: np.ndarray
    category_names: list[str]

    @property
    def loss_tokens(self) -> np.ndarray:
        """[documents] int64: tokens that bear loss."""
        return self.length - self.loss_start


def smallest_dtype(num_ids: int) -> np.dtype:
    """The smallest unsigned integer an Arrow bin keeps ids in: uint16 up to 65,536 ids, uint32 above."""
    return np.dtype(np.uint16 if num_ids <= 2**16 else np.uint32)


def content_hash(record: Record) -> int:
    """64 bits over category, source and target. A record holds no NUL, so the joint text tells them apart."""
    text = "\0".join((record.category, record.source, record.target))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


class Spool:
    """Appends documents to a scratch file opened for writing and reading; the caller closes the file."""

    def __init__(self, file: BinaryIO, dtype: np.dtype) -> None:
        self._file = file
        self._dtype = dtype
        self._category_ids: dict[str, int] = {}
        self._hash = array("Q")
        self._length = array("I")
        self._loss_start = array("I")
        self._category = array("I")
        self._text_bytes = array("I")
        self.num_tokens = 0

    def __len__(self) -> int:
        return len(self._length)

    def append(self, record: Record, sequence: Sequence) -> None:
        """Add one document."""
        self._file.write(np.array(sequence.input_ids, self._dtype).tobytes())
        self._hash.append(content_hash(record))
        self._length.append(len(sequence.input_ids))
        self._loss_start.append(sequence.loss_start)
        self._category.append(self._category_ids.setdefault(record.category, len(self._category_ids)))
        self._text_bytes.append(len(record.target.encode()))
        self.num_tokens += len(sequence.input_ids)

    def documents(self, category_names: ListLike[str]) -> Documents:
        """Everything appended so far (at least one document). `category_names` names every category, perhaps more."""
        self._file.flush()
        order = np.argsort(np.array(self._hash), kind="stable")
        length = np.array(self._length, np.int64)
        offset = np.cumsum(length) - length
        index_of_name = {name: index for index, name in enumerate(category_names)}
        index_of_id = np.array([index_of_name[name] for name in self._category_ids], np.int64)
        return Documents(
            tokens=np.asarray(np.memmap(self._file, self._dtype, mode="r", shape=(self.num_tokens,))),
            offset=offset[order],
            length=length[order],
            loss_start=np.array(self._loss_start, np.int64)[order],
            category=index_of_id[np.array(self._category)[order]],
            text_bytes=np.array(self._text_bytes, np.int64)[order],
            category_names=list(category_names),
        )
