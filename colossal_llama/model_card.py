"""A checkpoint comes in; the model card of its export goes out, in Markdown with Hugging Face's front matter.

Only what the checkpoint, its run's evaluations.jsonl and the lineage say; of paths only the last name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from colossal_llama.checkpoint import Checkpoint
from colossal_llama.lineage import content_sha256, walk

EVALUATIONS = "evaluations.jsonl"
SETTINGS = (
    *("plugin", "mixed_precision", "lr", "embeds_lr", "lr_schedule", "lr_floor", "warmup_steps", "weight_decay"),
    *("gradient_clipping", "micro_batch_size", "accumulation_steps", "max_length", "document_mask", "num_epochs"),
    *("train", "stages", "lora_rank", "lora_alpha", "seed"),
)
"""Flags of train.py that decide what was learnt, in the card's order; those without a value are left out."""
DIGITS = 16  # of a sha256
INDENT = "· "

LOADING = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

directory = "path/of/this/directory"
tokenizer = AutoTokenizer.from_pretrained(directory)
model = AutoModelForCausalLM.from_pretrained(directory, torch_dtype="auto")
```"""


def model_card(checkpoint: Checkpoint, settings: Mapping[str, Any], lineage: Mapping[str, Any], proof: str) -> str:
    """README.md of an export. `settings`: train_config.json; `lineage`: lineage.json; `proof`: what was compared."""
    progress = checkpoint.progress
    base, run = Path(settings["pretrained"]).name, Path(settings["save_dir"]).name
    head = {"base_model": base, "library_name": "transformers", "pipeline_tag": "text-generation"}
    read = [(name, f"{count:,}") for name, count in sorted(progress.tokens_by_category.items())]
    sections = [
        "\n".join(
            ["---", *(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in head.items()), "---"]
        ),
        f"# {run}, step {progress.step:,}",
        f"`{base}`, whose pre-training was continued on {progress.num_tokens_seen:,} tokens.",
        "## Loading",
        LOADING,
        "## Data",
        f"{', '.join(f'`{Path(path).name}`' for path in settings['dataset'])}: {progress.num_rows_seen:,} rows, in "
        f"whole epochs {progress.epoch:,}. Tokens that were learnt from:",
        _table(("category", "tokens"), [*read, ("all", f"{progress.num_tokens_seen:,}")]),
        *_evaluations(checkpoint.path.parent / EVALUATIONS, progress.step),
        "## Settings",
        _table(("setting", "value"), _settings(checkpoint, settings)),
        "## Proof",
        proof,
        *_lineage(lineage),
    ]
    return "\n\n".join(sections) + "\n"


def _settings(checkpoint: Checkpoint, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "steps", f"{checkpoint.progress.step:,}"
    yield "processes", f"{checkpoint.manifest['world_size']:,}"
    for name in SETTINGS:
        value = settings.get(name)
        if value not in (None, []):
            yield f"`--{name}`", " ".join(value) if isinstance(value, list) else str(value)


def _evaluations(path: Path, step: int) -> list[str]:
    """The first evaluation of each set and the last one up to `step`; nothing if there was none."""
    if not path.is_file():
        return []
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [line for line in lines if line["step"] <= step]
    rows = []
    for name in sorted({name for line in lines for name in line["eval"]}):
        of_set = [line for line in lines if name in line["eval"]]
        for line in of_set[:1] + of_set[1:][-1:]:
            figures = (_figure(line["eval"][name], key) for key in ("loss", "perplexity", "bits_per_byte"))
            rows.append((name, f"{line['step']:,}", *figures))
    if not rows:
        return []
    return ["## Evaluation", _table(("set", "step", "loss (nats a token)", "perplexity", "bits a byte"), rows)]


def _figure(figures: Mapping[str, Any], key: str) -> str:
    value = figures.get(key)
    return "none" if value is None else f"{value:.4f}"


def _lineage(lineage: Mapping[str, Any]) -> list[str]:
    """A row for each record that names files, indented below what was made from it."""
    rows = [
        (f"{INDENT * (link.depth - 1)}{link.role}", link.record["kind"], str(len(link.record["sha256"])), digest)
        for link in walk("", dict(lineage))
        if (digest := content_sha256(link.record)[:DIGITS])
    ]
    if not rows:
        return []
    explained = (
        "What this model was made from, and, indented, what that was made from. The digest of one file is its sha256, "
        "that of several the sha256 of what `sha256sum` prints for them in the order of their names; `manifest.json` "
        "names each of them."
    )
    return ["## Lineage", explained, _table(("made from", "kind", "files", "digest"), rows)]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
