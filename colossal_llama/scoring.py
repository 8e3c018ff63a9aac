"""Records and a model come in; what each category's text costs the model comes out, as sums.

A document is scored in windows of `max_length` tokens that begin with the last token of the window before, so every
token of the text is predicted exactly once. The first one follows BOS, or the end-of-sequence token where the tokenizer
puts no BOS, as after another document: otherwise a long first token would be had for nothing. (A tokenizer with neither
leaves it unscored.) The end-of-sequence token itself is not counted. Where a record has a `source`, only its `target`
is scored.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from data_tools.encode import encode_records, reference_encoders
from data_tools.records import Record
from tokenizer_tools.tokenizer import TextEncoder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

NATS_PER_BIT = math.log(2)


@dataclass(frozen=True)
class Window:
    """Consecutive ids of a document; the loss counts from position `loss_start` on."""

    category: str
    input_ids: list[int]
    loss_start: int


@dataclass
class Sums:
    """What is added up over windows and documents; every figure is a ratio of these."""

    nats: float = 0.0
    num_tokens: int = 0
    num_new: int = 0
    num_correct: int = 0
    num_bytes: int = 0
    num_documents: int = 0

    def add(self, other: Sums) -> None:
        """Add in place."""
        self.nats += other.nats
        self.num_tokens += other.num_tokens
        self.num_new += other.num_new
        self.num_correct += other.num_correct
        self.num_bytes += other.num_bytes
        self.num_documents += other.num_documents

    @property
    def bits_per_byte(self) -> float:
        """Bits a UTF-8 byte of the text."""
        return self.nats / NATS_PER_BIT / max(1, self.num_bytes)

    @property
    def new_share(self) -> float:
        """New pieces among the tokens, 0 to 1."""
        return self.num_new / max(1, self.num_tokens)

    def figures(self) -> dict[str, float]:
        """Loss in nats a token, perplexity, share of tokens predicted first, bits a UTF-8 byte of the text."""
        loss = self.nats / max(1, self.num_tokens)
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "accuracy": self.num_correct / max(1, self.num_tokens),
            "bits_per_byte": self.bits_per_byte,
            "tokens": self.num_tokens,
            "bytes": self.num_bytes,
            "documents": self.num_documents,
        }


def total_of(categories: dict[str, Sums]) -> Sums:
    """The sums over all categories."""
    total = Sums()
    for part in categories.values():
        total.add(part)
    return total


def score_records(
    model: PreTrainedModel,
    encoder: TextEncoder,
    records: list[Record],
    max_length: int,
    batch_tokens: int,
    new_ids: range,
) -> dict[str, Sums]:
    """The sums of every category by its name; `new_ids` are those of the pieces that count as new."""
    from tqdm import tqdm

    sums: dict[str, Sums] = defaultdict(Sums)
    windows = []
    before = [] if encoder.prefix_ids else encoder.eos_ids
    encoded = encode_records(reference_encoders(encoder), records)
    ids_of_documents = np.split(encoded.tokens, np.cumsum(encoded.lengths)[:-1])
    first_span = np.cumsum(encoded.num_spans) - encoded.num_spans
    for index, record in enumerate(records):
        num_bytes = len(record.segments[-1].text.encode())
        sums[record.category].add(Sums(num_bytes=num_bytes, num_documents=1))
        if encoded.has_text[index]:
            own_ids = ids_of_documents[index].tolist()
            ids = before + own_ids[: len(own_ids) - len(encoder.eos_ids)]
            loss_start = len(before) + int(encoded.spans[2 * first_span[index]])
            windows += list(cut_windows(record.category, ids, loss_start, max_length))
    for batch in tqdm(list(batches(windows, batch_tokens)), desc="evaluating", unit="batch", disable=None):
        for window, window_sums in zip(batch, score(model, batch, new_ids), strict=True):
            sums[window.category].add(window_sums)
    return {name: sums[name] for name in sorted(sums)}


def cut_windows(category: str, input_ids: list[int], loss_start: int, max_length: int) -> Iterator[Window]:
    """Windows of at most `max_length` ids; each begins with the last id of the one before."""
    for start in range(0, max(1, len(input_ids) - 1), max_length - 1):
        ids = input_ids[start : start + max_length]
        if len(ids) > max(1, loss_start - start):
            yield Window(category, ids, max(1, loss_start - start))


def batches(windows: list[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Windows of like length together, so that little is padded; longest first: memory runs out at once or never."""
    batch: list[Window] = []
    for window in sorted(windows, key=lambda window: -len(window.input_ids)):
        if batch and (len(batch) + 1) * len(batch[0].input_ids) > batch_tokens:
            yield batch
            batch = []
        batch.append(window)
    if batch:
        yield batch


def score(model: PreTrainedModel, batch: list[Window], new_ids: range) -> list[Sums]:
    """Sums of each window. Padding is on the right, where causal attention keeps it out of every token's sight."""
    import torch

    length = len(batch[0].input_ids)
    input_ids = torch.zeros(len(batch), length, dtype=torch.int64)
    counts = torch.zeros(len(batch), length, dtype=torch.bool)  # whether position i is predicted by position i - 1
    for line, window in enumerate(batch):
        input_ids[line, : len(window.input_ids)] = torch.tensor(window.input_ids)
        counts[line, window.loss_start : len(window.input_ids)] = True
    input_ids, counts = input_ids.to(model.device), counts[:, 1:].to(model.device)
    nats, correct = token_scores(model, input_ids)
    is_new = (input_ids[:, 1:] >= new_ids.start) & (input_ids[:, 1:] < new_ids.stop)
    columns = [nats.masked_fill(~counts, 0.0).sum(1), *((counts & which).sum(1) for which in (counts, is_new, correct))]
    return [Sums(*sums) for sums in zip(*(column.tolist() for column in columns), strict=True)]


def token_scores(model: PreTrainedModel, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """input_ids [rows, length] -> -log p of each next token (fp64) and whether it was likeliest, [rows, length - 1]."""
    import torch

    with torch.inference_mode():
        logits = model(input_ids=input_ids).logits[:, :-1].float()
        targets = input_ids[:, 1:]
        nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return nats.view_as(targets).double(), logits.argmax(-1) == targets
