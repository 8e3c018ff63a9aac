"""A model directory and prompts in; sampled continuations out.

`python -m colossal_llama.generate --model DIR --prompt TEXT`
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from simple_parsing import flag

from tokenizer_tools.command import UserError, command
from tokenizer_tools.tokenizer import TextEncoder, load_tokenizer


@dataclass(frozen=True)
class GenerateConfig:
    """Sample what a model writes after each prompt."""

    model: Path
    """Hugging Face model directory with its tokenizer."""
    prompt: list[str]
    """One or more beginnings."""
    max_new_tokens: int = 64
    """Longest continuation, in tokens."""
    temperature: float = 0.8
    """0 takes the likeliest token each time; higher is wilder."""
    top_p: float = 0.95
    """Sample from the likeliest tokens that together have this probability."""
    seed: int = 0
    """Same seed, same text."""
    json: bool = flag(default=False)
    """Print one JSON document, [{"prompt", "continuation"}], instead of text."""


@command(GenerateConfig)
def main(config: GenerateConfig) -> None:
    """Generate and print."""
    if config.max_new_tokens < 1 or config.temperature < 0 or not 0 < config.top_p <= 1:
        raise UserError(
            f"--max_new_tokens {config.max_new_tokens} --temperature {config.temperature} --top_p {config.top_p}: "
            f"need at least 1, at least 0, and above 0 up to 1"
        )
    continuations = generate(config)
    if config.json:
        pairs = zip(config.prompt, continuations, strict=True)
        print(json.dumps([{"prompt": p, "continuation": c} for p, c in pairs], ensure_ascii=False))
    else:
        for prompt, continuation in zip(config.prompt, continuations, strict=True):
            print(f"{prompt}{continuation}\n")


def generate(config: GenerateConfig) -> list[str]:
    """One continuation a prompt."""
    import torch

    from colossal_llama.host import inference_device
    from colossal_llama.model import load_model

    tokenizer = load_tokenizer(config.model)
    encoder = TextEncoder(tokenizer)
    model = load_model(config.model, "auto", "sdpa", use_grad_checkpoint=False).to(inference_device()).eval()
    # top_k: left out, transformers would keep only the 50 likeliest
    sampling = {"do_sample": True, "temperature": config.temperature, "top_p": config.top_p, "top_k": 0}
    continuations = []
    for ids in encoder.encode_batch(config.prompt):
        prompt_ids = torch.tensor([encoder.prefix_ids + ids], device=model.device)
        torch.manual_seed(config.seed)
        output = model.generate(
            prompt_ids,
            attention_mask=torch.ones_like(prompt_ids),
            max_new_tokens=config.max_new_tokens,
            pad_token_id=model.config.eos_token_id,
            use_cache=True,
            **(sampling if config.temperature > 0 else {"do_sample": False}),
        )[0].tolist()
        prompt_text = tokenizer.decode(prompt_ids[0].tolist(), skip_special_tokens=True)
        continuations.append(tokenizer.decode(output, skip_special_tokens=True)[len(prompt_text) :])
    return continuations


if __name__ == "__main__":
    sys.exit(main())
