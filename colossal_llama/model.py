"""HF directory -> model, and which of its parameters train; an adapter's directory -> its base with the adapter."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from colossal_llama import lora
from tokenizer_tools.command import UserError

if TYPE_CHECKING:
    from peft import PeftModel

LONGEST_REASON = 200  # characters; transformers answers some faults with the names of all its models


def load_model(
    directory: Path, dtype: torch.dtype | Literal["auto"], attention: str, use_grad_checkpoint: bool
) -> PreTrainedModel:
    """The model of a local safetensors directory, ready to train; "auto" keeps the saved dtype.

    Of an adapter's directory: its base with the adapter merged in, "auto" being the adapter's dtype.
    No remote code, no pickles.
    Raises UserError if the directory does not hold a complete model.
    """
    if lora.is_adapter(directory):
        own_dtype = lora.adapter_dtype(directory) if dtype == "auto" else dtype
        base = load_model(lora.base_directory(directory), own_dtype, attention, use_grad_checkpoint)
        return lora.merge(base, directory).train()
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


def load_config(directory: Path) -> PretrainedConfig:
    """The transformers config of a model's directory, or of an adapter's base. Raises UserError if there is none."""
    owner = lora.base_directory(directory) if lora.is_adapter(directory) else directory
    try:
        return AutoConfig.from_pretrained(owner, local_files_only=True)
    except Exception as error:  # transformers raises whatever it meets in a broken file
        reason = str(error).split(". ")[0][:LONGEST_REASON]
        raise UserError(f"{owner}: not a readable model ({reason}); name a complete safetensors directory") from error


def load_lora_model(
    directory: Path,
    dtype: torch.dtype,
    attention: str,
    use_grad_checkpoint: bool,
    settings: lora.LoraSettings,
    base: Path | None = None,
) -> PeftModel:
    """A model that trains adapters: fresh ones on a model's directory, those of an adapter's directory on its base.

    `base`: where an adapter's base lies now; None for where it lay when the adapter was saved.
    Raises UserError if `directory` does not hold a complete model, or an adapter that was made with other settings.
    """
    continues = lora.is_adapter(directory)
    if base is None or not continues:
        base = lora.base_directory(directory) if continues else directory
    model = lora.wrap(load_model(base, dtype, attention, use_grad_checkpoint), settings)
    if continues:
        lora.load_adapter(model, directory)
    return model


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
