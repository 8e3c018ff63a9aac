"""A Llama in plain torch, from its paper: the reader that shares nothing with transformers' modelling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def plain_logits(directory: Path, input_ids: torch.Tensor) -> torch.Tensor:
    """Logits [length, vocabulary] in fp32 of a model directory for `input_ids` [length]; config.json and tensors only.

    For Llama without biases, rope scaling and sliding windows, tied or not.
    """
    config: dict[str, Any] = json.loads((directory / "config.json").read_text())
    weights: dict[str, torch.Tensor] = {}
    for path in directory.glob("*.safetensors"):
        weights |= {name: tensor.float() for name, tensor in load_file(path).items()}
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config["hidden_size"] // heads
    angles = torch.outer(
        torch.arange(len(input_ids)).float(), config["rope_theta"] ** (-torch.arange(0, size, 2).float() / size)
    )

    def norm(values: torch.Tensor, name: str) -> torch.Tensor:
        scale = (values.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).rsqrt()
        return values * scale * weights[f"{name}.weight"]

    def turned(values: torch.Tensor) -> torch.Tensor:
        """Rotary position embedding, pairs half a head apart."""
        first, second = values.chunk(2, dim=-1)
        return torch.cat(
            [first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1
        )

    def split(values: torch.Tensor, count: int) -> torch.Tensor:
        return values.view(len(values), count, size).transpose(0, 1)

    hidden = weights["model.embed_tokens.weight"][input_ids]
    future = torch.full((len(input_ids), len(input_ids)), -torch.inf).triu(1)
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        inputs = norm(hidden, f"{layer}.input_layernorm")
        q, k, v = (inputs @ weights[f"{layer}.self_attn.{name}_proj.weight"].T for name in "qkv")
        queries, keys, values = turned(split(q, heads)), turned(split(k, key_heads)), split(v, key_heads)
        keys, values = (part.repeat_interleave(heads // key_heads, dim=0) for part in (keys, values))
        attention = (queries @ keys.transpose(1, 2) / size**0.5 + future).softmax(-1) @ values
        hidden = hidden + attention.transpose(0, 1).flatten(1) @ weights[f"{layer}.self_attn.o_proj.weight"].T
        inputs = norm(hidden, f"{layer}.post_attention_layernorm")
        gate, up = (inputs @ weights[f"{layer}.mlp.{name}_proj.weight"].T for name in ("gate", "up"))
        hidden = hidden + (torch.nn.functional.silu(gate) * up) @ weights[f"{layer}.mlp.down_proj.weight"].T
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return norm(hidden, "model.norm") @ head.T
