"""The figures that the demo's commands have left -> one table, summary.json and a plot of the losses."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tokenizer_tools.command import command
from tokenizer_tools.outputs import write_json

MOMENTS = {"base": "base", "after_init": "after init", "after_warmup": "after warm-up", "final": "final"}
RUNS = {"base_training": "base", "warmup": "warmup", "training": "full"}
BINS = {"base_bins": "base_bins", "bins": "bins"}
EVALUATIONS = {
    "base_evaluation": "base",
    "init_evaluation": "after_init",
    "warmup_evaluation": "after_warmup",
    "final_evaluation": "final",
}
LANGUAGES = {"zh": "Chinese", "en": "English"}


@dataclass(frozen=True)
class ReportConfig:
    """Tell what a run of the demo has measured."""

    run_dir: Path
    """The demo's directory."""


@command(ReportConfig)
def main(config: ReportConfig) -> None:
    """Write summary.json and losses.png, print the table."""
    summary = summarise(config.run_dir)
    write_json(config.run_dir / "summary.json", summary)
    plot_losses(config.run_dir)
    print_story(summary)
    print(f"\n{config.run_dir}/summary.json, {config.run_dir}/losses.png; the model: {config.run_dir}/full/modeling")


def load(path: Path) -> Any:
    """A JSON file's value."""
    return json.loads(path.read_text(encoding="utf-8"))


def losses(run_dir: Path, run: str) -> list[dict[str, Any]]:
    """The lines of a run's metrics.jsonl, one a step."""
    return [json.loads(line) for line in (run_dir / run / "metrics.jsonl").read_text().splitlines()]


def summarise(run_dir: Path) -> dict[str, Any]:
    """What summary.json holds."""
    evaluations = {moment: load(run_dir / "figures" / f"{moment}.json")["categories"] for moment in MOMENTS}
    tokenizers = list(load(run_dir / "figures" / "tokenizers.json")["tokenizers"].values())
    seconds = {name: int(value) for name, value in map(str.split, (run_dir / "seconds.tsv").read_text().splitlines())}
    before, after = (load(run_dir / "figures" / f"samples_{moment}.json") for moment in ("before", "after"))
    return {
        "vocab_size": dict(zip(("before", "after"), (t["vocab_size"] for t in tokenizers), strict=True)),
        "tokens_per_character": {
            language: {
                moment: tokenizer["categories"][language]["tokens_per_character"]
                for moment, tokenizer in zip(("before", "after"), tokenizers, strict=True)
            }
            for language in LANGUAGES
        },
        "bits_per_byte": {
            language: {moment: evaluations[moment][language]["bits_per_byte"] for moment in MOMENTS}
            for language in LANGUAGES
        },
        "tokens_per_second": tokens_per_second(run_dir, seconds, evaluations),
        "seconds": seconds,
        "samples": [
            {"prompt": old["prompt"], "before": old["continuation"], "after": new["continuation"]}
            for old, new in zip(before, after, strict=True)
        ],
    }


def tokens_per_second(run_dir: Path, seconds: dict[str, int], evaluations: dict[str, Any]) -> dict[str, float]:
    """Training: tokens over the time of its steps. The others: tokens over the whole command, its start included."""
    rates = {}
    for stage, run in RUNS.items():
        steps = losses(run_dir, run)
        rates[stage] = sum(step["num_tokens"] for step in steps) / sum(step["step_seconds"] for step in steps)
    for stage, directory in BINS.items():
        tokens = load(run_dir / directory / "manifest.json")["tokens"]["in_bins"]
        rates[stage] = tokens / max(1, seconds[stage])
    for stage, moment in EVALUATIONS.items():
        tokens = sum(figures["tokens"] for figures in evaluations[moment].values())
        rates[stage] = tokens / max(1, seconds[stage])
    return rates


def plot_losses(run_dir: Path) -> None:
    """losses.png: the loss a token of the three trainings, one after the other."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    offset = 0
    for (stage, run), label in zip(RUNS.items(), ("base, English", "warm-up, embeddings", "whole model"), strict=True):
        steps = losses(run_dir, run)
        axes.plot([offset + step["step"] for step in steps], [step["loss"] for step in steps], label=label)
        offset += len(steps)
        if stage != "training":
            axes.axvline(offset, color="0.8", linewidth=1, zorder=0)
    axes.set(xlabel="step", ylabel="loss (nats per token)", title="Training loss of the demo's three runs")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(run_dir / "losses.png", dpi=150)


def print_story(summary: dict[str, Any]) -> None:
    """One table, the samples, and a plain word on what happened to English."""
    table = Table(title="The demo, measured", title_justify="left")
    table.add_column("")
    for name in LANGUAGES.values():
        table.add_column(name, justify="right")
    rows = [
        (f"tokens per character, {moment}", [summary["tokens_per_character"][lang][moment] for lang in LANGUAGES])
        for moment in ("before", "after")
    ]
    rows += [
        (f"held-out bits per byte, {label}", [summary["bits_per_byte"][lang][moment] for lang in LANGUAGES])
        for moment, label in MOMENTS.items()
    ]
    vocab = summary["vocab_size"]
    table.add_row("vocabulary", f"{vocab['before']:,}", f"-> {vocab['after']:,}", end_section=True)
    for index, (label, values) in enumerate(rows):
        table.add_row(label, *(f"{value:.3f}" for value in values), end_section=index == 1)
    for stage, rate in summary["tokens_per_second"].items():
        table.add_row(f"tokens/s, {stage}", f"{rate:,.0f}", "")
    console = Console()
    console.print(table)
    for sample in summary["samples"]:
        console.print(f"[bold]{sample['prompt']}[/]", highlight=False)
        for moment in ("before", "after"):
            console.print(f"  {moment}: ", end="", highlight=False)
            console.print(" ".join(sample[moment].split()), markup=False, highlight=False)
    console.print(word_on_english(summary["bits_per_byte"]["en"]), highlight=False)
    console.print(f"in all {sum(summary['seconds'].values()) / 60:.1f} minutes", highlight=False)


def word_on_english(bits: dict[str, float]) -> str:
    """What the new language has cost the old one."""
    change = bits["final"] - bits["base"]
    verdict = "got worse" if change > 0 else "did not get worse"
    return f"English {verdict}: {bits['base']:.3f} -> {bits['final']:.3f} bits per byte ({change:+.3f})."


if __name__ == "__main__":
    sys.exit(main())
