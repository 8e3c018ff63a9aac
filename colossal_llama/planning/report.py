"""A plan for people: tables of 120 columns, what it rests on, and a verdict as the last line."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from colossal_llama.gpus import GIBI
from colossal_llama.planning.break_even import BreakEven
from colossal_llama.planning.checkpoint_size import model_element
from colossal_llama.planning.memory import Memory
from colossal_llama.planning.run_needs import GIGABYTE, PluginNeeds, RunNeeds, StageNeeds

if TYPE_CHECKING:
    from rich.table import Table

WIDTH_CHARACTERS = 120
OTHER_MFUS = (0.3, 0.4, 0.5)
MEMORY_PARTS = ("weights", "gradients", "optimizer", "activations", "logits", "buffers")
COSTS = {
    "training_flops": ("training, GFLOP", 1e9),
    "prompt_flops": ("reading, GFLOP", 1e9),
    "written_bytes": ("writing, GB read", 1e9),
}


def print_plan(needs: RunNeeds) -> None:
    """The plan on stdout."""
    print("\n".join(plan_lines(needs)))


def plan_lines(needs: RunNeeds) -> list[str]:
    """The plan; lines of words may be longer than the tables."""
    pays = needs.break_even
    return [
        *heading(needs),
        "",
        *_lines(memory_table(needs)),
        *_notes(needs),
        "",
        *_lines(stage_table(needs)),
        *run_lines(needs),
        "",
        *([] if pays is None else [*_lines(break_even_table(pays)), break_even_line(pays), ""]),
        verdict(needs),
    ]


def heading(needs: RunNeeds) -> list[str]:
    """What is planned, on what."""
    cluster, shape, config = needs.cluster, needs.shape, needs.config
    num_readers = needs.room_per_step // config.micro_batch_size // config.accumulation_steps
    blank = needs.room_per_step - needs.rows_per_step
    switches: list[str] = [config.mixed_precision]
    switches += ["recomputation"] * config.use_grad_checkpoint + ["flash-attn"] * config.use_flash_attn
    return [
        f"{config.pretrained}: {shape.model_type}, {shape.num_parameters:,} parameters, {shape.num_hidden_layers} "
        f"layers of {shape.hidden_size}, {shape.vocab_size:,} pieces",
        f"{cluster.num_gpus} x {cluster.gpu_name} on {cluster.num_hosts} host(s): {_gib(cluster.memory_bytes)} GiB "
        f"each, {_gib(cluster.reserve_bytes)} of them kept free; {cluster.peak_source}",
        f"a step: {config.micro_batch_size} row(s) x {config.accumulation_steps} x {num_readers} rank(s) of "
        f"{needs.amount.row_length:,} = {needs.room_per_step * needs.amount.row_length:,} positions"
        f"{f', {blank:,} of its rows blank' if blank else ''}; {', '.join(switches)}",
    ]


def memory_table(needs: RunNeeds) -> Table:
    """One line a plugin and kind of stage, in GiB of the fullest GPU. The run's own plugin is marked."""
    several = len({one.kind for one in needs.plugins}) > 1
    parts = (name.replace("activations", "activ.") for name in MEMORY_PARTS)
    heads = ("GiB a GPU", *(["trains"] if several else []), *parts, "in all", "fits", "most rows")
    table = _table(heads, left=("GiB a GPU", "trains", "fits"))
    for one in needs.plugins:
        mark = "> " if one.plugin == needs.config.plugin else "  "
        names = [mark + one.plugin, *([one.kind] if several else [])]
        if one.memory is None:
            table.add_row(*names, *[""] * (len(MEMORY_PARTS) + 1), "refused", "")
            continue
        bytes_of, most = one.memory.parts, f"{one.largest_micro_batch or 'none'}"
        sizes = [*(bytes_of[name] for name in MEMORY_PARTS), one.memory.total]
        table.add_row(*names, *map(_gib, sizes), fit_words(one), most)
    return table


def _notes(needs: RunNeeds) -> list[str]:
    notes = [f"{one.plugin} ({one.kind}) is refused: {one.refused}" for one in needs.plugins if one.refused]
    for one in needs.plugins:
        if one.memory is not None and one.memory.host_optimizer and one.kind == needs.plugins[0].kind:
            host = one.memory.host_optimizer * min(needs.cluster.gpus_per_host, needs.cluster.num_gpus)
            notes.append(
                f"{one.plugin}: its optimizer takes {_gib(host)} GiB of each host's memory, and time on its CPUs"
            )
    for one in needs.own:
        if one.memory is not None and _updates_at_its_largest(one.memory):
            notes.append(
                f"{one.plugin} ({one.kind}): the optimizer's step is the larger moment, with "
                f"{_gib(one.memory.update)} GiB of its own in place of activations, logits and buffers"
            )
    if needs.config.pp > 1 and needs.own[0].memory is not None:
        notes.append(f"3d: the fullest GPU is in pipeline stage {needs.own[0].memory.pipeline_stage + 1}")
    return notes


def _updates_at_its_largest(memory: Memory) -> bool:
    return memory.update > memory.activations + memory.logits + memory.buffers


def fit_words(one: PluginNeeds) -> str:
    """yes, or by how much not and what is largest."""
    assert one.memory is not None
    if one.fits:
        return "yes"
    parts = one.memory.parts
    return f"no: +{_gib(one.memory.total - one.usable_bytes)}, {max(parts, key=lambda name: parts[name])}"


def stage_table(needs: RunNeeds) -> Table:
    """Steps, hours, price and checkpoints of each stage."""
    priced = needs.config.price_per_gpu_hour is not None
    heads = ["stage", "trains", "M learn", "steps", "s a step", "hours", "GPU hours", *(["price"] if priced else [])]
    heads += ["checkpoint GB", "model", "optimizer", "saves", "s to write"]
    table = _table(heads, left=("stage", "trains"))
    for number, one in enumerate(needs.stages, start=1):
        gpu_hours = one.seconds / 3600 * needs.cluster.num_gpus
        table.add_row(
            str(number),
            one.stage.train,
            f"{one.num_trained / 1e6:,.1f}",
            f"{one.stage.num_steps:,}",
            f"{one.step_seconds:.3g}",
            _hours(one.seconds),
            f"{gpu_hours:,.0f}",
            *([f"{gpu_hours * (needs.config.price_per_gpu_hour or 0):,.0f}"] if priced else []),
            f"{one.checkpoint_bytes / GIGABYTE:,.1f}",
            f"{one.weights_bytes / GIGABYTE:,.1f}",
            f"{one.optimizer_bytes / GIGABYTE:,.1f}",
            f"{one.num_saves:,}",
            f"{write_seconds(needs, one):,.0f}",
        )
    return table


def write_seconds(needs: RunNeeds, stage: StageNeeds) -> float:
    """How long one checkpoint is being written."""
    return stage.checkpoint_bytes / GIGABYTE / needs.config.disk_gb_per_second


def run_lines(needs: RunNeeds) -> list[str]:
    """The run as a whole: tokens, time at other speeds, disk, hosts."""
    config, amount, host = needs.config, needs.amount, needs.host
    fill = amount.num_tokens / (amount.num_rows * amount.row_length)
    num_rows = min(needs.stages[-1].stage.end_step * needs.rows_per_step, amount.num_rows * config.num_epochs)
    num_tokens = num_rows * amount.row_length * fill
    speed = num_tokens / needs.seconds
    others = (f"{_hours(needs.seconds * needs.efficiency.mfu / mfu)} h at {mfu:.0%}" for mfu in OTHER_MFUS)
    kept = f"{config.keep_checkpoints} checkpoints, the next one" if config.keep_checkpoints else "all checkpoints"
    return [
        f"{num_tokens:,.0f} tokens ({amount.source}; rows are {fill:.1%} full) in {needs.stages[-1].stage.end_step:,} "
        f"steps: {speed:,.0f} tokens/s, {speed / needs.cluster.num_gpus:,.0f} a GPU",
        f"MFU {needs.efficiency.mfu:.1%}: {needs.efficiency.source}",
        f"{_hours(needs.seconds)} h at it, {', '.join(others)}",
        f"disk: {disk_bytes(needs) / GIGABYTE:,.0f} GB for {kept} and the model; {_saving_words(needs)}",
        f"memory of a host: {host.loading / GIGABYTE:,.0f} GB to load the model once a GPU, then "
        f"{(host.optimizer + host.checkpoint) / GIGABYTE:,.0f} GB while a checkpoint is written",
    ]


def disk_bytes(needs: RunNeeds) -> int:
    """The most that --save_dir holds."""
    largest = max(one.checkpoint_bytes for one in needs.stages)
    final = model_element(needs.config) * needs.shape.num_parameters
    if needs.config.keep_checkpoints:
        return (needs.config.keep_checkpoints + 1) * largest + final
    return sum(one.num_saves * one.checkpoint_bytes for one in needs.stages) + final


def _saving_words(needs: RunNeeds) -> str:
    slowest = max(needs.stages, key=lambda one: write_seconds(needs, one))
    seconds = write_seconds(needs, slowest)
    between = min(needs.config.save_interval, slowest.stage.num_steps) * slowest.step_seconds
    words = f"{seconds:,.0f} s to write one at {needs.config.disk_gb_per_second:g} GB/s, every {between / 60:,.0f} min"
    if seconds > between:
        return words + ": training will wait for the disk; raise --save_interval"
    return words + f", behind the training ({seconds / between:.1%} of the time)"


def break_even_table(pays: BreakEven) -> Table:
    """What a token and a character cost before and after the expansion."""
    measured = pays.tokens_per_character is not None
    heads = [
        "a token",
        f"{pays.before.vocab_size:,} pieces",
        f"{pays.after.vocab_size:,} pieces",
        "more",
        "to be saved",
    ]
    heads += ["a character before", "after", "change"] if measured else []
    table = _table(heads, left=("a token",))
    for cost, (label, unit) in COSTS.items():
        before, after = getattr(pays.before, cost), getattr(pays.after, cost)
        row = [label, f"{before / unit:.2f}", f"{after / unit:.2f}", f"{after / before - 1:.2%}"]
        row.append(f"{pays.needed_saving(cost):.2%}")
        characters = pays.per_character(cost)
        if characters is not None:
            row += [f"{value / unit:.2f}" for value in characters]
            row.append(f"{characters[1] / characters[0] - 1:+.1%}")
        table.add_row(*row)
    return table


def break_even_line(pays: BreakEven) -> str:
    """In words."""
    added = pays.after.num_parameters - pays.before.num_parameters
    needed = max(pays.needed_saving(cost) for cost in COSTS)
    rows = f"the new rows are {added:,} parameters, and pay once they save {needed:.2%} of the tokens"
    if pays.saving is None:
        return f"{rows}; --tokens_per_character BEFORE AFTER, or --compared FILE, says what they do save"
    return f"{rows}; they save {pays.saving:.1%}: it {'pays' if pays.saving > needed else 'does not pay'}"


def verdict(needs: RunNeeds) -> str:
    """The last line."""
    config = needs.config
    if not needs.fits:
        others = sorted({one.plugin for one in needs.plugins} - {one.plugin for one in needs.plugins if not one.fits})
        smaller = min(one.largest_micro_batch for one in needs.own)
        hints = [f"--micro_batch_size {smaller}"] * bool(smaller) + [f"--plugin {name}" for name in others]
        if not config.use_grad_checkpoint:
            hints.append("--use_grad_checkpoint")
        worst = max(needs.own, key=lambda one: one.memory.total if one.memory else math.inf)
        return f"DOES NOT FIT: --plugin {config.plugin}, {worst.kind}: {fit_words(worst)}; try {', '.join(hints)}"
    price = f", price {needs.gpu_hours * config.price_per_gpu_hour:,.0f}" if config.price_per_gpu_hour else ""
    rows = min(one.largest_micro_batch for one in needs.own)
    return (
        f"FITS: --plugin {config.plugin} with up to --micro_batch_size {rows}; "
        f"{_hours(needs.seconds)} hours, {needs.gpu_hours:,.0f} GPU hours{price}"
    )


def _table(heads: Sequence[str], left: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in heads:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=name in left)
    return table


def _lines(table: Table) -> list[str]:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=WIDTH_CHARACTERS, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return [line.rstrip() for line in capture.get().splitlines()]


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIBI:.1f}" if num_bytes else "-"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f}"
