"""A small model of the same architecture: a transformers config comes in, a model directory goes out.

Kept is what code and flags look at: the type, the vocabulary, whether the matrices are tied, biases, windows, the ratio
of heads to key-value heads, the rows that init_model has added. Shrunken are the widths and the number of layers.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from tokenizer_tools.command import UserError
from tokenizer_tools.grow_model import base_manifest
from tokenizer_tools.lineage import TOKENIZER_FILES, describe_files, files_of, input_record
from tokenizer_tools.outputs import write_json
from tokenizer_tools.tokenizer import fingerprint, load_tokenizer
from tokenizer_tools.tokenizer_files import MANIFEST, copy_files

WIDTH = 64  # of all heads together
FEWEST_HEADS = 4
FEWEST_LAYERS = 2
LARGEST_GROUP = 8  # query heads a key-value head
SEED = 0
GENERATION_CONFIG = "generation_config.json"


def shrunken(real: Any, divisor: int, num_layers: int) -> Any:
    """A transformers config of the same type as `real`, with widths that `divisor` divides, and `num_layers` layers.

    Raises UserError for a type whose code does not take such sizes.
    """
    key_value_heads, heads = _heads(real, divisor)
    head_width = max(2, WIDTH // heads // 2 * 2)  # rotary positions need pairs
    has_other_width = (_head_width(real) or 0) * real.num_attention_heads not in (0, real.hidden_size)
    hidden = heads * head_width * (2 if has_other_width else 1)
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "head_dim": head_width,
        "num_hidden_layers": max(FEWEST_LAYERS, num_layers),
    }
    small = copy.deepcopy(real)
    for name, size in sizes.items():
        if getattr(real, name, None) is not None:
            setattr(small, name, size)
    if isinstance(getattr(real, "rope_scaling", None), dict):
        small.rope_scaling = _cut(real.rope_scaling, head_width // 2)
    try:
        return type(real).from_dict(small.to_dict())
    except Exception as error:  # whatever a config class makes of sizes that do not fit each other
        raise UserError(_not_shrunken(real, error)) from error


def _heads(real: Any, divisor: int) -> tuple[int, int]:
    """(key-value heads, heads) with the ratio of `real`, multiples of `divisor`."""
    real_heads = real.num_attention_heads
    real_key_value = getattr(real, "num_key_value_heads", None) or real_heads
    group = min(LARGEST_GROUP, max(1, real_heads // real_key_value))
    key_value = divisor if real_key_value == 1 else divisor * max(1, -(-FEWEST_HEADS // (divisor * group)))
    return key_value, key_value * group


def _head_width(real: Any) -> int | None:
    return getattr(real, "head_dim", None)


def _cut(scaling: dict[str, Any], num_pairs: int) -> dict[str, Any]:
    """Some ways to stretch positions have a factor for each pair of a head's entries."""
    return {name: value[:num_pairs] if isinstance(value, list) else value for name, value in scaling.items()}


def _not_shrunken(real: Any, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return (
        f"a {real.model_type} model: cannot be shrunken for a rehearsal ({reason}); rehearse with a small model of its "
        f"kind as --pretrained, without --rehearse"
    )


def write_shrunken(small: Any, tokenizer_dir: Path, num_old: int | None, target: Path) -> int:
    """Write a model of the config `small` with random weights, as init_model would have written it, into `target`.

    The tokenizer is that of `tokenizer_dir`, byte for byte; `num_old` are the rows of the old vocabulary, None where no
    row is new. Returns the number of parameters. Raises UserError if a file of the tokenizer was swapped, or as
    `shrunken` does.
    """
    import torch
    from transformers import AutoModelForCausalLM

    target.mkdir(parents=True)
    tokenizer_record = input_record(tokenizer_dir, "tokenizer", fingerprint(load_tokenizer(tokenizer_dir)))
    torch.manual_seed(SEED)
    try:
        model = AutoModelForCausalLM.from_config(small, torch_dtype=small.torch_dtype or torch.float32)
    except Exception as error:  # as above, in the model's code
        raise UserError(_not_shrunken(small, error)) from error
    model.save_pretrained(target, safe_serialization=True)
    copy_files(tokenizer_dir, target, (*TOKENIZER_FILES, GENERATION_CONFIG))
    num_rows = small.vocab_size
    before = num_rows if num_old is None else num_old
    manifest = base_manifest(before, num_rows, tokenizer_record, f"random, seed {SEED}, for a rehearsal")
    manifest |= {"made_from": {"tokenizer": tokenizer_record}}
    write_json(target / MANIFEST, manifest | describe_files(target, files_of(target, "model")))
    return sum(parameter.numel() for parameter in model.parameters())
