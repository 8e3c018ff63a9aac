"""Which models may train under which flags; Mistral and Qwen2, which have code of their own, against a plain loop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from colossal_llama.architectures import check_architecture
from colossal_llama.batches import BatchReader, Shape
from colossal_llama.config import TrainConfig
from data_tools.bins import open_bins
from tests.colossal_llama.runs import ROW_LENGTH
from tests.conftest import TINY_MODEL_CONFIG, argv_of
from tokenizer_tools.command import UserError, parse_config

STEPS, LR = 3, 2e-3
THREE_D = {"plugin": "3d", "zero": 0}


def flags_of(**flags: Any) -> TrainConfig:
    return parse_config(TrainConfig, argv_of(pretrained="p", dataset="d", **flags))


def check(kind: str, row_length: int = 64, config: dict[str, Any] | None = None, **flags: Any) -> list[str]:
    return check_architecture(AutoConfig.for_model(kind, **(config or {})), flags_of(**flags), row_length)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("flags", [{"plugin": "ddp"}, {"plugin": "gemini"}, {**THREE_D, "tp": 2, "pp": 2}])
def test_tested_models_pass_in_silence(kind: str, flags: dict[str, Any]) -> None:
    assert check(kind, **flags) == []


@pytest.mark.parametrize("kind", ["gpt2", "gemma", "phi3", "gpt_neox"])
def test_other_decoders_pass_with_one_line(kind: str) -> None:
    (warning,) = check(kind, plugin="zero2")
    assert warning.startswith(f"a {kind} model: not one of the tested architectures (llama, mistral, qwen2)")
    assert "\n" not in warning
    with pytest.raises(UserError, match="3d takes models apart by rules for llama, mistral, qwen2 alone; use zero2"):
        check(kind, **THREE_D)


@pytest.mark.parametrize(
    ("kind", "config", "reason"),
    [
        ("t5", {}, "a t5 model: an encoder with a decoder"),
        ("vit", {}, "a vit model: transformers knows no language model of this type"),
        ("bert", {}, "a bert model: an encoder, whose tokens see what comes after them"),
        ("mixtral", {}, "a mixtral model: a mixture of experts"),
        ("qwen2_moe", {}, "a qwen2_moe model: a mixture of experts"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, "its weights are quantized"),
    ],
)
@pytest.mark.parametrize("plugin", ["zero2", "3d"])
def test_other_models_are_refused(kind: str, config: dict[str, Any], reason: str, plugin: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        check(kind, config=config, plugin=plugin)
    assert ";" in str(caught.value), "the way out follows the reason"


HEADS = {"num_attention_heads": 6, "num_key_value_heads": 2, "num_hidden_layers": 4, "intermediate_size": 90}


@pytest.mark.parametrize(
    ("kind", "flags", "reasons"),
    [
        ("mistral", {"sp": 2, "tp": 2, "sp_mode": "split_gather"}, ["--sp is left out by colossalai for Mistral"]),
        ("mistral", {"use_flash_attn": True, "use_grad_checkpoint": True}, ["drops --use_grad_checkpoint"]),
        ("qwen2", {"sp": 2}, ["--sp_mode all_to_all cannot share out its loss"]),
        (
            "llama",
            {"tp": 4},
            [
                "--tp 4 does not divide its 6 attention heads",
                "--tp 4 does not divide its 2 key-value heads",
                "--tp 4 does not divide its 90 neurons",
            ],
        ),
        ("llama", {"sp": 3}, ["--sp 3 does not divide its 2 key-value heads"]),
        ("llama", {"pp": 5}, ["--pp 5 is more than its 4 layers"]),
    ],
)
def test_what_shardformer_cannot_divide_is_refused(kind: str, flags: dict[str, Any], reasons: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        check(kind, config=HEADS, **THREE_D, **flags)
    assert str(caught.value).count("; ") >= len(reasons) - 1
    for reason in reasons:
        assert reason in str(caught.value)


def test_sequence_that_tp_splits_asks_nothing_of_the_heads_again() -> None:
    with pytest.raises(UserError) as caught:
        check("llama", config=HEADS, **THREE_D, tp=4, sp=4, sp_mode="split_gather")
    assert "--sp 4 does not divide" not in str(caught.value)


def test_lawful_neighbours_of_the_refused_pass() -> None:
    assert check("mistral", config=HEADS, **THREE_D, use_flash_attn=True, use_grad_checkpoint=True, pp=2) == []
    assert check("mistral", config=HEADS, plugin="zero2", use_flash_attn=True, use_grad_checkpoint=True) == []
    assert check("qwen2", config=HEADS, **THREE_D, tp=2, sp=2, sp_mode="split_gather") == []
    assert check("llama", config=HEADS, **THREE_D, tp=2, pp=4) == []
    assert check("llama", config=HEADS, **THREE_D, sp=2) == []


@pytest.mark.parametrize(
    ("kind", "flags", "fits"),
    [
        ("mistral", {"plugin": "zero2"}, True),
        ("mistral", {**THREE_D, "tp": 2}, True),
        ("mistral", {**THREE_D, "use_flash_attn": True}, False),
        ("qwen2", {"plugin": "zero2"}, False),
        ("qwen2", THREE_D, False),
    ],
)
def test_rows_longer_than_the_window(kind: str, flags: dict[str, Any], fits: bool) -> None:
    config = {"sliding_window": 48}
    assert check(kind, row_length=48, config=config, **flags) == []
    assert check(kind, row_length=4096, config={"sliding_window": None}, **flags) == []
    if fits:
        assert check(kind, row_length=49, config=config, **flags) == []
        return
    with pytest.raises(UserError, match=r"of 48.* --max_length 48 or less|48.* in rows of 49 tokens"):
        check(kind, row_length=49, config=config, **flags)


MODELS = {
    "mistral-window": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 16},
    "qwen2-tied": {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "tie_word_embeddings": True},
}


@pytest.fixture(scope="module", params=MODELS)
def model_dir(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_dir: Path
) -> Path:
    """As init_model --from_config writes it, but with biases that are not zero."""
    from tokenizer_tools import init_model

    directory = tmp_path_factory.mktemp(request.param)
    (directory / "config.json").write_text(json.dumps(TINY_MODEL_CONFIG | MODELS[request.param]))
    flags = {"from_config": directory / "config.json", "target_tokenizer_path": tiny_tokenizer_dir, "seed": 7}
    assert init_model.main(argv_of(**flags, target_model_path=directory / "model", dtype="float32")) == 0
    generator = torch.Generator().manual_seed(3)
    for path in (directory / "model").glob("*.safetensors"):
        weights = load_file(path)
        biases = {n: torch.randn(w.shape, generator=generator) for n, w in weights.items() if n.endswith("bias")}
        save_file(weights | biases, path, metadata={"format": "pt"})
    (directory / "model" / "manifest.json").unlink()  # which says what the weights were before
    return directory / "model"


@pytest.fixture(scope="module")
def expected(model_dir: Path, tiny_bins_dir: Path) -> list[float]:
    """Losses of a plain fp32 loop with the slow attention, which knows windows."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, torch_dtype=torch.float32, attn_implementation="eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.0)
    reader = BatchReader(open_bins([tiny_bins_dir]), Shape(4, 1, dp_size=1, dp_rank=0), 42, ROW_LENGTH, 0, 10**6)
    losses = []
    for _, (batch,) in zip(range(STEPS), reader.steps_from(0), strict=False):
        loss = model(input_ids=batch.input_ids, labels=batch.labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("world_size", "flags"),
    [
        (2, {"plugin": "zero2", "micro_batch_size": 2}),
        (4, {**THREE_D, "tp": 2, "pp": 2, "micro_batch_size": 2, "accumulation_steps": 2}),
    ],
    ids=["zero2", "tp2-pp2"],
)
def test_losses_are_those_of_a_plain_loop(
    world_size: int,
    flags: dict[str, Any],
    model_dir: Path,
    expected: list[float],
    train: Callable[..., list[dict[str, Any]]],
    tiny_bins_dir: Path,
    tmp_path: Path,
) -> None:
    steps = train(
        world_size,
        tmp_path / "run",
        **flags,
        mixed_precision="fp32",
        pretrained=model_dir,
        dataset=tiny_bins_dir,
        max_length=ROW_LENGTH,
        max_steps=STEPS,
        lr=LR,
        lr_schedule="constant",
        warmup_steps=0,
        weight_decay=0,
        seed=42,
        eval_dataset=f"all={tiny_bins_dir / 'part-00000'}",  # an evaluation has no gradients of tied matrices
    )
    assert [step["loss"] for step in steps] == pytest.approx(expected, rel=1e-5)
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (model_dir, tmp_path / "run" / "modeling"))
    assert type(before) is type(after)
    assert before.state_dict().keys() == after.state_dict().keys()
    tied = [model.get_input_embeddings().weight is model.get_output_embeddings().weight for model in (before, after)]
    assert tied[0] == tied[1]
