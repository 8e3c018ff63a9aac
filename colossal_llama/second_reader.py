"""A model directory, read as those read it who have no transformers: config.json, the index and safetensors headers.

vLLM and llama.cpp's converter know the tensors of Llama, Mistral and Qwen2 by their names and shapes; so does this
file, from config.json alone. Nothing here shares code with the modelling that wrote the directory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from tokenizers import Tokenizer

from tokenizer_tools.outputs import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
}
"""model_type -> the class that readers look for under `architectures`."""
NUMBER_FORMATS = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""Of a safetensors header -> of config.json."""
NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "rms_norm_eps")
SHOWN_PROBLEMS = 3

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """One tensor as a safetensors header has it."""

    shape: Shape
    number_format: str
    """F32, F16, BF16, ..."""
    file: str


def stored_tensors(directory: Path) -> dict[str, Stored]:
    """Every tensor of every safetensors file of `directory`, by name; headers are read, no weights."""
    tensors = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118  safe_open is no dict
                part = file.get_slice(name)
                tensors[name] = Stored(tuple(part.get_shape()), part.get_dtype(), path.name)
    return tensors


def expected_shapes(config: Mapping[str, Any]) -> dict[str, Shape]:
    """Name -> shape of every tensor that a Llama, Mistral or Qwen2 of this config.json consists of."""
    hidden, inner, rows = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    num_heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or hidden // num_heads
    queries, keys = num_heads * head_size, (config.get("num_key_value_heads") or num_heads) * head_size
    is_qwen = config["model_type"] == "qwen2"
    linear = {  # name -> (out, in, has a bias)
        "self_attn.q_proj": (queries, hidden, is_qwen or config.get("attention_bias")),
        "self_attn.k_proj": (keys, hidden, is_qwen or config.get("attention_bias")),
        "self_attn.v_proj": (keys, hidden, is_qwen or config.get("attention_bias")),
        "self_attn.o_proj": (hidden, queries, not is_qwen and config.get("attention_bias")),
        "mlp.gate_proj": (inner, hidden, config.get("mlp_bias")),
        "mlp.up_proj": (inner, hidden, config.get("mlp_bias")),
        "mlp.down_proj": (hidden, inner, config.get("mlp_bias")),
    }
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (rows, hidden), "model.norm.weight": (hidden,)}
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (rows, hidden)
    for layer in (f"model.layers.{number}." for number in range(config["num_hidden_layers"])):
        for name, (size_out, size_in, has_bias) in linear.items():
            shapes[f"{layer}{name}.weight"] = (size_out, size_in)
            if has_bias:
                shapes[f"{layer}{name}.bias"] = (size_out,)
        shapes |= {f"{layer}{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
    return shapes


def check_readable(directory: Path) -> None:
    """Raise RuntimeError with what another reader would stumble over: names, shapes, formats, the index, the rows.

    Of other architectures than ARCHITECTURES only what holds for all: one number format, a complete index, enough rows.
    """
    config = read_json(directory / "config.json", "the model's configuration")
    tensors = stored_tensors(directory)
    problems = [*_index_problems(directory, tensors), *_config_problems(config, tensors)]
    problems += _tokenizer_problems(directory, config)
    if config.get("model_type") in ARCHITECTURES and not problems:
        problems += _name_problems(config, tensors)
    if problems:
        more = f"; and {len(problems) - SHOWN_PROBLEMS} more" if len(problems) > SHOWN_PROBLEMS else ""
        raise RuntimeError(f"not readable for others: {'; '.join(problems[:SHOWN_PROBLEMS])}{more}")


def check_same_weights(source: Path, target: Path) -> None:
    """Raise RuntimeError unless every tensor of `target` is that of `source` in the target's number format.

    The files alone are compared, tensor by tensor: no short text touches every row of an embedding. An adapter's
    directory holds no such tensors, and nothing is compared.
    """
    before = stored_tensors(source)
    if not (source / "config.json").is_file():
        return
    for name, stored in stored_tensors(target).items():
        if name not in before:
            raise RuntimeError(f"{name}: written, but not in the checkpoint")
        with safe_open(source / before[name].file, "pt") as old, safe_open(target / stored.file, "pt") as new:
            written = new.get_tensor(name)
            expected = old.get_tensor(name).to(written.dtype)
        if not torch.equal(expected.view(torch.uint8), written.view(torch.uint8)):
            raise RuntimeError(f"{name}: not written as the checkpoint has it")


def _index_problems(directory: Path, tensors: Mapping[str, Stored]) -> Iterator[str]:
    files = {stored.file for stored in tensors.values()}
    if not (directory / INDEX).is_file():
        if files != {SINGLE}:
            yield f"without {INDEX} only {SINGLE} is read, but weights lie in {', '.join(sorted(files)) or 'no file'}"
        return
    named = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"]
    for name in sorted(named.keys() | tensors.keys()):
        lies_in = tensors[name].file if name in tensors else None
        if named.get(name) != lies_in:
            yield f"{name} lies in {lies_in}, {INDEX} says {named.get(name)}"


def _config_problems(config: Mapping[str, Any], tensors: Mapping[str, Stored]) -> Iterator[str]:
    formats = {NUMBER_FORMATS.get(stored.number_format, stored.number_format) for stored in tensors.values()}
    if formats != {config.get("torch_dtype")}:
        yield f"config.json says torch_dtype {config.get('torch_dtype')}, the weights are {', '.join(sorted(formats))}"
    if config.get("use_cache") is not True:
        yield "config.json turns the key-value cache off"
    kind = config.get("model_type")
    if kind in ARCHITECTURES:
        if config.get("architectures") != [ARCHITECTURES[kind]]:
            yield f"config.json names the architecture {config.get('architectures')}, not {ARCHITECTURES[kind]}"
        yield from (f"config.json says no {name}" for name in NEEDED if not config.get(name))


def _tokenizer_problems(directory: Path, config: Mapping[str, Any]) -> Iterator[str]:
    if not (directory / "tokenizer.json").is_file():
        yield "tokenizer.json is missing"
        return
    last = max(Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab(with_added_tokens=True).values())
    if last >= config["vocab_size"]:
        yield f"the tokenizer has an id {last}, but there are {config['vocab_size']} rows"


def _name_problems(config: Mapping[str, Any], tensors: Mapping[str, Stored]) -> Iterator[str]:
    expected = expected_shapes(config)
    for name in sorted(expected.keys() | tensors.keys()):
        shape = tensors[name].shape if name in tensors else "missing"
        wanted = expected.get(name, "not expected")
        if shape != wanted:
            yield f"{name}: {shape}, by config.json {wanted}"
