"""A model's config.json comes in; names and shapes of its tensors go out. No weights, no transformers, no torch.

What a config leaves out is the default of its class in transformers 4.51.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colossal_llama.architectures import TESTED
from tokenizer_tools.command import UserError

CONFIG_FILE = "config.json"
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": None,
    },
    "mistral": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "qwen2": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}
DEFAULT_WINDOWS = {"llama": None, "mistral": 4096, "qwen2": 4096}


@dataclass(frozen=True)
class Tensor:
    """A parameter of the model as it is saved."""

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of its entries."""
        return math.prod(self.shape)

    @property
    def is_embedding(self) -> bool:
        """Whether it is the input or the output embedding."""
        return self.name in (EMBEDDING, HEAD)

    @property
    def layer(self) -> int | None:
        """Number of its decoder layer; None for the embeddings and the last norm."""
        return int(self.name.split(".")[2]) if self.name.startswith("model.layers.") else None


@dataclass(frozen=True)
class ModelShape:
    """What decides the tensors of a LLaMA-style decoder, under the names of transformers' configs."""

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool
    query_bias: bool
    """Of the query, key and value projections."""
    output_bias: bool
    mlp_bias: bool
    sliding_window: int | None = None

    @property
    def width(self) -> int:
        """Of all query heads together."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_width(self) -> int:
        """Of all key heads together; the values' is the same."""
        return self.num_key_value_heads * self.head_dim

    def layer_tensors(self, number: int) -> Iterator[Tensor]:
        """The tensors of decoder layer `number`, in the model's order."""
        hidden, inner = self.hidden_size, self.intermediate_size
        linear = (
            ("self_attn.q_proj", self.width, hidden, self.query_bias),
            ("self_attn.k_proj", self.key_value_width, hidden, self.query_bias),
            ("self_attn.v_proj", self.key_value_width, hidden, self.query_bias),
            ("self_attn.o_proj", hidden, self.width, self.output_bias),
            ("mlp.gate_proj", inner, hidden, self.mlp_bias),
            ("mlp.up_proj", inner, hidden, self.mlp_bias),
            ("mlp.down_proj", hidden, inner, self.mlp_bias),
        )
        for name, rows, columns, has_bias in linear:
            yield Tensor(f"model.layers.{number}.{name}.weight", (rows, columns))
            if has_bias:
                yield Tensor(f"model.layers.{number}.{name}.bias", (rows,))
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield Tensor(f"model.layers.{number}.{name}.weight", (hidden,))

    def tensors(self) -> list[Tensor]:
        """Every parameter once, in the model's order; of tied embeddings the input's."""
        found = [Tensor(EMBEDDING, (self.vocab_size, self.hidden_size))]
        for number in range(self.num_hidden_layers):
            found += self.layer_tensors(number)
        found.append(Tensor("model.norm.weight", (self.hidden_size,)))
        if not self.tie_word_embeddings:
            found.append(Tensor(HEAD, (self.vocab_size, self.hidden_size)))
        return found

    @property
    def num_parameters(self) -> int:
        """Of the whole model; tied embeddings count once."""
        return sum(tensor.numel for tensor in self.tensors())


def read_model_shape(path: Path) -> ModelShape:
    """The shape of a model directory or of a config.json. Raises UserError for what is none, or not a LLaMA's kin."""
    file = path / CONFIG_FILE if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--pretrained {file}: {error.strerror}; name a model directory or its config.json") from None
    except ValueError as error:
        raise UserError(f"--pretrained {file}: not readable as JSON ({error}); copy it anew") from None
    if not isinstance(config, dict):
        raise UserError(f"--pretrained {file}: holds {type(config).__name__}, not a model's settings; copy it anew")
    return shape_of(config, str(file))


def shape_of(config: dict[str, Any], source: str) -> ModelShape:
    """The shape that a transformers config describes. Raises UserError, with the name of its `source`."""
    kind = config.get("model_type")
    if kind not in DEFAULTS:
        raise UserError(f"{source}: a model of type {kind}; a plan is made for {', '.join(TESTED)} alone")
    values = {name: config.get(name, default) for name, default in DEFAULTS[kind].items()}
    if values["num_key_value_heads"] is None:
        values["num_key_value_heads"] = values["num_attention_heads"]
    wrong = [f"{name} {value}" for name, value in values.items() if not isinstance(value, int) or value < 1]
    if wrong:
        raise UserError(f"{source}: {', '.join(wrong)}: must be a positive whole number; copy it anew")
    return ModelShape(
        model_type=kind,
        head_dim=config.get("head_dim") or values["hidden_size"] // values["num_attention_heads"],
        tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
        query_bias=kind == "qwen2" or (kind == "llama" and bool(config.get("attention_bias", False))),
        output_bias=kind == "llama" and bool(config.get("attention_bias", False)),
        mlp_bias=kind == "llama" and bool(config.get("mlp_bias", False)),
        sliding_window=config.get("sliding_window", DEFAULT_WINDOWS[kind]) if kind != "llama" else None,
        **values,
    )
