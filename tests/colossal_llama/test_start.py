"""Where a run begins: a directory is what lies in it. And what a checkpoint's flags say against the present ones."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from colossal_llama.checkpoint import LATEST, VERSION, Checkpoint, open_checkpoint
from colossal_llama.config import TrainConfig
from colossal_llama.progress import Progress
from colossal_llama.run_plan import Plan, make_plan
from colossal_llama.start import Start, check_changes, find_start, going_on, kind_of
from tokenizer_tools.command import UserError
from tokenizer_tools.outputs import write_json

PROGRESS = Progress(10, 0, 40, 4000, seed=42, data_fingerprint="d" * 64, tokenizer_fingerprint="t" * 64)
CONFIG = TrainConfig(pretrained=Path("m"), dataset=[Path("d")], warmup_steps=0)
NUM_ROWS, ROWS_PER_STEP = 100, 4


def plan_of(config: TrainConfig, progress: Progress) -> Plan:
    return make_plan(config, progress, NUM_ROWS, ROWS_PER_STEP)


def write_checkpoint(path: Path, config: TrainConfig = CONFIG, progress: Progress = PROGRESS) -> Path:
    """A checkpoint without weights: complete as far as names and sizes tell."""
    model = path / "modeling"
    model.mkdir(parents=True)
    (path / "optimizer").mkdir()
    (model / "config.json").write_text("{}")
    write_json(path / "running_states.json", progress.as_json())
    write_json(path / "train_config.json", config.as_json())
    write_json(path / "lr_scheduler", plan_of(config, progress).schedule_after(progress.step))
    files = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    sizes = {name: len(content) for name, content in files.items()}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    write_json(path / "manifest.json", {"version": VERSION, "world_size": 2, "sizes_bytes": sizes, "sha256": hashes})
    return path


def write_run(save_dir: Path, latest: str | None = "epoch-0_step-10") -> Path:
    """A run with one checkpoint, or none."""
    save_dir.mkdir(parents=True)
    (save_dir / "train_config.json").write_text("{}")
    if latest is not None:
        write_checkpoint(save_dir / latest)
        (save_dir / LATEST).write_text(f"{latest}\n")
    return save_dir


def given(path: Path, save_dir: Path) -> TrainConfig:
    return replace(CONFIG, load_checkpoint=path, save_dir=save_dir)


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was logged so far."""
    caplog.set_level(logging.INFO, "colossal_llama")
    return lambda: [record.getMessage() for record in caplog.records]


# --- what a directory is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["config.json", "model.safetensors"], "model"),
        (["adapter_config.json", "adapter_model.safetensors"], "adapter"),
        (["train_config.json", "metrics.jsonl"], "run"),
        (["latest", "epoch-0_step-10/running_states.json"], "run"),
        (["train_config.json", "modeling/config.json"], "run"),  # finished
        (["running_states.json", "train_config.json", "modeling/config.json"], "checkpoint"),
        (["train_config.json", "modeling/config.json", "optimizer/parts.json"], "checkpoint"),  # its position is lost
        (["notes.txt", "model.safetensors"], None),
        ([], None),
    ],
)
@pytest.mark.parametrize("name", ["epoch-0_step-10", "modeling", "language-modeling run"])
def test_a_directory_is_what_it_holds(files: list[str], kind: str | None, name: str, tmp_path: Path) -> None:
    directory = tmp_path / name
    directory.mkdir()
    for file in files:
        (directory / file).parent.mkdir(exist_ok=True)
        (directory / file).write_text("{}")
    link = tmp_path / "link"
    link.symlink_to(directory)
    assert (kind_of(directory), kind_of(link)) == (kind, kind)


PLACES = ["data/language-modeling/run/epoch-0_step-10", "modeling/modeling", "my best", "latest", "epoch-9_step-99"]


@pytest.mark.parametrize("place", PLACES)
def test_a_checkpoint_of_any_name_goes_on(place: str, tmp_path: Path, heard: Callable[[], list[str]]) -> None:
    path = write_checkpoint(tmp_path / place)
    start = find_start(given(path, tmp_path / "new"))
    assert (start.model_dir, start.checkpoint and start.checkpoint.progress) == (path / "modeling", PROGRESS)
    assert heard() == [f"checkpoint {path}: weights, optimizer and position"]


@pytest.mark.parametrize("place", PLACES)
def test_its_modeling_folder_gives_its_weights_alone(
    place: str, tmp_path: Path, heard: Callable[[], list[str]]
) -> None:
    path = write_checkpoint(tmp_path / place) / "modeling"
    assert find_start(given(path, tmp_path / "new")) == Start(path, None)
    assert heard() == [f"--load_checkpoint {path}: its weights alone; the optimizer and the rows begin anew"]


def test_links_lead_where_they_lead(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "epoch-0_step-10")
    whole, weights = tmp_path / "modeling", tmp_path / "epoch-0_step-11"
    whole.symlink_to(path)
    weights.symlink_to(path / "modeling")
    assert find_start(given(whole, tmp_path / "new")).checkpoint is not None
    assert find_start(given(weights, tmp_path / "new")).checkpoint is None


def test_a_run_goes_on_from_its_newest_checkpoint_which_is_said(tmp_path: Path, heard: Callable[[], list[str]]) -> None:
    run = write_run(tmp_path / "epoch-1_step-1")
    start = find_start(given(run, tmp_path / "new"))
    assert start.checkpoint is not None and start.checkpoint.path == run / "epoch-0_step-10"
    assert heard() == [f"checkpoint {run / 'epoch-0_step-10'}: weights, optimizer and position"]


def test_a_run_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", latest=None)
    with pytest.raises(
        UserError, match=f"--load_checkpoint {run}: a run without a complete checkpoint yet; name anoth"
    ):
        find_start(given(run, tmp_path / "new"))


def test_something_else_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    runs = write_run(tmp_path / "runs" / "a").parent
    with pytest.raises(UserError) as caught:
        find_start(given(runs, tmp_path / "new"))
    assert f"--load_checkpoint {runs}: holds no checkpoint (running_states.json), run (latest)" in str(caught.value)
    assert "model (config.json) or adapter (adapter_config.json); name one of these" in str(caught.value)


def test_half_a_checkpoint_is_not_taken_for_a_run(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "run")
    (path / "running_states.json").unlink()
    with pytest.raises(UserError, match=r"running_states\.json: missing"):
        find_start(given(path, tmp_path / "new"))


def test_the_own_checkpoint_comes_first_and_is_said(tmp_path: Path, heard: Callable[[], list[str]]) -> None:
    run, other = write_run(tmp_path / "run"), write_checkpoint(tmp_path / "other")
    start = find_start(given(other, run))
    assert start.checkpoint is not None and start.checkpoint.path.parent == run
    assert (
        f"--load_checkpoint {other} is left alone: --save_dir has epoch-0_step-10, from which the run goes on"
        in heard()[0]
    )


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_where_it_began(tmp_path: Path) -> None:
    run, other = write_run(tmp_path / "run", latest=None), write_checkpoint(tmp_path / "other")
    start = find_start(given(other, run))
    assert start.checkpoint is not None and start.checkpoint.path == other
    assert find_start(replace(CONFIG, save_dir=run)) == Start(CONFIG.pretrained, None)


@pytest.mark.parametrize("fill", [write_checkpoint, lambda path: shutil.copytree(Path(__file__).parent, path)])
def test_what_is_no_run_is_not_written_into(fill: Callable[[Path], Any], tmp_path: Path) -> None:
    fill(tmp_path / "run")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=f"--save_dir {tmp_path / 'run'}: is not empty and holds no run"):
            find_start(replace(CONFIG, save_dir=tmp_path / "run", overwrite=overwrite))


# --- other flags than the checkpoint's --------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(write_checkpoint(tmp_path / "checkpoint"))


def told(checkpoint: Checkpoint, config: TrainConfig, heard: Callable[[], list[str]], world_size: int = 2) -> list[str]:
    check_changes(Start(checkpoint.modeling, checkpoint), config, plan_of(config, checkpoint.progress), world_size)
    return heard()


def test_the_same_flags_need_no_word(checkpoint: Checkpoint, heard: Callable[[], list[str]]) -> None:
    assert told(checkpoint, replace(CONFIG, save_dir=Path("elsewhere")), heard) == []


def test_every_change_is_said_with_what_follows(checkpoint: Checkpoint, heard: Callable[[], list[str]]) -> None:
    config = replace(CONFIG, lr=1e-3, lr_schedule="constant", num_epochs=2, plugin="zero2", weight_decay=0.0)
    old_rate = plan_of(CONFIG, PROGRESS).stages[0].lr_at(10)
    assert told(checkpoint, config, heard, world_size=1) == [
        "changed: --plugin gemini -> zero2",
        "changed: --num_epochs 1 -> 2",
        "changed: --lr 0.0003 -> 0.001",
        "changed: --lr_schedule cosine -> constant",
        "changed: --weight_decay 0.1 -> 0",
        "changed: processes 2 -> 1",
        "changed: steps of the run 25 -> 50",
        f"changed: learning rate of the next step {old_rate:.6g} -> 0.001",
        f"changed: learning rate of the embeddings in the next step {old_rate:.6g} -> 0.001",
    ]


def test_another_stage_in_progress_is_refused(checkpoint: Checkpoint, heard: Callable[[], list[str]]) -> None:
    with pytest.raises(UserError, match=r"stage 1 \(all\), the next one would be in stage 1 \(embeds\); keep"):
        told(checkpoint, replace(CONFIG, train="embeds"), heard)
    assert heard() == []


def test_other_adapters_are_refused(tmp_path: Path, heard: Callable[[], list[str]]) -> None:
    config = replace(CONFIG, lora_rank=4)
    adapter = open_checkpoint(write_checkpoint(tmp_path / "c", config, replace(PROGRESS, trained="lora")))
    assert told(adapter, config, heard) == []
    with pytest.raises(UserError, match="--lora_alpha 8 -> 3: the adapters of the checkpoint"):
        told(adapter, replace(config, lora_alpha=3.0), heard)


@pytest.mark.parametrize(
    ("progress", "flags", "words"),
    [
        (PROGRESS, {"max_steps": 7}, "step 10 is done, --max_steps is 7"),
        (PROGRESS, {"max_steps": 10}, "step 10 is done, --max_steps is 10"),
        (
            replace(PROGRESS, epoch=2, num_rows_seen=230),
            {},
            "every row was seen 2 time(s) by step 10, --num_epochs is 1",
        ),
        (
            replace(PROGRESS, epoch=1, num_rows_seen=100),
            {},
            "every row was seen 1 time(s) by step 10, --num_epochs is 1",
        ),
    ],
)
def test_a_run_behind_its_end_says_why_nothing_happens(
    progress: Progress, flags: dict[str, Any], words: str, tmp_path: Path, heard: Callable[[], list[str]]
) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "c", replace(CONFIG, num_epochs=3), progress))
    assert told(checkpoint, replace(CONFIG, **flags), heard)[-1] == f"nothing is left to train: {words}"


def test_without_a_checkpoint_there_is_nothing_to_compare(heard: Callable[[], list[str]]) -> None:
    begin = Start(Path("m"), None)
    check_changes(begin, CONFIG, plan_of(CONFIG, Progress()), 2)
    assert going_on(begin, PROGRESS, restarts_data=False) == begin
    assert heard() == []


def test_other_data_restarts_the_rows_and_says_so(checkpoint: Checkpoint, heard: Callable[[], list[str]]) -> None:
    start = Start(checkpoint.modeling, checkpoint)
    now = replace(Progress(), seed=7, data_fingerprint="e" * 64, tokenizer_fingerprint="t" * 64)
    with pytest.raises(UserError, match="another --dataset"):
        going_on(start, now, restarts_data=False)
    restarted = going_on(start, now, restarts_data=True).checkpoint
    assert restarted is not None
    assert restarted.progress == replace(PROGRESS, epoch=0, num_rows_seen=0, seed=7, data_fingerprint="e" * 64)
    assert heard() == [
        f"--restart_data: data {'d' * 64} -> {'e' * 64}, seed 42 -> 7; rows are read from the first one on, "
        "40 of the old order were"
    ]


def test_another_seed_alone_is_named_alone(checkpoint: Checkpoint, heard: Callable[[], list[str]]) -> None:
    now = replace(PROGRESS, seed=7)
    going_on(Start(checkpoint.modeling, checkpoint), now, restarts_data=True)
    assert heard()[0].startswith("--restart_data: seed 42 -> 7; rows are read from the first one on")


def test_the_flag_left_on_the_command_line_does_nothing(checkpoint: Checkpoint, heard: Callable[[], list[str]]) -> None:
    start = Start(checkpoint.modeling, checkpoint)
    now = replace(PROGRESS, step=0, epoch=0, num_rows_seen=0)
    assert going_on(start, now, restarts_data=True) == start
    assert heard() == []


def test_flags_of_a_checkpoint_that_cannot_be_read_are_named(checkpoint: Checkpoint, heard: Any) -> None:
    (checkpoint.path / "train_config.json").write_text(json.dumps([]))
    with pytest.raises(UserError, match=r"train_config\.json: holds a JSON list, .*expected the flags of a checkpoint"):
        told(checkpoint, CONFIG, heard)
