"""How large a checkpoint is: a model's shape and who trains come in, bytes go out, those of the very files."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable

from colossal_llama.config import TrainConfig
from colossal_llama.planning.model_shape import EMBEDDING, HEAD, ModelShape, Tensor
from colossal_llama.planning.trained import TrainedSet

OPTIMIZER_BYTES = 12  # of a parameter that trains: two moments and the weight, in fp32 (saved_parts.py)
SMALL_FILES_BYTES = 2**24  # what checkpoint_writer.py allows for tokenizer, positions and manifest
METADATA = {"format": "pt"}
DTYPES = {2: "BF16", 4: "F32"}


def model_element(config: TrainConfig) -> int:
    """Bytes of a saved weight: those of the format in which the model computes, but under ddp, whose weights are fp32
    (plugins.model_dtype)."""
    return 4 if config.plugin == "ddp" or config.mixed_precision == "fp32" else 2


def saved_tensors(shape: ModelShape, trained: TrainedSet) -> list[Tensor]:
    """What a checkpoint's `modeling` holds: the model, or in a LoRA stage the adapter with the modules that train."""
    if trained.adapters is None:
        return shape.tensors()
    whole = [tensor for tensor in shape.tensors() if trained.trains(tensor)]
    if shape.tie_word_embeddings and EMBEDDING in trained.names:
        whole.append(Tensor(HEAD, (shape.vocab_size, shape.hidden_size)))  # both are written: peft knows of no tie
    return [*trained.added, *whole]


def weights_bytes(shape: ModelShape, trained: TrainedSet, config: TrainConfig) -> int:
    """Of a checkpoint's weight files without their headers."""
    return model_element(config) * sum(tensor.numel for tensor in saved_tensors(shape, trained))


def optimizer_bytes(shape: ModelShape, trained: TrainedSet) -> int:
    """Of a checkpoint's optimizer files after the first step, without headers and step counts: of all ranks together,
    under every plugin and layout."""
    own = sum(tensor.numel for tensor in shape.tensors() if trained.trains(tensor))
    return OPTIMIZER_BYTES * (own + sum(tensor.numel for tensor in trained.added))


def checkpoint_bytes(shape: ModelShape, trained: TrainedSet, config: TrainConfig) -> int:
    """What `CheckpointWriter.num_bytes` reserves for one checkpoint."""
    return weights_bytes(shape, trained, config) + optimizer_bytes(shape, trained) + SMALL_FILES_BYTES


def safetensors_bytes(tensors: Iterable[Tensor], element: int) -> int:
    """Size of one safetensors file of `tensors`, header and all, as `safetensors` writes it."""
    header: dict[str, object] = {"__metadata__": METADATA}
    offset = 0
    for tensor in sorted(tensors, key=lambda one: one.name):
        end = offset + tensor.numel * element
        header[tensor.name] = {
            "dtype": DTYPES[element],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    header_bytes = math.ceil(len(json.dumps(header, separators=(",", ":"))) / 8) * 8
    return 8 + header_bytes + offset
