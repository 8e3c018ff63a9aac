"""--plugin -> a Booster plugin, and how it divides a step among the ranks. One small function a plugin.

With model.py, host.py and mends.py the only places that know what colossalai 0.5.0 really does with each setting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from colossalai.booster import Booster
from colossalai.booster.plugin import GeminiPlugin, HybridParallelPlugin, LowLevelZeroPlugin, TorchDDPPlugin
from colossalai.booster.plugin.plugin_base import Plugin
from torch import nn

from colossal_llama import mends
from colossal_llama.cluster import Layout
from colossal_llama.config import TP_SHARED_SP_MODES, TrainConfig
from colossal_llama.division import pipeline_microbatch_size
from colossal_llama.host import has_accelerator
from tokenizer_tools.command import UserError

MEBI = 2**20
WHOLE_ON_EVERY_RANK = ("ddp", "zero2", "zero2_cpu")
"""Plugins that leave the weights on every rank."""
LARGEST_MIN_CHUNK_MEBI = 32.0  # GeminiPlugin's own default, in parameters / 2**20


def make_plugin(config: TrainConfig, num_params: int, hidden_size: int) -> Plugin:
    """The Booster plugin of `config`, for a model of `num_params` parameters. Clipping is the plugin's, but for ddp."""
    makers: dict[str, Callable[[], Plugin]] = {
        "ddp": TorchDDPPlugin,
        "zero2": lambda: _zero2(config, cpu_offload=False),
        "zero2_cpu": lambda: _zero2(config, cpu_offload=True),
        "gemini": lambda: _gemini(config, "static", num_params, hidden_size),
        "gemini_auto": lambda: _gemini(config, "auto", num_params, hidden_size),
        "3d": lambda: _three_d(config),
    }
    return makers[config.plugin]()


def _zero2(config: TrainConfig, cpu_offload: bool) -> LowLevelZeroPlugin:
    return LowLevelZeroPlugin(
        stage=2,
        precision=config.mixed_precision,
        max_norm=config.max_grad_norm,
        cpu_offload=cpu_offload,
        # zero/low_level/low_level_optim.py:343 calls record_stream, which a CPU tensor does not have
        overlap_communication=has_accelerator(),
    )


def _gemini(config: TrainConfig, placement: str, num_params: int, hidden_size: int) -> GeminiPlugin:
    # A model smaller than one chunk is kept whole on every rank, and then accumulated gradients are counted world-size
    # times (zero/gemini/chunk/manager.py:290). A chunk of at most half the model is always shared out.
    min_chunk_mebi = min(LARGEST_MIN_CHUNK_MEBI, num_params / 2 / MEBI)
    return GeminiPlugin(
        precision=config.mixed_precision,
        placement_policy=placement,
        enable_gradient_accumulation=config.accumulation_steps > 1,
        max_norm=config.max_grad_norm,
        hidden_dim=hidden_size,
        min_chunk_size_m=min_chunk_mebi,
        search_range_m=min_chunk_mebi,
        # booster/plugin/gemini_plugin.py:491 turns pinned memory on with it, which a machine without CUDA cannot give
        enable_async_reduce=has_accelerator(),
    )


def _three_d(config: TrainConfig) -> HybridParallelPlugin:
    if config.sp > 1 and config.sp_mode == "ring":
        mends.mend_ring_gather()
    if config.pp > 1:
        mends.mend_shared_gradients()
    # Without data parallelism ZeRO shares nothing out, and under its stage 2 HybridParallelPlugin then counts earlier
    # micro-batches once more with every backward pass (it wraps the model in DDP, hybrid_parallel_plugin.py:1311).
    has_data_parallelism = dist.get_world_size() > config.tp * config.pp
    zero_stage = config.zero if has_data_parallelism else min(config.zero, 1)
    microbatch_size = pipeline_microbatch_size(config.micro_batch_size, config.accumulation_steps, config.pp)
    return HybridParallelPlugin(
        tp_size=config.tp,
        pp_size=config.pp,
        sp_size=1 if config.sp_mode in TP_SHARED_SP_MODES else config.sp,
        enable_sequence_parallelism=config.sp > 1,
        sequence_parallelism_mode=config.sp_mode if config.sp > 1 else None,
        zero_stage=zero_stage,
        precision=config.mixed_precision,
        max_norm=config.max_grad_norm,
        microbatch_size=microbatch_size,
        # Without it sequence parallelism attends to the future: packed rows need no padding mask, and for those
        # shardformer/modeling/llama.py:143 gets None from transformers and applies no mask at all.
        enable_flash_attention=config.use_flash_attn or config.sp > 1,
        # The default pads the vocabulary to a multiple of 64 and then cannot save it (tensor/padded_tensor/api.py:47).
        make_vocab_size_divisible_by=1,
        overlap_communication=has_accelerator(),  # as in _zero2
    )


def boost(plugin: Plugin, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Booster, Any, Any]:
    """Let Booster take over model and optimizer: (booster, boosted model, boosted optimizer)."""
    booster = Booster(plugin=plugin)
    boosted, boosted_optimizer, *_ = booster.boost(model, optimizer)
    mends.keep_rotary_frequencies_fp32(boosted)
    return booster, boosted, boosted_optimizer


def can_evaluate_first(config: TrainConfig) -> bool:
    """Whether a model may be evaluated before it has trained: gemini_auto plans its memory in the first step, and
    asserts that this step trains (zero/gemini/gemini_ddp.py:277)."""
    return config.plugin != "gemini_auto"


def layout_of(plugin: Plugin) -> Layout:
    """Who reads which rows and who holds which part of the logits under `plugin`."""
    if not isinstance(plugin, HybridParallelPlugin):
        world_size = dist.get_world_size()
        return Layout(dp_rank=dist.get_rank(), dp_size=world_size, num_averaged=world_size)
    splits_sequence = plugin.enable_sequence_parallelism and plugin.sequence_parallelism_mode not in TP_SHARED_SP_MODES
    sequence_rank = dist.get_rank(plugin.sp_group) if splits_sequence else 0
    first_of_tp = dist.get_rank(plugin.tp_group) == 0
    stage = dist.get_rank(plugin.pp_group)
    return Layout(
        # plugin.dp_size is dp x sp under all_to_all (hybrid_parallel_plugin.py:1200); the group is not
        dp_rank=dist.get_rank(plugin.dp_group),
        dp_size=plugin.dp_group.size(),
        num_averaged=plugin.mixed_dp_group.size(),
        tp_group=plugin.tp_group if plugin.tp_size > 1 else None,
        sequence_rank=sequence_rank,
        sequence_size=plugin.sp_group.size() if splits_sequence else 1,
        owns_loss=first_of_tp and stage == plugin.pp_size - 1,
        owns_rows=first_of_tp and stage == 0 and sequence_rank == 0,
    )


def model_dtype(config: TrainConfig) -> torch.dtype:
    """Number format in which the weights are loaded; ddp keeps fp32 weights and computes in bf16 by autocast."""
    if config.plugin == "ddp":
        return torch.float32
    return {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[config.mixed_precision]


def attention_implementation(config: TrainConfig) -> str:
    """transformers' name of the attention kernels. 3d brings its own for --use_flash_attn (shardformer/layer/attn.py).

    Raises UserError if flash-attn is asked for on an accelerator and is not installed.
    """
    if not config.use_flash_attn or config.plugin == "3d" or not has_accelerator():
        return "sdpa"
    from transformers.utils import is_flash_attn_2_available

    if not is_flash_attn_2_available():
        raise UserError(
            "--use_flash_attn: flash-attn is not installed; `pip install --no-build-isolation flash-attn`, "
            "or leave the flag away"
        )
    return "flash_attention_2"
