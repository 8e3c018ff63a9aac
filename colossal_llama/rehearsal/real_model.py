"""The weights of the real model, of which none is read: a directory comes in, what the headers say goes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizer_tools.command import UserError
from tokenizer_tools.shards import Weights, read_weights
from tokenizer_tools.weight_files import SafetensorsFile

GIGABYTE = 10**9
NAMED = 3  # tensors in a message


def check_weights(directory: Path, config: Any) -> str:
    """Compare names and shapes in the headers of a model's files with what its transformers config needs.

    Returns what was found, in a few words. Raises UserError for a file that is missing, cut or no safetensors, and
    for a tensor that is missing or has another shape.
    """
    weights = read_weights(directory)
    other = next((file for file in weights.files if not isinstance(file, SafetensorsFile)), None)
    if other is not None:
        raise UserError(f"{other.path}: train.py reads safetensors only; write the model anew with init_model")
    problems = _problems(weights, config)
    if problems:
        more = f" and {len(problems) - NAMED} more" if len(problems) > NAMED else ""
        raise UserError(f"{directory}: {'; '.join(problems[:NAMED])}{more}, by its config.json; copy the model anew")
    size_bytes = sum(file.path.stat().st_size for file in weights.files)
    return f"{len(weights.file_of)} tensors in {len(weights.files)} file(s), {size_bytes / GIGABYTE:.1f} GB, are there"


def _problems(weights: Weights, config: Any) -> list[str]:
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    prefix = f"{model.base_model_prefix}."
    problems = []
    for name, parameter in model.named_parameters():  # tied ones once
        file = weights.file_of.get(name) or weights.file_of.get(name.removeprefix(prefix))
        if file is None:
            problems.append(f"{name} is missing")
            continue
        info = file.infos.get(name) or file.infos[name.removeprefix(prefix)]
        if info.shape != tuple(parameter.shape):
            problems.append(f"{name} has the shape {list(info.shape)}, not {list(parameter.shape)}")
    return problems
