"""Whole rehearsals on tiny models: what passes, what fails, and what stays behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from colossal_llama.config import TrainConfig
from colossal_llama.rehearsal.ranks import Start
from colossal_llama.rehearse import rehearse
from tests.colossal_llama.killing import Job, Launcher, until
from tests.colossal_llama.runs import ROW_LENGTH
from tests.conftest import argv_of, write_llama_tokenizer
from tokenizer_tools.command import command

TRAIN = Path(__file__).parent.parent.parent / "train.py"
STAGED = ["new_rows,steps=200,lr=1e-3", "all,lr=3e-4,warmup_steps=100"]


class Forked:
    """Ranks of the tests' own launcher, which need no second for their imports."""

    def __init__(self, job: Job, world_size: int) -> None:
        self._job, self._codes = job, [None] * world_size
        self.logs = [job._log.with_name(f"{job._log.name}.rank{rank}") for rank in range(world_size)]

    def exit_codes(self) -> list[int | None]:
        if self._codes[0] is None and all(self._has_ended(pid) for pid in self._job._pids):
            self._codes = self._job.wait()
        return self._codes

    def cpu_seconds(self) -> float:
        return 0.0

    def kill(self) -> None:
        if self._codes[0] is None:
            self._codes = self._job.kill()

    def _has_ended(self, pid: int) -> bool:
        return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def forked(launcher: Launcher) -> Start:
    """Starts what the file of flags says."""

    def start(flags: Path, world_size: int, _: Path) -> Forked:
        values = json.loads(flags.read_text())
        given = {name: value for name, value in values.items() if value is not None and value is not False}
        words = {name: value for name, value in given.items() if value != [] and name != "save_dir"}
        return Forked(launcher.start(world_size, Path(values["save_dir"]), **words), world_size)

    return start


@pytest.fixture
def grown_model_dir(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """The tiny model as if init_model had added its last 40 rows."""
    shutil.copytree(tiny_model_dir, tmp_path / "grown")
    manifest = json.loads((tmp_path / "grown" / "manifest.json").read_text())
    manifest["vocab_size"] = {"before": 472, "after": 512}
    (tmp_path / "grown" / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path / "grown"


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where rehearsals are held."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


Outcome = tuple[int, list[str], str]


@pytest.fixture
def outcome(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """`outcome(start, **flags)`: exit code, lines of stdout, the last line of stderr."""

    def run(start: Start, **flags: Any) -> Outcome:
        program = command(TrainConfig)(lambda config: rehearse(config, start))
        capsys.readouterr()
        try:
            code = program(argv_of(**flags, rehearse=True))
        except SystemExit as end:
            code = int(str(end.code))
        said = capsys.readouterr()
        return code, said.out.splitlines(), ["", *said.err.splitlines()][-1]

    return run


def verdicts(lines: list[str]) -> dict[str, str]:
    """{check: verdict}"""
    rows = [line.split() for line in lines]
    names = ("flags", "data", "model", "shrunken", "run", "kill", "resume", "same", "export")
    return {row[0]: next(word for word in row if word in ("passed", "FAILED")) for row in rows if row[:1][0] in names}


def tree(directory: Path) -> list[str]:
    return sorted(str(path) for path in directory.rglob("*"))


def test_a_staged_run_is_rehearsed_with_all_its_switches(
    forked: Start,
    outcome: Callable[..., Outcome],
    grown_model_dir: Path,
    tiny_bins_dir: Path,
    tmp_path: Path,
    temporary: Path,
) -> None:
    code, lines, last = outcome(
        forked,
        pretrained=grown_model_dir,
        load_checkpoint=tmp_path / "run" / "warmup" / "modeling",
        dataset=tiny_bins_dir,
        save_dir=tmp_path / "run" / "full",
        config_file=tmp_path / "written.yaml",
        plugin="zero2",
        stages=STAGED,
        mixed_precision="fp16",
        max_length=ROW_LENGTH,
        micro_batch_size=4,
        accumulation_steps=3,
        document_mask=True,
        use_grad_checkpoint=True,
        eval_dataset=f"some={tiny_bins_dir / 'part-00000'}",
        tensorboard_dir=tmp_path / "curves",
        time_limit="4h",
        keep_checkpoints=1,
    )
    assert (code, set(verdicts(lines).values())) == (0, {"passed"}), (lines, last)
    assert len(verdicts(lines)) == 9
    text = "\n".join(lines)
    assert "6 steps in 2 stage(s) on 2 process(es); loss 6." in text
    assert "all 512 rows of the vocabulary" in text
    assert "the newest checkpoint is of step 4 of 6" in text
    assert f"warning: --load_checkpoint {tmp_path}/run/warmup/modeling: not there yet" in text
    assert "changed: --mixed_precision fp16 -> bf16 (fp16 cannot be right on a CPU)" in text
    assert "changed: --accumulation_steps 3 -> 2" in text
    assert "--document_mask" not in text
    assert lines[-1].startswith("rehearsal passed: 9 checks in ")
    assert tree(temporary) == [], "nothing stays behind"
    assert not any((tmp_path / name).exists() for name in ("run", "written.yaml", "curves"))


def test_a_divided_model_is_rehearsed_in_its_layout_and_must_resume_right(
    forked: Start,
    outcome: Callable[..., Outcome],
    tiny_model_dir: Path,
    tiny_bins_dir: Path,
    tmp_path: Path,
    temporary: Path,
) -> None:
    """Started again with another learning rate, the killed run ends otherwise: the verdict has to see it."""
    flags: dict[str, Any] = {
        **{"pretrained": tiny_model_dir, "dataset": tiny_bins_dir, "save_dir": tmp_path / "run"},
        **{"plugin": "3d", "tp": 2, "zero": 1, "max_length": ROW_LENGTH, "max_steps": 5000},
    }
    num_starts = 0

    def tampering(flags_file: Path, world_size: int, log: Path) -> Any:
        nonlocal num_starts
        num_starts += 1
        values = json.loads(flags_file.read_text())
        assert (values["plugin"], values["tp"], values["zero"], world_size) == ("3d", 2, 1, 4)
        if num_starts == 3:
            flags_file.write_text(json.dumps(values | {"lr": values["lr"] * 2}))
        return forked(flags_file, world_size, log)

    code, lines, last = outcome(tampering, **flags)
    assert (code, num_starts) == (1, 3)
    found = verdicts(lines)
    assert found["resume"] == "passed"
    assert found["same"] == "FAILED"
    assert "export" not in found
    start = (
        "error: rehearsal failed at same end: the resumed run ended otherwise than the undisturbed one: lr of step 3: "
    )
    assert last.startswith(start)


def test_the_command_itself_refuses_data_of_another_tokenizer(
    tiny_model_dir: Path, tiny_bins_dir: Path, base_tokenizer_dir: Path, tmp_path: Path, temporary: Path
) -> None:
    """train.py with processes of its own, in the run's own words; what they have said stays."""
    other = tmp_path / "other"
    shutil.copytree(tiny_model_dir, other)
    write_llama_tokenizer(other, (base_tokenizer_dir / "tokenizer.model").read_bytes())
    for name in ("manifest.json", "tokenizer.json"):
        (other / name).unlink(missing_ok=True)
    config = json.loads((other / "config.json").read_text())
    words = argv_of(pretrained=other, dataset=tiny_bins_dir, save_dir=tmp_path / "run", plugin="zero2", rehearse=True)
    assert config["vocab_size"] == 512
    done = subprocess.run(
        [sys.executable, str(TRAIN), *words], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: rehearsal failed at run: {tiny_bins_dir}: made with tokenizer "), done.stderr
    assert "prepare the data with the model's own tokenizer directory" in last
    assert verdicts(done.stdout.splitlines())["run"] == "FAILED"
    (kept,) = temporary.iterdir()
    assert f"what the processes have said is in {kept}" in done.stderr
    assert sorted(path.name for path in kept.iterdir()) == ["undisturbed.rank0.log", "undisturbed.rank1.log"]
    assert not (tmp_path / "run").exists()


def test_an_interrupt_leaves_nothing(
    tiny_model_dir: Path, tiny_bins_dir: Path, tmp_path: Path, temporary: Path
) -> None:
    words = argv_of(pretrained=tiny_model_dir, dataset=tiny_bins_dir, save_dir=tmp_path / "run", rehearse=True)
    process = subprocess.Popen([sys.executable, str(TRAIN), *words], stderr=subprocess.PIPE, text=True)
    children: list[psutil.Process] = []
    try:
        for _ in until(lambda: list(temporary.glob("*/logs/undisturbed.rank1.log")), 60):
            pass
        children = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert len(children) == 2
    assert process.returncode == 130
    assert said.splitlines()[-1] == "error: interrupted; nothing half-written was left behind"
    assert not any(child.is_running() for child in children)
    assert tree(temporary) == []


@pytest.mark.parametrize("environment", [{"RANK": "1"}, {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}])
def test_a_launcher_is_told_to_stay_away(
    environment: dict[str, str],
    forked: Start,
    outcome: Callable[..., Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, lines, last = outcome(forked, pretrained=tmp_path, dataset=tmp_path)
    assert (code, lines) == (2, [])
    assert last.endswith("leave the launcher away: python train.py ... --rehearse")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"tp": 2}, "rehearsal failed at flags: --tp/--pp/--sp above 1 need --plugin 3d"),
        ({"max_length": 0}, "rehearsal failed at flags: --max_length 0: must be at least 2"),
        (
            {"plugin": "3d", "zero": 0, "tp": 4},
            "failed at model: a llama model: --tp 4 does not divide its 2 key-value",
        ),
        ({"plugin": "3d", "zero": 0, "sp": 3, "tp": 1}, "--sp 3 does not divide its 4 attention heads"),
        ({"load_checkpoint": os.devnull}, f"failed at flags: --load_checkpoint {os.devnull}: no such directory"),
    ],
)
def test_what_the_real_run_would_refuse_at_once_is_refused_at_once(
    flags: dict[str, Any],
    words: str,
    forked: Start,
    outcome: Callable[..., Outcome],
    tiny_model_dir: Path,
    tiny_bins_dir: Path,
    temporary: Path,
) -> None:
    code, lines, last = outcome(forked, pretrained=tiny_model_dir, dataset=tiny_bins_dir, **flags)
    assert code == 2
    assert words in last
    assert "FAILED" in verdicts(lines).values()
    assert tree(temporary) == [], "no process has said anything"


def test_a_save_dir_that_is_no_run_is_refused(
    forked: Start, outcome: Callable[..., Outcome], tiny_model_dir: Path, tiny_bins_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    code, _, last = outcome(forked, pretrained=tiny_model_dir, dataset=tiny_bins_dir, save_dir=tmp_path / "full")
    assert code == 2
    assert "rehearsal failed at model: --save_dir" in last
    assert "is not empty and holds no run" in last


def test_a_vocabulary_that_the_real_layout_cannot_divide_is_refused(
    forked: Start, outcome: Callable[..., Outcome], grown_model_dir: Path, tiny_bins_dir: Path
) -> None:
    config = json.loads((grown_model_dir / "config.json").read_text())
    heads = {"num_attention_heads": 24, "num_key_value_heads": 24, "intermediate_size": 120, "hidden_size": 96}
    (grown_model_dir / "config.json").write_text(json.dumps(config | heads | {"head_dim": 4}))
    code, _, last = outcome(forked, pretrained=grown_model_dir, dataset=tiny_bins_dir, plugin="3d", zero=0, tp=3)
    assert code == 2
    assert "rehearsal failed at model: vocabulary of 512 pieces with --tp 3: each rank needs an equal slice" in last
