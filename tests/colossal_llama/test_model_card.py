"""The model card of an export: what it says is in the checkpoint, and nothing else is said."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from colossal_llama.checkpoint import Checkpoint, open_checkpoint
from colossal_llama.model_card import model_card


@pytest.fixture
def checkpoint(zero2_run: Path, tmp_path: Path) -> Checkpoint:
    """The first of two checkpoints of a run, in a copy of it."""
    return open_checkpoint(shutil.copytree(zero2_run, tmp_path / "my run") / "epoch-0_step-4")


def card_of(checkpoint: Checkpoint, **changed: Any) -> str:
    settings, lineage = (
        json.loads((checkpoint.path / name).read_text()) for name in ("train_config.json", "lineage.json")
    )
    return model_card(checkpoint, settings | changed, lineage, "Proved.")


def table_of(card: str, title: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    lines = card.partition(f"## {title}\n")[2].partition("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]
    return rows[2:]


def test_front_matter_is_what_the_hub_reads(checkpoint: Checkpoint) -> None:
    card = card_of(checkpoint, pretrained="/elsewhere/Grown: Llama #7")
    head = yaml.safe_load(card.split("---\n")[1])
    assert head == {
        "base_model": "Grown: Llama #7",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
    }


def test_data_and_settings_are_the_checkpoints(checkpoint: Checkpoint) -> None:
    card = card_of(checkpoint, save_dir="/elsewhere/zh run")
    states = json.loads((checkpoint.path / "running_states.json").read_text())
    assert "# zh run, step 4" in card
    counts = {name: int(count.replace(",", "")) for name, count in table_of(card, "Data")}
    assert counts == {**states["tokens_by_category"], "all": states["num_tokens_seen"]}
    assert f"{states['num_rows_seen']} rows" in card
    settings = dict(table_of(card, "Settings"))
    assert (settings["steps"], settings["processes"]) == ("4", "2")
    assert (settings["`--lr`"], settings["`--plugin`"], settings["`--micro_batch_size`"]) == ("0.002", "zero2", "2")
    assert "`--embeds_lr`" not in settings, "it was not set"
    assert "Proved." in card


def test_no_path_but_last_names(checkpoint: Checkpoint, tmp_path: Path) -> None:
    card = card_of(checkpoint)
    assert str(tmp_path) not in card
    settings = json.loads((checkpoint.path / "train_config.json").read_text())
    for path in (settings["pretrained"], *settings["dataset"]):
        assert f"`{Path(path).name}`" in card
        assert str(Path(path).parent) not in card


def test_stages_stand_in_one_cell(checkpoint: Checkpoint) -> None:
    settings = dict(table_of(card_of(checkpoint, stages=["new_rows,steps=2", "all"]), "Settings"))
    assert settings["`--stages`"] == "new_rows,steps=2 all"


def test_evaluations_up_to_the_checkpoint_are_told(checkpoint: Checkpoint) -> None:
    assert "## Evaluation" not in card_of(checkpoint)
    lines = [
        {"step": step, "eval": {"zh": {"loss": 5.0 - step, "perplexity": 9.5, "bits_per_byte": None}}}
        for step in (0, 2, 4, 6)
    ]
    path = checkpoint.path.parent / "evaluations.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert table_of(card_of(checkpoint), "Evaluation") == [
        ["zh", "0", "5.0000", "9.5000", "none"],
        ["zh", "4", "1.0000", "9.5000", "none"],
    ]
    path.write_text(json.dumps(lines[3]) + "\n")
    assert "## Evaluation" not in card_of(checkpoint), "a later one is not this checkpoint's"


def test_lineage_names_everything_back_to_the_beginning(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """A file's digest is what sha256sum gives for it; that of several is what it gives for its own output."""
    rows = table_of(card_of(checkpoint), "Lineage")
    assert [role for role, *_ in rows] == ["model", "· tokenizer", "· config", "tokenizer", "data", "· tokenizer"]
    lineage = json.loads((checkpoint.path / "lineage.json").read_text())["made_from"]
    source = Path(json.loads((checkpoint.path / "train_config.json").read_text())["pretrained"])
    assert rows[0] == [
        "model",
        "model",
        str(len(lineage["model"]["sha256"])),
        summed(source, *lineage["model"]["sha256"]),
    ]
    (config,) = lineage["model"]["made_from"]["config"]["sha256"].values()
    assert rows[2] == ["· config", "config", "1", config[:16]]


def summed(directory: Path, *names: str) -> str:
    """`sha256sum NAMES | sha256sum`, the first 16 digits."""
    printed = subprocess.run(["sha256sum", *sorted(names)], cwd=directory, capture_output=True, check=True).stdout
    return hashlib.sha256(printed).hexdigest()[:16]


def test_nothing_is_said_of_a_lineage_without_files(checkpoint: Checkpoint) -> None:
    settings = json.loads((checkpoint.path / "train_config.json").read_text())
    assert "## Lineage" not in model_card(checkpoint, settings, {}, "Proved.")
