"""Documents of one row that do not see each other: a batch comes in, what the model is called with goes out.

Borders are read from `position_ids`, which restart at every document, never from the id of padding, which is a token
like others. A document's first token sees itself alone, so no row of a mask is empty.

- `block_mask`: torch's SDPA with an additive mask, on every device and under every plugin.
- `restarting_positions`: flash-attn's kernels for documents laid end to end, by transformers' own flash_attention_2.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from colossal_llama.batch import Batch

DocumentMask = Literal["none", "block_mask", "restarting_positions"]


def document_mask(plugin: str, use_flash_attn: bool, has_accelerator: bool) -> DocumentMask:
    """How a run that masks documents does it: as `plugins.attention_implementation` has chosen the kernels."""
    return "restarting_positions" if use_flash_attn and has_accelerator and plugin != "3d" else "block_mask"


def refuse_document_mask(use_flash_attn: bool, plugin: str, sp: int) -> str | None:
    """Why documents cannot be masked under these flags, in words; None where they can."""
    if sp > 1:
        return (
            "sequence parallelism needs colossalai's flash attention, and that knows no borders of documents; "
            "use --tp or --pp in place of --sp"
        )
    if plugin == "3d" and use_flash_attn:
        # shardformer/layer/attn.py:172: a padding mask [rows, length], or none at all
        return (
            "3d brings a flash attention of its own, which knows no borders of documents; "
            "leave --use_flash_attn away, or use zero2 or gemini with it"
        )
    return None


def model_inputs(batch: Batch, how: DocumentMask) -> dict[str, Any]:
    """The keyword arguments of a forward pass over `batch`; under `block_mask` the model itself adds the mask."""
    if how == "none":
        return {"input_ids": batch.input_ids}
    inputs: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids}
    if how == "restarting_positions":
        # transformers would find the borders itself, once a layer, but not those of a row that begins with documents of
        # one token: it looks for a position below the one before it (modeling_flash_attention_utils.py:336)
        borders = batch.document_borders
        longest = batch.position_ids.shape[1]  # a bound will do
        inputs |= {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": longest, "max_length_k": longest}
    return inputs


def attach_block_mask(model: nn.Module, dtype: torch.dtype, sliding_window: int | None) -> None:
    """Let `model`, boosted or not, mask documents in every forward pass that is called with `position_ids`.

    The mask is made inside the pass: a pipeline is handed all rows of a step at once and cuts them itself, and a mask
    of all of them would take 32 MB a row of 4,096 tokens in 16 bit.
    """

    def add_mask(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"attention_mask": attention_mask(kwargs["position_ids"], dtype, sliding_window)}

    model.register_forward_pre_hook(add_mask, with_kwargs=True)


def attention_mask(position_ids: torch.Tensor, dtype: torch.dtype, sliding_window: int | None = None) -> torch.Tensor:
    """[rows, length] -> `dtype` [rows, 1, length, length]: 0 where a token (axis 2) may look, else the lowest value.

    A token sees itself and what comes before it in its document, with `sliding_window` (Mistral's) only the last so
    many tokens. transformers hands a mask of four axes on as it is; on CUDA one of booleans would raise
    (modeling_attn_mask_utils.py:236).
    """
    place = torch.arange(position_ids.shape[1], device=position_ids.device)
    first = place - position_ids  # where the document of each token begins
    distance = place[:, None] - place
    is_seen = (first[:, :, None] == first[:, None, :]) & (distance >= 0)
    if sliding_window is not None:
        is_seen &= distance < sliding_window
    mask = torch.zeros(is_seen.shape, dtype=dtype, device=position_ids.device)
    return mask.masked_fill_(~is_seen, torch.finfo(dtype).min)[:, None]
