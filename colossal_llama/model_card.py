"""A checkpoint comes in; the model card of its export goes out, in Markdown with Hugging Face's front matter.

Only what the checkpoint, its run's evaluations.jsonl and the lineage say; of paths only the last name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from colossal_llama.checkpoint import Checkpoint

EVALUATIONS = "evaluations.jsonl"
SETTINGS = (
    *("plugin", "mixed_precision", "lr", "embeds_lr", "lr_schedule", "lr_floor", "warmup_steps", "weight_decay"),
    *("gradient_clipping", "micro_batch_size", "accumulation_steps", "max_length", "document_mask", "num_epochs"),
    *("train", "stages", "lora_rank", "lora_alpha", "seed"),
)
"""Flags of train.py that decide what was learnt, in the card's order; those without a value are left out."""
DIGITS = 16  # of a sha256; manifest.json has all of them

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
    rows = [
        (role, record["kind"], str(len(record["sha256"])), digest_of(record["sha256"])[:DIGITS])
        for role, record in records_of(lineage)
        if record.get("sha256")
    ]
    if not rows:
        return []
    explained = (
        "What this model was made from, and what that was made from. A digest is the sha256 over the lines "
        "`<sha256>  <name>` of a record's files, sorted by name, as `sha256sum` prints them; `manifest.json` has "
        "each of them."
    )
    return ["## Lineage", explained, _table(("made from", "kind", "files", "digest"), rows)]


def records_of(record: Mapping[str, Any], above: Sequence[str] = ()) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(roles from the top on, record) of everything that a record was made from, nearest first."""
    for role, made in record.get("made_from", {}).items():
        for part in made if isinstance(made, list) else [made]:
            yield " < ".join((*above, role)), part
            yield from records_of(part, (*above, role))


def digest_of(sha256: Mapping[str, str]) -> str:
    """One sha256 for the files of a record, {name: sha256}."""
    return hashlib.sha256("".join(f"{sha256[name]}  {name}\n" for name in sorted(sha256)).encode()).hexdigest()


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
