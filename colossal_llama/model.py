"""HF directory -> model, and which of its parameters train."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from tokenizer_tools.command import UserError

LONGEST_REASON = 200  # characters; transformers answers some faults with the names of all its models


def load_model(
    directory: Path, dtype: torch.dtype | Literal["auto"], attention: str, use_grad_checkpoint: bool
) -> PreTrainedModel:
    """The model of a local safetensors directory, ready to train; "auto" keeps the saved dtype.

    No remote code, no pickles.
    Raises UserError if the directory does not hold a complete model.
    """
    if not (directory / "config.json").is_file():
        raise UserError(f"{directory}: holds no config.json; name a Hugging Face model directory")
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            directory,
            torch_dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the report, with the names that the exception would not give
        )
    except Exception as error:  # transformers and safetensors raise whatever they meet in a broken file
        reason = str(error).split(". ")[0][:LONGEST_REASON]
        raise UserError(
            f"{directory}: not a readable model ({reason}); name a complete safetensors directory"
        ) from error
    if report["missing_keys"] or report["mismatched_keys"]:
        names = sorted(report["missing_keys"]) or sorted(report["mismatched_keys"])
        raise UserError(
            f"{directory}: weights of {', '.join(names[:3])} are missing or of the wrong shape; copy it anew"
        )
    model.config.use_cache = False
    # Booster saves the config as it is (checkpoint_io/utils.py:543); with this mark in it, transformers takes the
    # saved model's attention for chosen by hand and loads it with the slow "eager" one
    model.config._attn_implementation_autoset = False
    if use_grad_checkpoint:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def embedding_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """The input and the output embedding matrix; one and the same if they are tied."""
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]


def freeze_non_embeddings(model: PreTrainedModel) -> None:
    """Leave only the embeddings trainable (--freeze_non_embeds_params)."""
    embeddings = {id(parameter) for parameter in embedding_parameters(model)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in embeddings)


def num_parameters(model: nn.Module) -> int:
    """Number of parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())
