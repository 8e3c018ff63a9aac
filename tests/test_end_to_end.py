"""Real text through all four stages: from a 32,000-piece tokenizer and pieces to an exported model that speaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_from_disk
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from colossal_llama import evaluate, export, generate
from data_tools import prepare_pretrain_dataset
from tests.conftest import CHINESE, TINY_MODEL_CONFIG, argv_of, read_evaluations, write_jsonl
from tokenizer_tools import compare_tokenizers, init_model, init_tokenizer, train_pieces

OLD_VOCAB_SIZE = 32_000


def tensor(model_dir: Path, name: str) -> torch.Tensor:
    """One weight of a safetensors model directory."""
    for file in sorted(model_dir.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118  a safetensors handle is no dict
                return tensors.get_tensor(name)
    raise KeyError(name)


def expand(base_tokenizer_dir: Path, tmp_path: Path) -> PreTrainedTokenizerBase:
    """Stages 1 and 2: pieces from the text, a tokenizer, a model grown to it, in tmp_path / init."""
    (tmp_path / "config.json").write_text(json.dumps(TINY_MODEL_CONFIG))
    start = {"target_tokenizer_path": base_tokenizer_dir, "target_model_path": tmp_path / "base", "seed": 3}
    assert init_model.main(argv_of(from_config=tmp_path / "config.json", dtype="float32", **start)) == 0
    mined = {"data_input_dirs": tmp_path / "text", "categories": "zh", "tokenizer_dir": base_tokenizer_dir}
    assert train_pieces.main(argv_of(num_pieces=60, output_file=tmp_path / "pieces.jsonl", **mined)) == 0
    source = {"source_tokenizer_dir": base_tokenizer_dir, "target_tokenizer_dir": tmp_path / "tokenizer"}
    assert init_tokenizer.main(argv_of(expand_tokens_file=tmp_path / "pieces.jsonl", **source)) == 0
    grown = {"source_model_and_tokenizer_path": tmp_path / "base", "target_tokenizer_path": tmp_path / "tokenizer"}
    assert init_model.main(argv_of(target_model_path=tmp_path / "init", **grown)) == 0

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "init")
    new_pieces = [json.loads(line)["piece"] for line in (tmp_path / "pieces.jsonl").read_text().splitlines()]
    assert len(tokenizer) >= OLD_VOCAB_SIZE + len(new_pieces)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        old, new = tensor(tmp_path / "base", name), tensor(tmp_path / "init", name)
        assert new.shape == (len(tokenizer), 64)
        assert torch.equal(new[:OLD_VOCAB_SIZE], old)
    return tokenizer


def test_the_four_stages_end_in_a_model_that_reads_the_new_language_better(
    base_tokenizer_dir: Path,
    english_texts: list[str],
    train: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    chinese = [{"source": "", "target": text * 3, "category": "zh"} for text in CHINESE]
    english = [{"source": "", "target": text[:600], "category": "en"} for text in english_texts[:8]]
    questions = [{"source": "谁写了这本书？", "target": "一位老师。", "category": "qa"}] * 3
    write_jsonl(tmp_path / "text" / "zh.jsonl", chinese)
    write_jsonl(tmp_path / "text" / "en" / "en.jsonl", english + questions)

    tokenizer = expand(base_tokenizer_dir, tmp_path)
    capsys.readouterr()
    directories = [str(base_tokenizer_dir), str(tmp_path / "tokenizer")]
    assert compare_tokenizers.main([*directories, "--data", str(tmp_path / "text"), "--json"]) == 0
    before, after = json.loads(capsys.readouterr().out)["tokenizers"].values()
    assert after["categories"]["zh"]["tokens"] < before["categories"]["zh"]["tokens"]
    assert after["categories"]["en"]["tokens"] == before["categories"]["en"]["tokens"]

    # Stage 3: bins
    flags = {"data_input_dirs": tmp_path / "text", "tokenizer_dir": tmp_path / "init", "max_length": 64}
    output = {"data_arrow_output_dir": tmp_path / "bins", "num_spliced_dataset_bins": 2}
    assert prepare_pretrain_dataset.main(argv_of(**flags, **output)) == 0
    ledger = json.loads((tmp_path / "bins" / "manifest.json").read_text())
    rows = [row for part in ("part-00000", "part-00001") for row in load_from_disk(tmp_path / "bins" / part)]
    assert ledger["tokens"]["in"] == ledger["tokens"]["in_bins"] == sum(len(row["input_ids"]) for row in rows)
    assert set(ledger["categories"]) == {"zh", "en", "qa"}

    # Stage 4: warm-up, then the whole model from its weights
    common = {"dataset": tmp_path / "bins", "max_length": 64, "plugin": "zero2", "micro_batch_size": 4, "lr": 5e-3}
    warmup = train(2, tmp_path / "warmup", pretrained=tmp_path / "init", freeze_non_embeds_params=True, **common)
    checkpoint = {"pretrained": tmp_path / "init", "load_checkpoint": tmp_path / "warmup" / "modeling"}
    full = train(2, tmp_path / "full", num_epochs=6, eval_dataset=f"all={tmp_path / 'bins'}", **checkpoint, **common)
    assert full[-1]["loss"] < full[0]["loss"] < warmup[0]["loss"]
    assert full[-1]["num_rows_seen"] == 6 * len(rows)
    assert read_evaluations(tmp_path / "full")[-1]["eval"]["all"]["loss"] < full[0]["loss"]

    # Beside the stages: export, evaluate, generate
    last = tmp_path / "full" / (tmp_path / "full" / "latest").read_text().strip()
    assert export.main(argv_of(checkpoint=last, target=tmp_path / "exported")) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "exported").config.vocab_size == len(tokenizer)
    bits = []
    for model in ("init", "exported"):
        capsys.readouterr()
        assert evaluate.main(argv_of(model=tmp_path / model, data=tmp_path / "text", json=True)) == 0
        bits.append(json.loads(capsys.readouterr().out)["categories"]["zh"]["bits_per_byte"])
    assert bits[1] < 0.85 * bits[0]
    assert generate.main(argv_of(model=tmp_path / "exported", prompt="人工", max_new_tokens=8)) == 0
    assert capsys.readouterr().out.startswith("人工")
