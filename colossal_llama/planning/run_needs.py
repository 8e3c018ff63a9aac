"""The whole plan: flags come in; memory for every plugin and stage, time and checkpoints of the run go out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

from colossal_llama.architectures import three_d_problems, window_problems
from colossal_llama.checks import learning_problems, plugin_problems, stages_of
from colossal_llama.config import Plugin, TrainConfig
from colossal_llama.division import accumulating, check_world, dp_size
from colossal_llama.planning.amount import amount_of, tokens_per_character, vocabulary_before
from colossal_llama.planning.break_even import BreakEven, break_even
from colossal_llama.planning.checkpoint_size import (
    OPTIMIZER_BYTES,
    checkpoint_bytes,
    model_element,
    optimizer_bytes,
    weights_bytes,
)
from colossal_llama.planning.cluster import PlannedCluster, planned_cluster
from colossal_llama.planning.memory import Memory, largest_micro_batch, rank_memory, room_per_step
from colossal_llama.planning.model_shape import ModelShape, read_model_shape
from colossal_llama.planning.plan_config import PlanConfig
from colossal_llama.planning.speed import Amount, Efficiency, efficiency, num_steps, position_flops, seconds_per_step
from colossal_llama.planning.trained import TrainedSet, trained_set
from colossal_llama.stages import ResolvedStage, Trained, resolve
from tokenizer_tools.command import UserError

GIGABYTE = 10**9


@dataclass(frozen=True)
class PluginNeeds:
    """One plugin in stages of one kind: either why train.py refuses it, or what one GPU would hold."""

    plugin: Plugin
    kind: Trained
    refused: str | None = None
    memory: Memory | None = None
    largest_micro_batch: int = 0
    usable_bytes: int = 0

    @property
    def fits(self) -> bool:
        """Whether the asked micro-batch fits."""
        return self.memory is not None and self.memory.total <= self.usable_bytes


@dataclass(frozen=True)
class StageNeeds:
    """One stage of the run under its own plugin."""

    stage: ResolvedStage
    step_seconds: float
    flops_per_position: int
    checkpoint_bytes: int
    weights_bytes: int
    optimizer_bytes: int
    num_saves: int

    @property
    def num_trained(self) -> int:
        """Parameters that the optimizer has."""
        return self.optimizer_bytes // OPTIMIZER_BYTES

    @property
    def seconds(self) -> float:
        """Of all of its steps."""
        return self.stage.num_steps * self.step_seconds


@dataclass(frozen=True)
class HostNeeds:
    """The memory of one host in bytes."""

    loading: int
    """Every rank reads the whole model into it at the start."""
    optimizer: int
    checkpoint: int
    """Copies of what is being written in the background."""

    @property
    def total(self) -> int:
        """The larger of the start and the training."""
        return max(self.loading, self.optimizer + self.checkpoint)


@dataclass(frozen=True)
class RunNeeds:
    """All that the plan says."""

    config: PlanConfig
    shape: ModelShape
    cluster: PlannedCluster
    amount: Amount
    rows_per_step: int
    """That are read; if --global_batch_size leaves room in the micro-batches, blank ones are computed beside them."""
    room_per_step: int
    efficiency: Efficiency
    plugins: list[PluginNeeds]
    stages: list[StageNeeds]
    host: HostNeeds
    break_even: BreakEven | None

    @property
    def own(self) -> list[PluginNeeds]:
        """What the run's own plugin needs, by kind of stage."""
        return [one for one in self.plugins if one.plugin == self.config.plugin]

    @property
    def fits(self) -> bool:
        """Whether the run's own plugin fits in every stage."""
        return all(one.fits for one in self.own)

    @property
    def seconds(self) -> float:
        """Of the whole run, but for evaluations and starts."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def gpu_hours(self) -> float:
        """What is paid for."""
        return self.seconds / 3600 * self.cluster.num_gpus


def run_needs(config: PlanConfig) -> RunNeeds:
    """Everything, from flags and small files. Raises UserError with what is wrong with them."""
    config.checked()
    shape = read_model_shape(config.pretrained)
    cluster = planned_cluster(config)
    amount = amount_of(config)
    before = vocabulary_before(config)
    own_problems = problems_of(config, shape, cluster, amount.row_length)
    if own_problems:
        raise UserError("; ".join(own_problems))
    config = replace(config, accumulation_steps=_micro_batches(config, cluster.num_gpus))
    room_rows = room_per_step(config, cluster.num_gpus)
    step_rows = config.global_batch_size or room_rows
    stages = resolve(stages_of(config), num_steps(amount, step_rows, config.num_epochs, config.max_steps))
    kinds: list[Trained] = list(dict.fromkeys(stage.train for stage in stages))
    if "new_rows" in kinds and before is None:
        raise UserError(
            f"--pretrained {config.pretrained}: no manifest.json of init_model says which rows are new; "
            f"say it with --vocab_before"
        )
    trained = {kind: trained_set(shape, kind, config) for kind in kinds}
    speed = efficiency(config, config.mfu)
    plan = _Planner(config, shape, cluster, amount, before or 0)
    return RunNeeds(
        config=config,
        shape=shape,
        cluster=cluster,
        amount=amount,
        rows_per_step=step_rows,
        room_per_step=room_rows,
        efficiency=speed,
        plugins=[plan.plugin_needs(plugin, trained[kind]) for kind in kinds for plugin in get_args(Plugin)],
        stages=[plan.stage_needs(stage, trained[stage.train], room_rows, speed.mfu) for stage in stages],
        host=plan.host_needs([trained[kind] for kind in kinds]),
        break_even=None
        if before is None
        else break_even(shape, before, amount.row_length, tokens_per_character(config)),
    )


def _micro_batches(config: TrainConfig, num_gpus: int) -> int:
    """Of a rank and step: --accumulation_steps, or what --global_batch_size makes of it."""
    return accumulating(config, dp_size(config, num_gpus)).accumulation_steps


def problems_of(config: TrainConfig, shape: ModelShape, cluster: PlannedCluster, row_length: int) -> list[str]:
    """Why train.py would refuse these flags for this model on so many GPUs."""
    problems = plugin_problems(config) + learning_problems(config) + window_problems(shape, config, row_length)
    if config.plugin == "3d":
        problems += three_d_problems(shape, config)
        try:
            check_world(config, cluster.num_gpus, shape.vocab_size, row_length)
        except UserError as error:
            problems.append(str(error))
    return problems


@dataclass(frozen=True)
class _Planner:
    config: PlanConfig
    shape: ModelShape
    cluster: PlannedCluster
    amount: Amount
    num_old_rows: int

    def plugin_needs(self, plugin: Plugin, trained: TrainedSet) -> PluginNeeds:
        """Another plugin is planned with the same flags, but for the sizes that only 3d knows."""
        config: TrainConfig = replace(self.config, plugin=plugin)
        if plugin != "3d":
            config = replace(config, tp=1, pp=1, sp=1)
        problems = problems_of(config, self.shape, self.cluster, self.amount.row_length)
        if problems:
            return PluginNeeds(plugin, trained.kind, refused="; ".join(problems))
        config = replace(config, accumulation_steps=_micro_batches(config, self.cluster.num_gpus))
        usable = self.cluster.usable_bytes
        return PluginNeeds(
            plugin,
            trained.kind,
            memory=self._memory(config, trained),
            largest_micro_batch=largest_micro_batch(self._memory_of_rows(config, trained), usable),
            usable_bytes=usable,
        )

    def _memory(self, config: TrainConfig, trained: TrainedSet) -> Memory:
        return rank_memory(
            self.shape, trained, config, self.cluster.num_gpus, self.amount.row_length, self.num_old_rows
        )

    def _memory_of_rows(self, config: TrainConfig, trained: TrainedSet) -> Callable[[int], int]:
        """Bytes by rows of a micro-batch; a pipeline gets as many micro-batches as it has stages."""

        def total(num_rows: int) -> int:
            accumulation_steps = max(config.accumulation_steps, config.pp)
            larger = replace(config, micro_batch_size=num_rows, accumulation_steps=accumulation_steps)
            return self._memory(larger, trained).total

        return total

    def stage_needs(self, stage: ResolvedStage, trained: TrainedSet, room_rows: int, mfu: float) -> StageNeeds:
        flops = position_flops(self.shape, trained, self.amount.row_length, self.num_old_rows)
        interval, last = self.config.save_interval, stage.end_step
        return StageNeeds(
            stage=stage,
            step_seconds=seconds_per_step(flops, room_rows * self.amount.row_length, self.cluster, mfu),
            flops_per_position=flops,
            checkpoint_bytes=checkpoint_bytes(self.shape, trained, self.config),
            weights_bytes=weights_bytes(self.shape, trained, self.config),
            optimizer_bytes=optimizer_bytes(self.shape, trained),
            # every interval, and a stage's last step
            num_saves=(last - 1) // interval - stage.first_step // interval + 1,
        )

    def host_needs(self, trained: list[TrainedSet]) -> HostNeeds:
        config, num_hosts = self.config, self.cluster.num_hosts
        ranks = min(self.cluster.num_gpus, self.cluster.gpus_per_host)
        element = model_element(config)
        written = max(
            optimizer_bytes(self.shape, one) // num_hosts + weights_bytes(self.shape, one, config) for one in trained
        )
        offloaded = max(self._memory(config, one).host_optimizer for one in trained)
        return HostNeeds(
            loading=ranks * element * self.shape.num_parameters, optimizer=ranks * offloaded, checkpoint=written
        )
