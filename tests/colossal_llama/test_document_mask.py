"""Documents in a packed row against the same documents alone: masks, positions, every plugin that can mask."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812  the name everybody knows
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    MistralConfig,
    PreTrainedModel,
    modeling_flash_attention_utils,
)

from colossal_llama import model as models
from colossal_llama import optim, plugins
from colossal_llama.batch import IGNORED, Batch, document_borders, joined
from colossal_llama.batches import BatchReader, Shape
from colossal_llama.cluster import launch
from colossal_llama.config import TrainConfig
from colossal_llama.document_mask import (
    DocumentMask,
    attach_block_mask,
    attention_mask,
    document_mask,
    model_inputs,
    refuse_document_mask,
)

ROW_LENGTH, VOCAB_SIZE = 24, 512
LENGTHS = [[7, 9, 3], [24], [1, 1, 5, 1, 16], [1, 23]]
"""Padded; one document; documents of one token in front, inside and before a long one; the last two fill the row."""
FP32_TOLERANCE, BF16_TOLERANCE = 1e-5, 2e-2  # absolute, on logits of about 1; bf16 has 8 bits of mantissa


def packed() -> Batch:
    """A row for each list of LENGTHS, of random ids."""
    generator = np.random.default_rng(5)
    rows = []
    for lengths in LENGTHS:
        ids = generator.integers(0, VOCAB_SIZE, sum(lengths))
        categories = np.arange(len(lengths))
        rows.append(
            SimpleNamespace(
                input_ids=ids, labels=ids, document_lengths=np.array(lengths), document_categories=categories
            )
        )
    bins = SimpleNamespace(bins=[SimpleNamespace(num_rows=1, row=lambda _, row=row: row) for row in rows])
    shape = Shape(len(rows), 1, 1, 0)
    reader = BatchReader(bins, shape, 0, ROW_LENGTH, pad_id=0, end_row=len(rows), masks_documents=True)  # type: ignore[arg-type]
    return next(reader.steps_from(0))[0]


def spans() -> list[tuple[int, int, int]]:
    """(row, start, stop) of every document."""
    return [
        (row, stop - length, stop)
        for row, lengths in enumerate(LENGTHS)
        for length, stop in zip(lengths, np.cumsum(lengths).tolist(), strict=True)
    ]


def alone(batch: Batch, row: int, start: int, stop: int) -> torch.Tensor:
    """The ids of a document from the beginning of a row of its own; what follows cannot be seen by it."""
    ids = torch.zeros((1, ROW_LENGTH), dtype=torch.int64)
    ids[0, : stop - start] = batch.input_ids[row, start:stop]
    return ids


def largest_difference(batch: Batch, logits: torch.Tensor, logits_of: Callable[[torch.Tensor], torch.Tensor]) -> float:
    """Between the documents' logits in their rows and those of each of them alone."""
    differences = [
        (logits[row, start:stop] - logits_of(alone(batch, row, start, stop))[0, : stop - start]).abs().max()
        for row, start, stop in spans()
    ]
    return max(map(float, differences))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=5), min_size=1, max_size=3),
    window=st.none() | st.integers(1, 8),
)
def test_mask_is_that_of_asking_every_pair_of_tokens(rows: list[list[int]], window: int | None) -> None:
    length = max(map(sum, rows))
    rows = [[*lengths, length - sum(lengths)] if sum(lengths) < length else lengths for lengths in rows]
    positions = torch.tensor([[place for size in lengths for place in range(size)] for lengths in rows])
    document = [[number for number, size in enumerate(lengths) for _ in range(size)] for lengths in rows]
    mask = attention_mask(positions, torch.bfloat16, window)
    assert (mask.shape, mask.dtype) == ((len(rows), 1, length, length), torch.bfloat16)
    for row, of_token in enumerate(document):
        for query in range(length):
            for key in range(length):
                sees = of_token[query] == of_token[key] and key <= query and (window is None or query - key < window)
                assert mask[row, 0, query, key] == (0 if sees else torch.finfo(torch.bfloat16).min)
    starts = [row * length + sum(lengths[:place]) for row, lengths in enumerate(rows) for place in range(len(lengths))]
    borders = document_borders(positions)
    assert (borders.tolist(), borders.dtype) == ([*starts, len(rows) * length], torch.int32)
    row = torch.tensor([1])
    parts = [Batch(part, part, part, part, document_borders(part), row, [0]) for part in positions.split(1)]
    assert joined(parts).document_borders.tolist() == borders.tolist()


def test_first_token_of_a_document_has_no_label_and_padding_is_a_document() -> None:
    batch = packed()
    firsts = [(row, start) for row, start, _ in spans()]
    assert all(batch.labels[row, start] == IGNORED and batch.position_ids[row, start] == 0 for row, start in firsts)
    num_tokens = sum(map(sum, LENGTHS))
    assert int((batch.labels != IGNORED).sum()) == num_tokens - len(firsts)
    num_padded = sum(sum(lengths) < ROW_LENGTH for lengths in LENGTHS)
    assert int((batch.position_ids == 0).sum()) == len(firsts) + num_padded


@pytest.fixture(scope="module")
def plain(tiny_model_dir: Path) -> PreTrainedModel:
    """transformers' own model, fp32, SDPA."""
    return AutoModelForCausalLM.from_pretrained(tiny_model_dir, torch_dtype=torch.float32)


@torch.no_grad()
def test_logits_of_packed_documents_are_those_of_each_alone(plain: PreTrainedModel, tiny_model_dir: Path) -> None:
    batch = packed()
    masked = AutoModelForCausalLM.from_pretrained(tiny_model_dir, torch_dtype=torch.float32)
    attach_block_mask(masked, torch.float32, None)
    logits = masked(**model_inputs(batch, "block_mask")).logits
    assert largest_difference(batch, logits, lambda ids: plain(input_ids=ids).logits) < FP32_TOLERANCE
    unmasked = plain(**model_inputs(batch, "none")).logits
    assert largest_difference(batch, unmasked, lambda ids: plain(input_ids=ids).logits) > 1e-2
    assert torch.equal(unmasked, plain(input_ids=batch.input_ids).logits)


@torch.no_grad()
def test_another_document_changes_nothing_not_even_a_bit(tiny_model_dir: Path) -> None:
    batch = packed()
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, torch_dtype=torch.float32)
    attach_block_mask(model, torch.float32, None)
    before = model(**model_inputs(batch, "block_mask")).logits
    for row, start, stop in spans():
        ids = batch.input_ids.clone()
        ids[row, start:stop] = (ids[row, start:stop] + 1) % VOCAB_SIZE
        after = model(**model_inputs(dataclasses.replace(batch, input_ids=ids), "block_mask")).logits
        changed = (before != after).any(dim=-1)
        assert changed[row, start:stop].all()
        changed[row, start:stop] = False
        assert not changed.any()


SMALL = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize("window", [5, None])
@torch.no_grad()
def test_sliding_window_of_mistral_is_kept(window: int | None) -> None:
    config = MistralConfig(**SMALL, sliding_window=window)
    plain, masked = (AutoModelForCausalLM.from_config(config) for _ in range(2))
    masked.load_state_dict(plain.state_dict())
    attach_block_mask(masked, torch.float32, config.sliding_window)
    batch = packed()
    logits = masked(**model_inputs(batch, "block_mask")).logits
    assert largest_difference(batch, logits, lambda ids: plain(input_ids=ids).logits) < FP32_TOLERANCE


def varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool,
    softmax_scale: float,
    **_: Any,
) -> torch.Tensor:
    """What flash-attn documents of flash_attn_varlen_func, in plain torch; [tokens, heads, width] each."""
    assert causal and torch.equal(cu_seqlens_q, cu_seqlens_k) and cu_seqlens_q.dtype == torch.int32
    borders = cu_seqlens_q.tolist()
    assert borders[-1] == len(query)
    heads = query.shape[1] // key.shape[1]
    outputs = []
    for start, stop in zip(borders[:-1], borders[1:], strict=True):
        assert 0 < stop - start <= min(max_seqlen_q, max_seqlen_k)
        q, k, v = (tensor[start:stop].transpose(0, 1) for tensor in (query, key, value))
        k, v = k.repeat_interleave(heads, 0), v.repeat_interleave(heads, 0)
        outputs.append(F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=softmax_scale).transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize("rows", [slice(0, 4), slice(3, 4)], ids=["all rows", "a row that seems to be one document"])
@torch.no_grad()
def test_flash_attention_gets_every_border(
    rows: slice, plain: PreTrainedModel, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers' own flash path, with the kernel alone written in torch."""
    for name, value in {"flash_attn_varlen_func": varlen, "_flash_supports_window_size": True}.items():
        monkeypatch.setattr(modeling_flash_attention_utils, name, value, raising=False)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, torch_dtype=torch.float32)
    model.config._attn_implementation = "flash_attention_2"
    whole = packed()
    positions = whole.position_ids[rows]
    batch = dataclasses.replace(
        whole, input_ids=whole.input_ids[rows], position_ids=positions, document_borders=document_borders(positions)
    )
    logits = whole.input_ids.new_zeros((len(LENGTHS), ROW_LENGTH, VOCAB_SIZE), dtype=torch.float32)
    logits[rows] = model(**model_inputs(batch, "restarting_positions")).logits
    for row, start, stop in spans():
        if row in range(len(LENGTHS))[rows]:
            expected = plain(input_ids=alone(whole, row, start, stop)).logits[0, : stop - start]
            torch.testing.assert_close(logits[row, start:stop], expected, atol=FP32_TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    ("flags", "how"),
    [
        (("zero2", False, True), "block_mask"),
        (("zero2", True, True), "restarting_positions"),
        (("gemini", True, False), "block_mask"),
        (("3d", False, True), "block_mask"),
    ],
)
def test_way_of_masking_follows_the_attention_kernels(flags: tuple[str, bool, bool], how: DocumentMask) -> None:
    assert document_mask(*flags) == how


def test_what_cannot_mask_is_refused_in_words() -> None:
    assert refuse_document_mask(use_flash_attn=False, plugin="3d", sp=1) is None
    assert refuse_document_mask(use_flash_attn=True, plugin="zero2", sp=1) is None
    for sp, use_flash_attn, flag in [(2, False, "--sp"), (2, True, "--sp"), (1, True, "--use_flash_attn")]:
        reason = refuse_document_mask(use_flash_attn, "3d", sp)
        assert reason is not None and flag in reason and "; " in reason and "\n" not in reason


def boosted_logits(model_dir: Path, flags: dict[str, Any]) -> tuple[list[np.ndarray], int]:
    """The packed rows through a boosted model and back again, without a mask and then with it.

    Logits of both passes, none on ranks that hold none, and the rank's place in its tensor-parallel group.
    """
    config = TrainConfig(pretrained=model_dir, dataset=[], gradient_clipping=0, **flags)
    is_autocast = config.plugin == "ddp" and config.mixed_precision == "bf16"
    with launch(0) as cluster:
        batch = packed().to(cluster.device)
        base = models.load_model(model_dir, plugins.model_dtype(config), "sdpa", use_grad_checkpoint=config.pp > 1)
        plugin = plugins.make_plugin(config, models.num_parameters(base), base.config.hidden_size)
        optimizer = optim.make_optimizer(base, 0.0, 0.0, config.plugin.startswith("gemini"))  # the weights stand still
        booster, boosted, optimizer = plugins.boost(plugin, base, optimizer)
        found: list[torch.Tensor] = []

        def criterion(outputs: Any, _: Any) -> torch.Tensor:
            found.append(outputs.logits.detach().float())
            return outputs.logits.float().square().mean()

        for how in HOWS:
            if how == "block_mask":
                attach_block_mask(boosted, plugins.model_dtype(config), None)
            inputs = model_inputs(batch, how)
            if config.pp > 1:
                booster.execute_pipeline(iter([inputs]), boosted, criterion, optimizer, return_loss=False)
            else:
                with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
                    outputs = boosted(**inputs)
                booster.backward(criterion(outputs, None), optimizer)
            optimizer.step()
            optimizer.zero_grad()
        tp_rank = dist.get_rank(plugin.tp_group) if config.tp > 1 else 0
        passes = torch.cat(found).chunk(len(HOWS)) if found else ()
        return [logits.numpy() for logits in passes], tp_rank


HOWS: tuple[DocumentMask, DocumentMask] = ("none", "block_mask")
THREE_D = {"plugin": "3d", "zero": 0, "mixed_precision": "fp32"}
BOOSTED = {
    "ddp-bf16": {"plugin": "ddp", "mixed_precision": "bf16"},
    "zero2": {"plugin": "zero2", "mixed_precision": "fp32"},
    "gemini-bf16": {"plugin": "gemini", "mixed_precision": "bf16"},
    "3d-tp2": {**THREE_D, "tp": 2},
    "3d-pp2": {**THREE_D, "pp": 2, "accumulation_steps": 4},
}


@pytest.mark.parametrize("name", BOOSTED)
@torch.no_grad()
def test_boosted_models_mask_documents(
    name: str, ranks: Callable[..., list[Any]], plain: PreTrainedModel, tiny_model_dir: Path
) -> None:
    flags, batch = BOOSTED[name], packed()
    results = [result for result in ranks(boosted_logits, 2, tiny_model_dir, flags) if result[0]]
    assert len(results) == (1 if "pp" in flags else 2)
    tolerance = BF16_TOLERANCE if flags["mixed_precision"] == "bf16" else FP32_TOLERANCE
    for passes, tp_rank in results:
        width = passes[0].shape[-1]

        def logits_of(ids: torch.Tensor, first: int = tp_rank * width, width: int = width) -> torch.Tensor:
            return plain(input_ids=ids).logits[..., first : first + width]

        unmasked, masked = (largest_difference(batch, torch.from_numpy(logits), logits_of) for logits in passes)
        assert masked < tolerance < unmasked
