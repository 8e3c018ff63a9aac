"""What a plugin keeps on one GPU and in one host: a model, flags and a number of ranks come in, bytes by part go out.

Each function below follows what colossalai 0.5.0 and this project's trainer do under that plugin; docs/plan.md has the
table. All parts are added up as if all were at their largest at once, but for the optimizer's step, which comes when
the activations are gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from colossal_llama.config import TrainConfig
from colossal_llama.division import dp_size, pipeline_microbatch_size
from colossal_llama.planning import activations
from colossal_llama.planning.holdings import Held, held_by, layers_per_stage
from colossal_llama.planning.model_shape import EMBEDDING, HEAD, ModelShape
from colossal_llama.planning.trained import TrainedSet

FP32, HALF = 4, 2
MOMENTS_BYTES = 8
MEBI = 2**20
ZERO_BUCKET_NUMBERS = 12 * MEBI  # reduce_bucket_size_in_m of LowLevelZeroPlugin and HybridParallelPlugin
GEMINI_CHUNK_NUMBERS = 32 * MEBI  # min_chunk_size_m of plugins.py, and how far gemini looks for a better size above it


@dataclass(frozen=True)
class ModelData:
    """What outlives a micro-batch, in bytes, on one GPU; `host_optimizer` and `host_update` in its host's memory."""

    weights: int
    gradients: int
    optimizer: int
    buffers: int
    """For communication, during the backward pass."""
    update: int = 0
    """What the optimizer's step needs beside it, when there are no activations."""
    host_optimizer: int = 0
    host_update: int = 0


@dataclass(frozen=True)
class Memory:
    """The most that one GPU holds, in bytes by part."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    """Of the output head and the loss."""
    buffers: int
    update: int
    host_optimizer: int
    """With what its step needs there."""
    pipeline_stage: int = 0

    @property
    def total(self) -> int:
        """The larger of the backward pass and the optimizer's step."""
        passing = self.activations + self.logits + self.buffers
        return self.weights + self.gradients + self.optimizer + max(passing, self.update)

    @property
    def parts(self) -> dict[str, int]:
        """The parts that add up to `total`, where the backward pass is the larger."""
        names = ("weights", "gradients", "optimizer", "activations", "logits", "buffers")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class _Sizes:
    """Entries of one rank's tensors. `shard` are those of the largest share that any rank has of what trains."""

    all: int
    frozen: int
    trained: int
    shard: int
    largest_trained: int
    cast: int
    """Of the matrices that autocast casts."""


def model_data(held: Sequence[Held], trained: TrainedSet, config: TrainConfig, num_shards: int) -> ModelData:
    """What --plugin keeps of a model of which this rank holds `held`, with ZeRO over `num_shards` ranks."""
    sizes = _sizes(held, trained, num_shards)
    element = FP32 if config.mixed_precision == "fp32" else HALF
    makers: dict[str, Callable[[], ModelData]] = {
        "ddp": lambda: _ddp(sizes, config, num_shards),
        "zero2": lambda: _zero(sizes, element, config, num_shards, partitions_gradients=True),
        "zero2_cpu": lambda: _offloaded(_zero(sizes, element, config, num_shards, partitions_gradients=True)),
        "gemini": lambda: _gemini(sizes, config),
        "gemini_auto": lambda: _offloaded(_gemini(sizes, config)),
        "3d": lambda: _three_d(sizes, element, config, num_shards),
    }
    return makers[config.plugin]()


def _sizes(held: Sequence[Held], trained: TrainedSet, num_shards: int) -> _Sizes:
    own = [one.numel for one in held if trained.trains(one.tensor)] + [tensor.numel for tensor in trained.added]
    whole = sum(one.numel for one in held) + sum(tensor.numel for tensor in trained.added)
    return _Sizes(
        all=whole,
        frozen=whole - sum(own),
        trained=sum(own),
        shard=sum(math.ceil(numel / num_shards) for numel in own),
        largest_trained=max(own, default=0),
        cast=sum(one.numel for one in held if len(one.tensor.shape) == 2 and not one.tensor.is_embedding),
    )


def _ddp(sizes: _Sizes, config: TrainConfig, num_ranks: int) -> ModelData:
    """fp32 throughout; autocast keeps 16-bit copies of the layers' matrices, and DDP a second set of gradients."""
    casts = HALF * sizes.cast if config.mixed_precision == "bf16" else 0
    return ModelData(
        weights=FP32 * sizes.all + casts,
        gradients=FP32 * sizes.trained,
        optimizer=MOMENTS_BYTES * sizes.trained,
        buffers=FP32 * sizes.trained * (num_ranks > 1),
    )


def _zero(
    sizes: _Sizes, element: int, config: TrainConfig, num_shards: int, *, partitions_gradients: bool
) -> ModelData:
    """ZeRO 1 and 2: whole weights, an fp32 copy and both moments shared out; a gradient lies in a bucket twice."""
    accumulates = config.accumulation_steps > 1 and config.pp == 1
    kept = FP32 if accumulates and partitions_gradients else element
    return ModelData(
        weights=element * sizes.all,
        gradients=kept * sizes.shard if partitions_gradients else element * sizes.trained,
        optimizer=(FP32 + MOMENTS_BYTES) * sizes.shard,
        buffers=2 * element * min(max(ZERO_BUCKET_NUMBERS, sizes.largest_trained), sizes.trained),
        update=FP32 * sizes.shard * (kept != FP32) + element * math.ceil(sizes.largest_trained / num_shards),
    )


def _gemini(sizes: _Sizes, config: TrainConfig) -> ModelData:
    """ZeRO 3: all that trains is shared out in chunks, of which two are whole at a time; what is frozen is not shared.

    Gradients take the place of the weights in the chunks, unless they are added up over micro-batches.
    """
    chunk = max(sizes.largest_trained, min(2 * GEMINI_CHUNK_NUMBERS, sizes.trained))
    return ModelData(
        weights=HALF * (sizes.frozen + sizes.shard),
        gradients=HALF * sizes.shard * (config.accumulation_steps > 1),
        optimizer=(FP32 + MOMENTS_BYTES) * sizes.shard,
        buffers=2 * HALF * chunk,
    )


def _three_d(sizes: _Sizes, element: int, config: TrainConfig, num_shards: int) -> ModelData:
    if config.zero > 0:
        # plugins.py turns 2 into 1 where there is nobody to share with
        return _zero(sizes, element, config, num_shards, partitions_gradients=config.zero == 2 and num_shards > 1)
    has_masters = element != FP32
    return ModelData(
        weights=element * sizes.all,
        gradients=element * sizes.trained,
        optimizer=(FP32 * has_masters + MOMENTS_BYTES) * sizes.trained,
        buffers=element * sizes.trained * (num_shards > 1 and config.pp == 1),  # torch's DDP
        update=FP32 * sizes.trained * has_masters,
    )


def _offloaded(data: ModelData) -> ModelData:
    """The same with the optimizer, and what its step needs, in the host's memory."""
    return ModelData(
        weights=data.weights,
        gradients=data.gradients,
        optimizer=0,
        buffers=data.buffers,
        host_optimizer=data.optimizer,
        host_update=data.update,
    )


def rank_memory(
    shape: ModelShape,
    trained: TrainedSet,
    config: TrainConfig,
    num_gpus: int,
    row_length: int,
    num_old_rows: int = 0,
) -> Memory:
    """Of the fullest GPU: of all pipeline stages, the one that holds the most."""
    found = [
        _of_pipeline_stage(shape, trained, config, num_gpus, row_length, num_old_rows, stage)
        for stage in range(config.pp)
    ]
    return max(found, key=lambda memory: memory.total)


def _of_pipeline_stage(
    shape: ModelShape,
    trained: TrainedSet,
    config: TrainConfig,
    num_gpus: int,
    row_length: int,
    num_old_rows: int,
    stage: int,
) -> Memory:
    held = held_by(shape, config.tp, config.pp, stage)
    data = model_data(held, trained, config, num_gpus // (config.tp * config.pp))
    how = activations.computation_of(config)
    length = row_length // config.sp if config.sp_mode == "all_to_all" else row_length
    rows, in_flight = config.micro_batch_size, 1
    if config.pp > 1:
        rows = pipeline_microbatch_size(config.micro_batch_size, config.accumulation_steps, config.pp)
        num_microbatches = config.micro_batch_size * config.accumulation_steps // rows
        in_flight = min(config.pp - stage, num_microbatches)
    num_layers = layers_per_stage(shape.num_hidden_layers, config.pp)[stage]
    passed = activations.stage_bytes(shape, trained, how, rows, length, num_layers, in_flight)
    passed += activations.end_bytes(shape, trained, how, rows, length)
    logits = 0
    if stage == config.pp - 1:
        head_trains = (EMBEDDING if shape.tie_word_embeddings else HEAD) in trained.names
        first = num_old_rows if trained.kind == "new_rows" else 0
        logits = activations.head_bytes(shape, how, rows, length, first, head_trains)
    return Memory(
        weights=data.weights,
        gradients=data.gradients,
        optimizer=data.optimizer,
        activations=passed,
        logits=logits,
        buffers=data.buffers,
        update=data.update,
        host_optimizer=data.host_optimizer + data.host_update,
        pipeline_stage=stage,
    )


def largest_micro_batch(memory_of: Callable[[int], int], usable_bytes: int, most: int = 4096) -> int:
    """The largest number of rows, up to `most`, whose `memory_of` is not above `usable_bytes`; 0 if one is too many."""
    fits, too_many = 0, most + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if memory_of(middle) <= usable_bytes:
            fits = middle
        else:
            too_many = middle
    return fits


def room_per_step(config: TrainConfig, num_gpus: int) -> int:
    """Rows that the micro-batches of all ranks hold together in one step."""
    return config.micro_batch_size * config.accumulation_steps * dp_size(config, num_gpus)
