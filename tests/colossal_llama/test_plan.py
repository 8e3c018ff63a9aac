"""The plan as a command: what it prints, what it refuses, and that its figures agree with each other."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from colossal_llama import plan
from tests.colossal_llama.runs import ROW_LENGTH
from tests.conftest import argv_of

LLAMA2 = {"model_type": "llama", "vocab_size": 69_104}
STORY: dict[str, Any] = {"cluster": "64 x A800-80G", "num_tokens": "8.5B", "plugin": "zero2"}
PLUGINS = ["gemini", "gemini_auto", "zero2", "zero2_cpu", "3d", "ddp"]


@pytest.fixture
def llama2(tmp_path: Path) -> Path:
    """LLaMA-2 7B with the vocabulary of Colossal-LLaMA-2, as config.json says it."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(LLAMA2))
    return path


def planned(capsys: pytest.CaptureFixture[str], *words: str, **flags: Any) -> dict[str, Any]:
    assert plan.main([*words, *argv_of(**flags), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], **flags: Any) -> str:
    assert plan.main(argv_of(**flags)) == 2
    return capsys.readouterr().err


def test_the_story(llama2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """64 A800, LLaMA-2 7B, 8.5 B tokens: about 15 hours."""
    found = planned(capsys, pretrained=llama2, **STORY, price_per_gpu_hour=2.0, accumulation_steps=16)
    assert found["fits"] and found["num_parameters"] == 7_042_371_584
    assert found["positions_per_step"] == 64 * 16 * 4096
    assert found["num_steps"] == -(-8_500_000_000 // (64 * 16 * 4096))
    assert found["hours"] == pytest.approx(15, rel=0.01)
    assert found["gpu_hours"] == pytest.approx(64 * found["hours"])
    assert found["price"] == pytest.approx(2 * found["gpu_hours"])
    assert [one["plugin"] for one in found["memory"]] == PLUGINS
    (stage,) = found["stages"]
    assert stage["num_trained"] == 7_042_371_584
    assert stage["checkpoint_bytes"] == 14 * 7_042_371_584 + 2**24
    assert stage["write_seconds"] == pytest.approx(stage["checkpoint_bytes"] / 1e9)


def test_a_global_batch_decides_how_much_is_accumulated(llama2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """1,000 rows for 64 ranks of 4 rows are 4 micro-batches, with 24 blank rows, which are computed too."""
    flags = {**STORY, "pretrained": llama2, "micro_batch_size": 4, "use_grad_checkpoint": True}
    found = planned(capsys, **flags, global_batch_size=1000)
    assert (found["rows_per_step"], found["positions_per_step"]) == (1000, 1024 * 4096)
    assert found["num_steps"] == math.ceil(8_500_000_000 / 4096 / 1000)
    plain = planned(capsys, **flags, accumulation_steps=4)
    assert found["stages"][0]["step_seconds"] == plain["stages"][0]["step_seconds"]
    assert found["memory"][2] == plain["memory"][2]  # zero2, which keeps sums of micro-batches in fp32
    assert found["memory"][2] != planned(capsys, **flags)["memory"][2]


def test_the_largest_micro_batch_fits_and_one_row_more_does_not(
    llama2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recomputed = {**STORY, "pretrained": llama2, "use_grad_checkpoint": True}
    flags = {**recomputed, "plugin": "3d", "tp": 2, "pp": 2, "accumulation_steps": 2}
    most = {one["plugin"]: one["largest_micro_batch_size"] for one in planned(capsys, **flags)["memory"]}
    assert most["ddp"] == 0 < most["3d"]
    for plugin in ("zero2", "gemini", "3d"):
        sizes = flags if plugin == "3d" else {**flags, "tp": 1, "pp": 1}
        for num_rows, fits in ((most[plugin], True), (most[plugin] + 1, False)):
            found = planned(capsys, **{**sizes, "plugin": plugin, "micro_batch_size": num_rows})
            (one,) = [one for one in found["memory"] if one["plugin"] == plugin]
            parts = {name: size for name, size in one["bytes"].items() if name not in ("total", "usable", "update")}
            assert sum(parts.values()) == one["bytes"]["total"]
            assert found["fits"] is one["fits"] is (one["bytes"]["total"] <= one["bytes"]["usable"]) is fits


def test_a_pipeline_cuts_the_rows_of_a_micro_batch(llama2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four rows without accumulation are two micro-batches of two rows for two stages, as pp asks for."""
    flags = {**STORY, "pretrained": llama2, "plugin": "3d", "pp": 2}
    (four, twice) = (
        next(one for one in planned(capsys, **flags, **rows)["memory"] if one["plugin"] == "3d")
        for rows in ({"micro_batch_size": 4}, {"micro_batch_size": 2, "accumulation_steps": 2})
    )
    assert four["bytes"] == twice["bytes"] and four["largest_micro_batch_size"] == twice["largest_micro_batch_size"]


def test_tables_for_people(llama2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages = ["embeds,steps=1000,lr=1e-3", "all"]
    flags = {**STORY, "pretrained": llama2, "stages": stages, "vocab_before": 32_000, "price_per_gpu_hour": 1.5}
    assert plan.main(argv_of(**flags, tokens_per_character=[1.16, 0.784])) == 0
    text = capsys.readouterr().out
    tables = [line for line in text.splitlines() if "  " in line]
    assert max(map(len, tables)) <= 120 and "…" not in text
    assert len([line for line in text.splitlines() if line.startswith("> zero2 ")]) == 2
    assert "no: +" in text and "optimizer" in text  # ddp
    assert "they save 32.4%: it pays" in text
    assert text.splitlines()[-1].startswith("FITS: --plugin zero2 with up to --micro_batch_size 2; 14.9 hours, ")
    assert plan.main(argv_of(**{**flags, "plugin": "ddp"})) == 0
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert verdict.startswith("DOES NOT FIT: --plugin ddp, all: no: +")
    assert "--plugin gemini" in verdict and "--use_grad_checkpoint" in verdict


def test_a_finished_run_s_own_flags(zero2_run: Path, zero2_flags: dict[str, Any], capsys: Any) -> None:
    """Its rows, its steps and its flags, with another cluster; a flag behind the file wins."""
    config = str(zero2_run / "train_config.json")
    lines = (zero2_run / "metrics.jsonl").read_text().splitlines()
    found = planned(capsys, config, cluster="2 x A800-80G")
    assert (found["plugin"], found["num_steps"], found["rows_per_step"]) == ("zero2", len(lines), 4)
    assert found["data"]["row_length"] == ROW_LENGTH
    manifest = json.loads((Path(zero2_flags["dataset"]) / "manifest.json").read_text())
    assert found["data"]["num_rows"] == sum(bucket["rows"] for bucket in manifest["buckets"])
    assert found["data"]["num_tokens"] == manifest["tokens"]["in_bins"]
    again = planned(capsys, config, cluster="2 x A800-80G", max_steps=3, max_length=4096)
    assert (again["num_steps"], again["data"]["row_length"]) == (3, ROW_LENGTH)  # rows are as long as they were written


def test_the_vocabulary_pays_from_the_saving_it_needs(llama2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At the break-even a character costs the same; the tokens' ratio may come from compare_tokenizers."""
    flags = {**STORY, "pretrained": llama2}
    assert planned(capsys, **flags)["vocabulary"] is None
    needed = planned(capsys, **flags, vocab_before=32_000)["vocabulary"]["needed_saving"]
    assert needed["training_flops"] == pytest.approx(0.0194, abs=1e-4)  # 37,104 x 4,096 x 6 of 47.0 GFLOP a token
    assert needed["written_bytes"] == pytest.approx(37_104 / (69_104 + 6_476_005_376 / 4096), rel=1e-6)
    compared = llama2.with_name("compared.json")
    for cost, saving in needed.items():
        sides = {"old": (32_000, 1.0), "new": (69_104, 1.0 - saving)}
        tokenizers = {
            name: {"vocab_size": size, "total": {"tokens_per_character": ratio}}
            for name, (size, ratio) in sides.items()
        }
        compared.write_text(json.dumps({"tokenizers": tokenizers}))
        found = planned(capsys, **flags, compared=compared)["vocabulary"]
        before, after = found["per_character"][cost]
        assert before == pytest.approx(after) and found["saving"] == pytest.approx(saving)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"num_tokens": "many"}, "--num_tokens many: must be a number"),
        ({"num_tokens": None}, "either --dataset DIR or --num_tokens"),
        ({"mfu": 40}, "--mfu 40.0: is a share of the peak"),
        ({"price_per_gpu_hour": -1}, "--price_per_gpu_hour -1.0: must be a positive number"),
        ({"micro_batch_size": 0}, "--micro_batch_size 0: must be at least 1"),
        ({"tokens_per_character": [1]}, "--tokens_per_character: takes two positive numbers"),
        ({"stages": ["new_rows"]}, "--vocab_before"),
        ({"stages": ["embeds,steps=9999999", "all"]}, "--stages: the run has"),
        ({"plugin": "3d", "tp": 3}, "--tp 3 does not divide its 32 attention heads"),
        ({"tp": 2}, "--tp/--pp/--sp above 1 need --plugin 3d"),
        ({"plugin": "gemini", "mixed_precision": "fp32", "peak_tflops": 19.5}, "gemini has only fp16 and bf16"),
        ({"plugin": "zero2", "lora_rank": 8, "lora_targets": ["c_attn"]}, "--lora_targets c_attn"),
    ],
)
def test_what_train_py_would_refuse_is_no_plan(
    flags: dict[str, Any], message: str, llama2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {name: value for name, value in {**STORY, "pretrained": llama2, **flags}.items() if value is not None}
    assert message in refusal(capsys, **given)


def test_another_plugin_s_refusal_is_a_line_of_the_table(llama2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, pretrained=llama2, **STORY, lora_rank=8)
    refused = {one["plugin"] for one in found["memory"] if one["refused"]}
    assert refused == {"gemini", "gemini_auto"} and found["fits"]
    assert found["stages"][0]["trains"] == "lora"


def test_nothing_heavy_is_imported(llama2: Path) -> None:
    script = f"import sys; from colossal_llama.plan import main; main({argv_of(pretrained=llama2, **STORY)})"
    heavy = "print([name for name in ('torch', 'transformers', 'colossalai', 'pyarrow') if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", f"{script}; {heavy}"], check=True, capture_output=True, text=True)
    assert output.stdout.splitlines()[-1] == "[]"
