"""Activations by formula against what autograd keeps, byte for byte."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForCausalLM

from colossal_llama import loss
from colossal_llama.config import TrainConfig
from colossal_llama.head import attach_loss_head
from colossal_llama.lora import LoraSettings, wrap
from colossal_llama.loss import next_token_targets
from colossal_llama.model import freeze_non_embeddings
from colossal_llama.planning import activations
from colossal_llama.planning.activations import Computation, end_bytes, head_bytes, stage_bytes
from colossal_llama.planning.model_shape import shape_of
from colossal_llama.planning.trained import trained_set

ROWS, LENGTH, RANK = 2, 33, 4  # 66 positions: no matrix has so many rows
SIZES: dict[str, Any] = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 80, "num_attention_heads": 4}
KINDS: list[dict[str, Any]] = [
    {"model_type": "llama", "num_key_value_heads": 4},
    {"model_type": "llama", "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
    {"model_type": "mistral", "num_key_value_heads": 2, "head_dim": 32},
    {"model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True},
]


def built(sizes: dict[str, Any], trains: str, targets: list[str], dtype: torch.dtype, checkpointed: bool) -> Any:
    config = AutoConfig.for_model(**sizes)
    model: Any = AutoModelForCausalLM.from_config(config, torch_dtype=dtype, attn_implementation="sdpa").train()
    model.config.use_cache = False
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if trains == "embeds":
        freeze_non_embeddings(model)
    if trains == "lora":
        return wrap(model, LoraSettings(RANK, 8.0, tuple(targets), 0.0, ("embed_tokens", "lm_head"), 0))
    return model


def kept_bytes(model: Any, autocast: bool) -> int:
    """Storages that a forward pass keeps for the backward pass, but for parameters, their casts and buffers."""
    named = list(model.parameters())
    own = {tensor.untyped_storage().data_ptr() for tensor in [*named, *model.buffers()]}
    matrices = {tuple(sorted(parameter.shape)) for parameter in named if parameter.dim() == 2}
    found: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        is_cast = autocast and tensor.dtype == torch.bfloat16 and tuple(sorted(tensor.shape)) in matrices
        if tensor.untyped_storage().data_ptr() not in own and not is_cast:
            found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(0, SIZES["vocab_size"], (ROWS, LENGTH))
    attach_loss_head(model).expect([next_token_targets(ids)])  # type: ignore[union-attr]
    context = torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext()
    with saved_tensors_hooks(pack, lambda tensor: tensor), context:
        model(input_ids=ids)
    return sum(tensor.untyped_storage().nbytes() for tensor in found.values())


def planned_bytes(sizes: dict[str, Any], trains: Any, targets: list[str], how: Computation, num_layers: int) -> int:
    shape = shape_of(sizes, "here")
    config = TrainConfig(Path(), [], lora_rank=RANK if trains == "lora" else 0, lora_targets=targets)
    trained = trained_set(shape, trains, config)
    head = head_bytes(shape, how, ROWS, LENGTH, 0, head_trains=True)
    head -= activations.chunk_bytes(shape, how, ROWS * LENGTH)  # is gone when the pass is over
    if how.autocast:
        head -= how.element * shape.vocab_size * shape.hidden_size  # so is the head's cast
    passed = stage_bytes(shape, trained, how, ROWS, LENGTH, num_layers)
    return passed + head + end_bytes(shape, trained, how, ROWS, LENGTH)


@pytest.mark.parametrize("sizes", KINDS, ids=lambda kind: kind["model_type"])
@pytest.mark.parametrize(
    ("trains", "targets"),
    [("all", []), ("embeds", []), ("lora", ["q_proj", "o_proj", "up_proj"]), ("lora", ["v_proj", "down_proj"])],
)
@pytest.mark.parametrize("precision", ["bf16", "fp32", "autocast"])
def test_equal_what_autograd_keeps(sizes: dict[str, Any], trains: str, targets: list[str], precision: str) -> None:
    sizes = {**SIZES, **sizes, "num_hidden_layers": 2}
    autocast = precision == "autocast"
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = built(sizes, trains, targets, dtype, checkpointed=False)
    how = Computation(4 if precision == "fp32" else 2, autocast, checkpointed=False, flash=False)
    assert kept_bytes(model, autocast) == planned_bytes(sizes, trains, targets, how, 2)


@pytest.mark.parametrize("sizes", KINDS, ids=lambda kind: kind["model_type"])
def test_recomputation_keeps_one_input_a_layer_and_one_layer_at_a_time(sizes: dict[str, Any]) -> None:
    sizes = {**SIZES, **sizes, "num_hidden_layers": 3}
    kept = kept_bytes(built(sizes, "all", [], torch.bfloat16, checkpointed=True), autocast=False)
    again = Computation(2, autocast=False, checkpointed=True, flash=False)
    plain = Computation(2, autocast=False, checkpointed=False, flash=False)
    one_layer = planned_bytes(sizes, "all", [], plain, 1) - planned_bytes(sizes, "all", [], plain, 0)
    # the angles are held by the layers' arguments, where no hook sees them; the positions are seen, and are nothing
    unseen = 2 * 2 * LENGTH * shape_of(sizes, "here").head_dim - 8 * LENGTH
    assert planned_bytes(sizes, "all", [], again, 3) == kept + one_layer + unseen


def test_the_loss_works_with_the_chunks_that_loss_py_names() -> None:
    assert activations.CHUNK_LOGITS_BYTES == loss.CHUNK_LOGITS_BYTES
    assert activations.WEIGHT_ROWS_AT_ONCE == loss.WEIGHT_ROWS_AT_ONCE
    shape = shape_of({"model_type": "llama", "vocab_size": 69_104}, "here")
    how = Computation(2, autocast=False, checkpointed=False, flash=False)
    logits = 485 * 69_104 * 4  # as many tokens of a 7B's vocabulary as 128 MiB of fp32 hold
    assert logits <= 2**27 < logits + 69_104 * 4
    assert activations.chunk_bytes(shape, how, 10_000) == logits * 3 // 2 + 2 * (8192 + 485) * 4096
    assert activations.chunk_bytes(shape, how, 10) == 10 * 69_104 * 6 + 2 * (8192 + 10) * 4096


def test_tensor_parallelism_divides_all_but_the_norms() -> None:
    shape = shape_of({"model_type": "llama", **SIZES, "num_key_value_heads": 4}, "here")
    trained = trained_set(shape, "all", TrainConfig(Path(), []))
    one, two, split = (
        activations.layer_bytes(shape, trained, Computation(2, False, False, False, tp=tp, splits_norms=splits))
        for tp, splits in ((1, False), (2, False), (2, True))
    )
    norms = 2 * (4 * 64 + 4 + 2 * 64 + 2 * 64)
    assert two == norms + (one - norms) // 2
    assert split == one // 2
