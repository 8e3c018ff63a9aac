"""What a forward pass leaves for the backward pass: a model's shape and flags come in, bytes of one micro-batch go out.

The way of counting is that of Korthikanti et al. 2022 (arXiv:2205.05198), section 4.1, done anew for transformers'
LLaMA: RMSNorm that computes in fp32, SwiGLU, attention that never keeps its matrix (SDPA, flash-attn), no dropout. The
terms are exact for what autograd saves in one process (tests count it); on a CUDA device attention keeps one copy of
its output less.
"""

from __future__ import annotations

from dataclasses import dataclass

from colossal_llama.config import TrainConfig
from colossal_llama.planning.model_shape import ModelShape
from colossal_llama.planning.trained import TrainedSet

FP32, INT64 = 4, 8
NORM_READERS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""The layers behind each of a decoder layer's two norms."""
LINEAR_LAYERS = (*NORM_READERS[0], "o_proj", *NORM_READERS[1], "down_proj")
CHUNK_LOGITS_BYTES = 2**27  # of loss.py
WEIGHT_ROWS_AT_ONCE = 8192  # of loss.py


@dataclass(frozen=True)
class Computation:
    """How a model is run, as far as its activations depend on it."""

    element: int
    """Bytes of a number in the matrix products."""
    autocast: bool
    """fp32 weights and residuals around 16-bit products (ddp)."""
    checkpointed: bool
    """--use_grad_checkpoint: of each layer only the input is kept, and one layer at a time is computed again."""
    flash: bool
    """flash-attn shares key and value heads among query heads; SDPA gets them repeated."""
    masked: bool = False
    """--document_mask under SDPA: one mask [rows, length, length] for all layers."""
    tp: int = 1
    splits_norms: bool = False
    """--sp_mode split_gather, ring: the tensor-parallel group shares out the sequence where it shares no matrix."""


def computation_of(config: TrainConfig) -> Computation:
    """How train.py runs a model under `config`, on GPUs."""
    precision = config.mixed_precision
    return Computation(
        element=FP32 if precision == "fp32" else 2,
        autocast=config.plugin == "ddp" and precision == "bf16",
        checkpointed=config.use_grad_checkpoint,
        flash=config.use_flash_attn or config.sp > 1,
        masked=config.document_mask and not config.use_flash_attn,
        tp=config.tp,
        splits_norms=config.sp > 1 and config.sp_mode in ("split_gather", "ring"),
    )


def layer_bytes(shape: ModelShape, trained: TrainedSet, how: Computation) -> int:
    """Of one position in one decoder layer."""
    whole = _norm_bytes(shape, trained, how)
    if trained.adapters is not None:
        whole += how.element * trained.adapters.rank * sum(trained.adapters.adapts(layer) for layer in LINEAR_LAYERS)
    key_value_width = shape.key_value_width if how.flash else shape.width
    attention = 2 * shape.width + 2 * key_value_width + shape.width * trained.keeps_input("o_proj")
    feed_forward = shape.intermediate_size * (3 + trained.keeps_input("down_proj"))
    divided = how.element * (attention + feed_forward) + FP32 * shape.num_attention_heads
    return (whole // how.tp if how.splits_norms else whole) + divided // how.tp


def _norm_bytes(shape: ModelShape, trained: TrainedSet, how: Computation) -> int:
    """Both norms and what the linear layers behind them keep of their outputs."""
    hidden, norms_train = shape.hidden_size, trained.kind == "all"
    total = 0
    for readers in NORM_READERS:
        num_keeping = sum(trained.keeps_input(layer) for layer in readers)
        copies = num_keeping if how.autocast else min(num_keeping, 1)  # autocast casts the output for each reader
        total += FP32 * hidden + FP32  # the input in fp32, and one number
        total += _residual_bytes(how) * hidden * norms_train
        total += how.element * hidden * copies
    return total


def _residual_bytes(how: Computation) -> int:
    """Of a number outside the matrix products."""
    return FP32 if how.autocast else how.element


def stage_bytes(
    shape: ModelShape,
    trained: TrainedSet,
    how: Computation,
    rows: int,
    length: int,
    num_layers: int,
    in_flight: int = 1,
) -> int:
    """Of `num_layers` decoder layers, for `in_flight` micro-batches of `rows` rows of `length` positions."""
    positions = rows * length
    layer = layer_bytes(shape, trained, how) * positions
    if not how.checkpointed:
        kept = num_layers * layer
    else:
        boundary = _residual_bytes(how) * shape.hidden_size * positions
        kept = num_layers * (boundary // how.tp if how.splits_norms else boundary)
    at_once = layer if how.checkpointed and num_layers else 0
    angles = 2 * _residual_bytes(how) * length * shape.head_dim
    mask = how.element * rows * length * length if how.masked else 0
    return in_flight * (kept + angles + mask) + at_once


def end_bytes(shape: ModelShape, trained: TrainedSet, how: Computation, rows: int, length: int) -> int:
    """Of the token ids and the last norm."""
    norms_train = trained.kind == "all"
    per_position = INT64 + FP32 * shape.hidden_size + FP32 + _residual_bytes(how) * shape.hidden_size * norms_train
    return per_position * rows * length


def head_bytes(
    shape: ModelShape, how: Computation, rows: int, length: int, first_trained_row: int, head_trains: bool
) -> int:
    """Of the output head and the loss: the hidden states' gradient, the weight's in fp32, and a chunk of logits.

    The head's rows are this rank's slice under tp; `first_trained_row` counts in the whole vocabulary.
    """
    num_rows = shape.vocab_size // how.tp
    num_trained = min(num_rows, shape.vocab_size - first_trained_row) if head_trains else 0
    hidden_gradient = how.element * rows * length * shape.hidden_size
    weight_gradient = FP32 * num_trained * shape.hidden_size
    cast_weight = how.element * num_rows * shape.hidden_size if how.autocast else 0
    return hidden_gradient + weight_gradient + cast_weight + chunk_bytes(shape, how, rows * length)


def chunk_bytes(shape: ModelShape, how: Computation, positions: int) -> int:
    """What the loss works with at once: fp32 logits, their gradient, and a product of some rows of the weight."""
    num_rows = shape.vocab_size // how.tp
    chunk = min(positions, max(1, CHUNK_LOGITS_BYTES // (FP32 * num_rows)))
    products = how.element * (min(num_rows, WEIGHT_ROWS_AT_ONCE) + chunk) * shape.hidden_size
    return chunk * num_rows * (FP32 + how.element) + products
