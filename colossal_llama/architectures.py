"""A model's transformers config and the flags of a run come in; a UserError, or what is worth a warning, goes out.

What is compared with a plain PyTorch loop, plugin by plugin, is in TESTED. Other decoders are let through where the
plugin does not look into the model, and refused where a number would be wrong or a crash late.
"""

from __future__ import annotations

from typing import Any

from colossal_llama.config import TrainConfig
from tokenizer_tools.command import UserError

TESTED = ("llama", "mistral", "qwen2")
"""Also the ones that --plugin 3d may take apart. Booster has policies for a few older decoders, compared by nobody."""
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def check_architecture(hf_config: Any, config: TrainConfig, row_length: int) -> list[str]:
    """Warnings, a line each, about training a model of the transformers config `hf_config` on rows of `row_length`.

    Raises UserError with every reason why it cannot be trained, or not under these flags.
    """
    problems = _kind_problems(hf_config)
    if not problems and config.plugin == "3d":
        problems = three_d_problems(hf_config, config)
    problems += window_problems(hf_config, config, row_length)
    if problems:
        raise UserError(f"{_name(hf_config)}: {'; '.join(problems)}")
    if hf_config.model_type in TESTED:
        return []
    return [
        f"{_name(hf_config)}: not one of the tested architectures ({', '.join(TESTED)}); before a long run compare a "
        f"few steps with a plain PyTorch loop, and --help of a flag with what it does here"
    ]


def _name(hf_config: Any) -> str:
    return f"a {hf_config.model_type} model"


def _kind_problems(hf_config: Any) -> list[str]:
    """Models that are no plain decoder with an output head, whatever the flags."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    kind = hf_config.model_type
    if hf_config.is_encoder_decoder:
        return ["an encoder with a decoder; this pipeline trains decoders alone"]
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return ["transformers knows no language model of this type; name a decoder with an output head"]
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not hf_config.is_decoder:
        return ["an encoder, whose tokens see what comes after them; name a decoder"]
    if any((getattr(hf_config, name, None) or 0) > 1 for name in EXPERTS):
        return [
            "a mixture of experts; the loss that keeps its router balanced is not trained here, and experts that no "
            "token reaches have no gradient to share; name a dense model"
        ]
    if getattr(hf_config, "quantization_config", None) is not None:
        return ["its weights are quantized and cannot be trained; name the model in 16 bit that they were made from"]
    return []


def three_d_problems(hf_config: Any, config: TrainConfig) -> list[str]:
    """What shardformer cannot divide, or divides without an error and wrongly."""
    kind = hf_config.model_type
    if kind not in TESTED:
        return [f"--plugin 3d takes models apart by rules for {', '.join(TESTED)} alone; use zero2 or gemini"]
    problems = []
    if kind == "mistral" and config.sp > 1:
        problems.append("--sp is left out by colossalai for Mistral without an error; use --tp or --pp instead")
    if kind == "qwen2" and config.sp > 1 and config.sp_mode == "all_to_all":
        # shardformer/policies/qwen2.py:415 hands on the whole sequence in place of this rank's slice if tp is 1
        problems.append("--sp_mode all_to_all cannot share out its loss; use --sp_mode split_gather with --tp and --sp")
    if kind == "mistral" and config.use_flash_attn and config.use_grad_checkpoint and config.pp == 1:
        problems.append(
            "colossalai's flash attention for Mistral drops --use_grad_checkpoint; leave --use_flash_attn away, "
            "or use zero2 or gemini"
        )
    sizes = {
        "attention heads": hf_config.num_attention_heads,
        "key-value heads": hf_config.num_key_value_heads,
        "neurons of the feed-forward layer": hf_config.intermediate_size,
    }
    for what, size in sizes.items():
        if size % config.tp:
            problems.append(f"--tp {config.tp} does not divide its {size} {what}")
    for what in ("attention heads", "key-value heads"):
        if config.sp_mode == "all_to_all" and sizes[what] % config.sp:
            problems.append(f"--sp {config.sp} does not divide its {sizes[what]} {what}")
    if hf_config.num_hidden_layers < config.pp:
        problems.append(f"--pp {config.pp} is more than its {hf_config.num_hidden_layers} layers")
    return problems


def window_problems(hf_config: Any, config: TrainConfig, row_length: int) -> list[str]:
    """Rows longer than the sliding window, where not every token would see through the same window."""
    window = getattr(hf_config, "sliding_window", None)
    if window is None or row_length <= window:
        return []
    remedy = f"prepare the data with --max_length {window} or less"
    if hf_config.model_type == "qwen2":
        # modeling_qwen2.py:705 masks by the window in all layers, also those above max_window_layers, and even if
        # use_sliding_window is false
        return [f"rows of {row_length} tokens are longer than its sliding_window of {window}; {remedy}"]
    if config.plugin == "3d" and (config.use_flash_attn or config.sp > 1):
        return [
            f"colossalai's flash attention forgets its sliding window of {window} in rows of {row_length} tokens; "
            f"leave --use_flash_attn away or {remedy}"
        ]
    return []
