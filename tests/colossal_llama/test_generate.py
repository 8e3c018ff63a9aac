"""Continuations: greedy ones are those of transformers, sampled ones belong to their seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from colossal_llama import generate

PROMPTS = ["The import statement", "A list is"]


@pytest.fixture(scope="module")
def model_dir(zero2_run: Path) -> Path:
    return zero2_run / "modeling"


def said(capsys: pytest.CaptureFixture[str], *flags: str, model_dir: Path) -> list[dict[str, str]]:
    """The JSON document on stdout."""
    capsys.readouterr()
    words = ["--model", str(model_dir), "--prompt", *PROMPTS, "--max_new_tokens", "12", "--json", *flags]
    assert generate.main(words) == 0
    return json.loads(capsys.readouterr().out)


def by_transformers(model_dir: Path, seed: int = 0, **sampling: float) -> list[dict[str, str]]:
    """The same by transformers alone: whole text minus the prompt."""
    model = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    results = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt")
        torch.manual_seed(seed)
        output = model.generate(**ids, max_new_tokens=12, pad_token_id=2, do_sample=bool(sampling), **sampling)[0]
        text = tokenizer.decode(output, skip_special_tokens=True)
        assert text.startswith(prompt)
        results.append({"prompt": prompt, "continuation": text[len(prompt) :]})
    return results


def test_temperature_0_takes_the_likeliest(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = said(capsys, "--temperature", "0", model_dir=model_dir)
    assert own == by_transformers(model_dir)
    assert all(pair["continuation"] for pair in own)


def test_sampling_is_bounded_by_top_p_alone(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hot = ["--temperature", "5", "--top_p", "1", "--seed", "3"]
    assert said(capsys, *hot, model_dir=model_dir) == by_transformers(
        model_dir, seed=3, temperature=5.0, top_p=1.0, top_k=0
    )


def test_same_seed_same_text(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, again, other = (said(capsys, "--seed", seed, model_dir=model_dir) for seed in ("1", "1", "2"))
    assert first == again != other


def test_text_follows_its_prompt_on_stdout(model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = said(capsys, "--temperature", "0", model_dir=model_dir)
    argv = ["--model", str(model_dir), "--prompt", *PROMPTS, "--max_new_tokens", "12", "--temperature", "0"]
    assert generate.main(argv) == 0
    assert capsys.readouterr().out == "".join(f"{pair['prompt']}{pair['continuation']}\n\n" for pair in pairs)


@pytest.mark.parametrize(
    ("flag", "value"), [("--max_new_tokens", "0"), ("--temperature", "-1.0"), ("--top_p", "0.0"), ("--top_p", "1.5")]
)
def test_settings_out_of_range_are_refused(
    flag: str, value: str, model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert generate.main(["--model", str(model_dir), "--prompt", "a", flag, value]) == 2
    assert f"{flag} {value}" in capsys.readouterr().err
