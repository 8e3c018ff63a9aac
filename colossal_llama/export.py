"""A checkpoint in; a Hugging Face directory that has proved itself out.

`python -m colossal_llama.export --checkpoint DIR --target DIR`. Proved: the files are those the checkpoint was written
with (sha256), rows and tokenizer fit, and the reloaded model gives the very logits of what was written.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from simple_parsing import flag

from tokenizer_tools.command import UserError, command
from tokenizer_tools.outputs import refuse_existing, whole_directory
from tokenizer_tools.tokenizer import PROBE_TEXT, TextEncoder, load_tokenizer

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ExportConfig:
    """Turn a checkpoint into a Hugging Face model directory and check it."""

    checkpoint: Path
    """A checkpoint, <save_dir>/epoch-E_step-S."""
    target: Path
    """The model directory to write."""
    dtype: Literal["as_saved", "bf16", "fp16", "fp32"] = "as_saved"
    """Number format of the weights."""
    overwrite: bool = flag(default=False)
    """Replace an existing --target."""


@command(ExportConfig)
def main(config: ExportConfig) -> None:
    """Check, convert, write, reload, compare."""
    refuse_existing(config.target, config.overwrite)
    import torch

    from colossal_llama.checkpoint import check_hashes, open_checkpoint
    from colossal_llama.mends import keep_rotary_frequencies_fp32
    from colossal_llama.model import load_model

    checkpoint = open_checkpoint(config.checkpoint)
    check_hashes(checkpoint)
    tokenizer = load_tokenizer(checkpoint.modeling)
    model = load_model(checkpoint.modeling, "auto", "sdpa", use_grad_checkpoint=False).eval()
    if model.config.vocab_size < len(tokenizer):
        raise UserError(
            f"{checkpoint.modeling}: {model.config.vocab_size} embedding rows, but the tokenizer has {len(tokenizer)} "
            f"pieces; the checkpoint is not one of this pipeline"
        )
    probe = torch.tensor([TextEncoder(tokenizer).encode_batch([PROBE_TEXT])[0]])
    with whole_directory(config.target, config.overwrite) as aside:
        if config.dtype != "as_saved":
            model = model.to({"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[config.dtype])
            keep_rotary_frequencies_fp32(model)  # as they are in the reloaded model
        model.config.use_cache = True  # load_model turns it off, for training
        model.save_pretrained(aside, safe_serialization=True)
        tokenizer.save_pretrained(aside)
        reloaded = load_model(aside, "auto", "sdpa", use_grad_checkpoint=False).eval()
        difference = (logits(reloaded, probe) - logits(model, probe)).abs().max().item()
        if difference != 0:
            raise RuntimeError(f"the reloaded model's logits differ by {difference:.3g} from those of what was written")
    print(f"{config.target}: {model.config.vocab_size:,} pieces, {model.num_parameters():,} parameters, {model.dtype}")


def logits(model: torch.nn.Module, input_ids: torch.Tensor) -> torch.Tensor:
    """Logits [1, length, vocabulary] in fp32."""
    import torch

    with torch.inference_mode():
        return model(input_ids=input_ids).logits.float()


if __name__ == "__main__":
    sys.exit(main())
