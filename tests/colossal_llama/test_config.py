"""The flags of train.py: every rule that needs neither torch nor ranks, each by its one line on stderr."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import train
from colossal_llama.checks import check
from colossal_llama.config import TrainConfig
from tokenizer_tools.command import parse_config

WRONG_FLAGS = [
    *[
        pytest.param([f"--{name}", str(value)], [f"--{name} {value}", f"at least {bound}"], id=name)
        for name, value, bound in [
            ("save_interval", 0, 1),
            ("keep_checkpoints", -1, 0),
            ("num_epochs", 0, 1),
            ("micro_batch_size", 0, 1),
            ("accumulation_steps", -3, 1),
            ("max_length", 1, 2),
            ("eval_interval", 0, 1),
            ("log_interval", 0, 1),
            ("tp", 0, 1),
            ("pp", 0, 1),
            ("sp", 0, 1),
            ("max_steps", 0, 1),
            ("global_batch_size", 0, 1),
            ("warmup_steps", -1, 0),
            ("max_eval_samples", 0, 1),
        ]
    ],
    (["--weight_decay", "-0.1"], ["--weight_decay -0.1", "0 or a positive number"]),
    (["--gradient_clipping", "inf"], ["--gradient_clipping inf", "0 or a positive number"]),
    (["--gradient_clipping", "nan"], ["--gradient_clipping nan", "0 or a positive number"]),
    (["--spike_threshold", "-1"], ["--spike_threshold -1.0", "0 or a positive number"]),
    (["--embeds_lr", "0"], ["--embeds_lr 0.0", "positive number, such as 1e-3"]),
    (["--peak_tflops", "nan"], ["--peak_tflops nan", "positive number, such as 312"]),
    (["--lr_floor", "1.5"], ["--lr_floor 1.5", "from 0 to 1"]),
    (["--lr_decay_share", "0"], ["--lr_decay_share 0.0", "share of the steps"]),
    (["--watch", "zh=0.1"], ["--watch zh=0.1", "NAME=BOUND of an --eval_dataset"]),
    (["--eval_dataset", "zh=.", "--watch", "zh=low"], ["--watch zh=low", "such as en=0.05"]),
    (["--eval_dataset", "zh=.", "--watch", "zh"], ["--watch zh:", "NAME=BOUND"]),
    (["--freeze_non_embeds_params", "--train", "new_rows"], ["is --train embeds", "leave it away"]),
    (["--stages", "all", "--train", "embeds"], ["leave --train embeds away"]),
    (["--stages", "all", "--freeze_non_embeds_params"], ["leave --freeze_non_embeds_params away"]),
    (["--lora_rank", "4", "--plugin", "zero2", "--lora_alpha", "nan"], ["--lora_alpha nan", "such as 32"]),
    (["--save_dir", __file__], ["is a file", "name a directory"]),
    (["--stages", "everything"], ["--stages everything", "says what trains"]),
    (
        ["--plugin", "3d", "--pp", "3", "--accumulation_steps", "3", "--train", "new_rows"],
        ["training new_rows", "--pp 2"],
    ),
    (
        ["--plugin", "3d", "--pp", "3", "--accumulation_steps", "3", "--embeds_lr", "1e-3"],
        ["--embeds_lr with --pp 3", "use --zero 0"],
    ),
    (["--lora_rank", "-4", "--plugin", "zero2"], ["--lora_rank -4", "0 for no adapters"]),
    (["--lora_rank", "4", "--plugin", "gemini"], ["--lora_rank with --plugin gemini", "use zero2"]),
    (["--lora_rank", "4", "--plugin", "3d", "--tp", "2"], ["--lora_rank with --tp", "use zero2"]),
    (["--lora_rank", "4", "--plugin", "zero2", "--train", "embeds"], ["--lora_rank trains adapters in the whole run"]),
    (["--lora_rank", "4", "--plugin", "zero2", "--stages", "lora,steps=2", "all"], ["leave --train and other stages"]),
    (["--stages", "lora"], ["--stages lora", "--lora_rank"]),
    (["--lora_rank", "4", "--plugin", "zero2", "--lora_targets"], ["--lora_targets: names no layer", "q_proj"]),
    (["--wandb_project", "x"], ["--wandb_project x", "pip install wandb"]),
    (["--seed", "-1"], ["--seed -1", "from 0 to 4294967295"]),
    (["--eval_dataset", "zh=.", "zh=."], ["--eval_dataset zh=", "named twice"]),
    (["--pretrained", ".", "--save_dir", "."], ["--save_dir .: is the input .", "choose another directory"]),
    (
        ["--plugin", "3d", "--pp", "3", "--accumulation_steps", "3", "--freeze_non_embeds_params"],
        ["training embeds with --pp 3", "use --pp 2"],
    ),
    (["--time_limit", "45"], ["--time_limit 45: must be a time with its unit", "45m", "04:00:00"]),
    (["--lost_after", "2s"], ["--lost_after 2s: must be at least 3s"]),
    (["--lost_after", "30"], ["--lost_after 30: must be a time with its unit", "90s"]),
    (["--stall_limit", "never"], ["--stall_limit never: must be a time with its unit"]),
    (["--lr", "0"], ["--lr 0.0", "positive number, such as 3e-4"]),
    (["--lr", "nan"], ["--lr nan", "positive number"]),
    (["--pretrained", "nowhere"], ["--pretrained nowhere", "no such directory", "init_model"]),
    (["--dataset", "nowhere"], ["--dataset nowhere", "no such directory", "prepare_pretrain_dataset"]),
    (["--load_checkpoint", "nowhere"], ["--load_checkpoint nowhere", "no such directory"]),
    (["--eval_dataset", "zh"], ["--eval_dataset zh", "NAME=PATH"]),
    (["--eval_dataset", "zh=nowhere"], ["--eval_dataset zh=nowhere", "nowhere is no directory"]),
    (["--plugin", "3d", "--zero", "3"], ["--zero 3", "0, 1 or 2"]),
    (["--plugin", "zero2", "--tp", "2"], ["--tp/--pp/--sp", "--plugin 3d, not zero2"]),
    (["--plugin", "gemini", "--mixed_precision", "fp32"], ["fp32", "gemini has only fp16 and bf16"]),
    (["--plugin", "gemini_auto", "--mixed_precision", "fp32"], ["fp32", "gemini_auto has only fp16 and bf16"]),
    (["--plugin", "ddp", "--mixed_precision", "fp16"], ["fp16", "ddp has no loss scaling"]),
    (["--plugin", "3d", "--pp", "2", "--zero", "2", "--accumulation_steps", "2"], ["--zero 2 with --pp", "--zero 1"]),
    (["--plugin", "3d", "--mixed_precision", "fp32"], ["fp32 with --zero 1", "only with --zero 0"]),
    (["--plugin", "3d", "--sp", "2", "--sp_mode", "ring"], ["--sp 2 with --sp_mode ring", "set --tp 2"]),
    (["--plugin", "3d", "--sp", "4", "--tp", "2", "--sp_mode", "split_gather"], ["--sp 4", "set --tp 4"]),
    (["--plugin", "3d", "--sp", "2", "--sp_mode", "ring_attn"], ["--sp_mode ring_attn", "use all_to_all"]),
    (["--plugin", "3d", "--pp", "4", "--micro_batch_size", "2"], ["--pp 4 needs at least 4", "--accumulation_steps 4"]),
    (["--learning_rate", "1"], ["--learning_rate", "--help"]),
    (["--plugin", "deepspeed"], ["deepspeed", "zero2_cpu"]),
    (["--lr", "fast"], ["fast", "--help"]),
    (["--lr", "-1", "--tp", "0"], ["--lr -1.0", "--tp 0"]),
]

EVERY_FLAG = {
    "plugin": "3d",
    "save_interval": 7,
    "keep_checkpoints": 2,
    "num_epochs": 3,
    "max_steps": 99,
    "micro_batch_size": 2,
    "accumulation_steps": 4,
    "global_batch_size": 12,
    "max_length": 128,
    "seed": 5,
    "train": "new_rows",
    "stages": ["new_rows,steps=200,lr=1e-3", "all"],
    "lr": 1e-4,
    "embeds_lr": 2e-4,
    "lr_schedule": "wsd",
    "lr_floor": 0.0,
    "lr_decay_share": 0.5,
    "document_mask": True,
    "on_anomaly": "stop",
    "spike_threshold": 0.5,
    "lora_rank": 8,
    "lora_alpha": 4.0,
    "lora_targets": ["q_proj"],
    "lora_modules_to_save": ["lm_head"],
    "max_eval_samples": 12,
    "watch": ["zh=0.1"],
    "peak_tflops": 312.0,
    "wandb_project": "x",
    "warmup_steps": 9,
    "weight_decay": 0.01,
    "gradient_clipping": 0.0,
    "mixed_precision": "fp32",
    "freeze_non_embeds_params": True,
    "use_grad_checkpoint": True,
    "use_flash_attn": True,
    "tp": 2,
    "pp": 2,
    "sp": 2,
    "sp_mode": "ring",
    "zero": 0,
    "eval_interval": 11,
    "log_interval": 3,
    "overwrite": True,
    "time_limit": "1-12:00:00",
    "lost_after": "1m",
    "stall_limit": "2h",
    "restart_data": True,
    "rehearse": True,
}


@pytest.fixture
def needed(tmp_path: Path) -> list[str]:
    """The two flags without a default."""
    return ["--pretrained", str(tmp_path), "--dataset", str(tmp_path)]


@pytest.mark.parametrize(("flags", "words"), WRONG_FLAGS)
def test_wrong_flag_is_one_line_and_exit_code_2(
    flags: list[str], words: list[str], needed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*needed, *flags]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert [word for word in words if word not in line] == []


def test_missing_flag_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--lr", "1e-4"]) == 2
    assert "--pretrained" in capsys.readouterr().err


def test_right_flags_have_no_problem(needed: list[str]) -> None:
    check(parse_config(TrainConfig, needed))
    for flags in (
        ["--plugin", "zero2", "--mixed_precision", "fp32", "--gradient_clipping", "0", "--warmup_steps", "0"],
        ["--plugin", "3d", "--tp", "2", "--sp", "2", "--sp_mode", "ring", "--zero", "2"],
        ["--plugin", "3d", "--pp", "2", "--micro_batch_size", "2"],
        ["--plugin", "3d", "--mixed_precision", "fp32", "--zero", "0"],
        ["--stages", "new_rows,steps=200,lr=1e-3", "embeds,steps=1000", "all,optimizer=reset"],
        ["--plugin", "zero2", "--lora_rank", "8", "--lora_modules_to_save"],
        ["--eval_dataset", "zh=.", "--watch", "zh=0.1", "--lr_floor", "0"],
    ):
        check(parse_config(TrainConfig, [*needed, *flags]))


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("--batch_size", "--micro_batch_size"),
        ("--grad_clip", "--gradient_clipping"),
        ("-w", "--weight_decay"),
        ("-s", "--warmup_steps"),
        ("--zero_stage", "--zero"),
    ],
)
def test_alias_means_the_same(short: str, long: str, needed: list[str]) -> None:
    config = parse_config(TrainConfig, [*needed, short, "2"])
    assert config == parse_config(TrainConfig, [*needed, long, "2"])
    assert config != parse_config(TrainConfig, needed)


@pytest.mark.parametrize("suffix", [".yaml", ".yml", ".json"])
def test_file_of_flags_is_read(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"pretrained": str(tmp_path), "dataset": [str(tmp_path), "elsewhere"], "lr": -2.5, "use_flash_attn": True}
    path = tmp_path / f"run{suffix}"
    path.write_text(json.dumps(flags) if suffix == ".json" else yaml.safe_dump(flags))
    assert train.main([str(path)]) == 2
    line = capsys.readouterr().err
    assert "--lr -2.5" in line
    assert "--dataset elsewhere" in line
    assert parse_config(TrainConfig, [str(path)]).use_flash_attn


def test_missing_file_of_flags_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["nowhere/run.yaml"]) == 2
    assert "nowhere/run.yaml" in capsys.readouterr().err


def test_defaults_are_those_of_the_original(needed: list[str]) -> None:
    config = parse_config(TrainConfig, needed)
    original = {
        "plugin": "gemini",
        "save_interval": 1000,
        "num_epochs": 1,
        "micro_batch_size": 1,
        "accumulation_steps": 1,
        "lr": 3e-4,
        "max_length": 4096,
        "mixed_precision": "bf16",
        "gradient_clipping": 1.0,
        "weight_decay": 0.1,
        "warmup_steps": None,
        "use_grad_checkpoint": False,
        "use_flash_attn": False,
        "freeze_non_embeds_params": False,
        "tp": 1,
        "pp": 1,
        "zero": 1,
    }
    assert {name: getattr(config, name) for name in original} == original


@pytest.mark.parametrize("more", [{}, EVERY_FLAG])
def test_resolved_config_is_an_argument_again(more: dict[str, object], tmp_path: Path) -> None:
    values = {"pretrained": Path("m"), "dataset": [Path("a"), Path("b")], "eval_dataset": ["zh=c", "en=d"], **more}
    config = TrainConfig(**values)  # type: ignore[arg-type]  # one dict for fields of many types
    path = tmp_path / "run.json"
    path.write_text(json.dumps(config.as_json()))
    assert parse_config(TrainConfig, [str(path)]) == dataclasses.replace(
        config, overwrite=False, restart_data=False, rehearse=False
    )


def test_every_flag_above_is_every_flag(needed: list[str]) -> None:
    default = parse_config(TrainConfig, needed)
    paths = {"pretrained", "dataset", "load_checkpoint", "save_dir", "tensorboard_dir", "config_file", "eval_dataset"}
    assert {*EVERY_FLAG, *paths} == set(dataclasses.asdict(default))
    assert not {"overwrite", "restart_data", "rehearse"} & set(default.as_json()), "a file used again must just go on"
    assert [name for name, value in EVERY_FLAG.items() if getattr(default, name) == value] == []


def test_help_names_every_flag_without_importing_torch(needed: list[str]) -> None:
    code = (
        "import sys, train\n"
        "try:\n    train.main(['--help'])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print('heavy:', sorted({'torch', 'colossalai', 'transformers', 'numpy', 'datasets'} & set(sys.modules)))\n"
    )
    root = Path(train.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"
    flags = parse_config(TrainConfig, needed).as_json()
    assert [name for name in flags if f"--{name}" not in done.stdout] == []
    assert "75 stopped as asked and saved" in done.stdout


@pytest.mark.parametrize("flag", ["--pretrained", "--dataset", "--load_checkpoint", "--eval_dataset"])
def test_overwrite_never_deletes_its_own_input(
    flag: str, needed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = tmp_path / "runs" / "a" / "modeling"
    inside.mkdir(parents=True)
    value = f"x={inside}" if flag == "--eval_dataset" else str(inside)
    argv = [*needed, "--save_dir", str(tmp_path / "runs" / "b" / ".." / "a"), "--overwrite"]
    argv[1:2] = [value] if flag == "--pretrained" else argv[1:2]
    assert train.main(argv if flag == "--pretrained" else [*argv, flag, value]) == 2
    assert f"--overwrite would delete {inside}" in capsys.readouterr().err
    check(parse_config(TrainConfig, [*needed, "--save_dir", str(inside), "--overwrite"]))
