"""A checkpoint in; a Hugging Face directory that has proved itself out, with its tokenizer, model card and manifest.

`python -m colossal_llama.export --checkpoint DIR --target DIR`. Proved, before the target gets its name: the files read
are those the checkpoint was written with; a process that knows nothing of this one loads the target with plain
transformers and gives the scores that the trainer gave; another reader finds every tensor by name and shape.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from simple_parsing import flag

from tokenizer_tools.command import UserError, command
from tokenizer_tools.lineage import MANIFEST_VERSION, describe_files, sha256_of
from tokenizer_tools.outputs import read_json, refuse_existing, whole_directory, write_json
from tokenizer_tools.tokenizer import fingerprint, load_tokenizer

if TYPE_CHECKING:
    from colossal_llama.checkpoint import Checkpoint
    from colossal_llama.probe import Difference, Probe

TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1}
"""Largest `Difference.relative` between the trainer and the exported model; docs/export.md has what was measured."""
DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
NO_CHECKPOINT = {
    "model": "a model, without the scores to prove it by",
    "adapter": "an adapter, without the scores to prove it by",
    None: "neither a checkpoint nor a run",
}

log = logging.getLogger("colossal_llama.export")  # run by -m this module is "__main__", to which nobody listens


@dataclass(frozen=True)
class ExportConfig:
    """Turn a checkpoint into a Hugging Face model directory and prove it."""

    checkpoint: Path
    """A checkpoint, <save_dir>/epoch-E_step-S, or a run for its newest one."""
    target: Path
    """The model directory to write."""
    dtype: Literal["as_saved", "bf16", "fp16", "fp32"] = "as_saved"
    """Number format of the weights."""
    overwrite: bool = flag(default=False)
    """Replace an existing --target."""


@dataclass(frozen=True)
class Proof:
    """What was compared, and how far apart it lay."""

    precision: str
    """The number format the trainer computed in."""
    dtype: str
    """The number format of the exported weights."""
    from_trainer: Difference
    tolerance: float
    """Of `from_trainer.relative`."""

    def __str__(self) -> str:
        return (
            f"A process of its own has loaded these files with plain transformers. Its scores of a fixed text are, bit "
            f"for bit, those of the model that was written; from those that the trainer computed in {self.precision} "
            f"when it saved they differ by {self.from_trainer} ({self.tolerance:g} of the spread are allowed)."
        )


@command(ExportConfig)
def main(config: ExportConfig) -> None:
    """Check, convert, write, read again in two ways, compare, describe."""
    refuse_existing(config.target, config.overwrite)
    from colossal_llama.checkpoint import damaged_file
    from colossal_llama.model_card import model_card
    from colossal_llama.probe import read_probe
    from colossal_llama.reread import reread
    from colossal_llama.second_reader import check_readable, check_same_weights

    checkpoint = find_checkpoint(config.checkpoint)
    log.info(f"{checkpoint.path}: comparing every file with its sha256")
    damaged = damaged_file(checkpoint)
    if damaged is not None:
        raise UserError(
            f"{checkpoint.path / damaged}: not the file that was saved (sha256); restore it, or export another "
            f"checkpoint"
        )
    told = read_probe(checkpoint.path)
    settings = read_json(checkpoint.path / "train_config.json", "a run's flags")
    lineage = read_json(checkpoint.path / "lineage.json", "what a run was made from")
    with whole_directory(config.target, config.overwrite) as aside:
        log.info("converting and writing")
        written = write_model(checkpoint, config.dtype, told, aside)
        check_readable(aside)
        check_same_weights(checkpoint.modeling, aside)
        log.info("loading it again, in a process that knows nothing of this one")
        again = reread(aside, told.input_ids, told.positions)
        proof = prove(told, written, again, settings["mixed_precision"], _dtype_of(aside))
        (aside / "README.md").write_text(model_card(checkpoint, settings, lineage, str(proof)), encoding="utf-8")
        write_json(aside / "manifest.json", _manifest(checkpoint, lineage, proof, aside))
    print(f"{config.target}: {checkpoint.path.name} in {proof.dtype}; differs from the trainer by {proof.from_trainer}")


def find_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in `path`, or the newest one of the run in it. Raises UserError if there is neither."""
    from colossal_llama.checkpoint import latest_checkpoint, open_checkpoint
    from colossal_llama.start import kind_of

    kind, above = kind_of(path), kind_of(path.parent)
    if kind == "checkpoint":
        return open_checkpoint(path)
    if kind == "run":
        checkpoint = latest_checkpoint(path)
        if checkpoint is None:
            raise UserError(f"--checkpoint {path}: a run without a complete checkpoint yet; wait for its first save")
        log.info(f"{path}: a run; its newest checkpoint is {checkpoint.path.name}")
        return checkpoint
    what = f"holds {NO_CHECKPOINT[kind]}" if path.is_dir() else "no such directory"
    way_out = path.parent if above in ("checkpoint", "run") else "a checkpoint, <save_dir>/epoch-E_step-S, or a run"
    raise UserError(f"--checkpoint {path}: {what}; name {way_out}")


def write_model(checkpoint: Checkpoint, dtype: str, told: Probe, directory: Path) -> Probe:
    """Write the checkpoint's weights in `dtype`, merged, with config and tokenizer. What they make of the probe's text.

    The only copy of the model in this process is gone when this returns.
    """
    import torch
    from transformers import GenerationConfig
    from transformers.utils import GENERATION_CONFIG_NAME

    from colossal_llama.mends import keep_rotary_frequencies_fp32
    from colossal_llama.model import load_model
    from colossal_llama.probe import model_probe

    tokenizer = load_tokenizer(checkpoint.modeling)
    model = load_model(checkpoint.modeling, "auto", "sdpa", use_grad_checkpoint=False).eval()
    if model.config.vocab_size < len(tokenizer):
        raise UserError(
            f"{checkpoint.modeling}: {model.config.vocab_size} embedding rows, but the tokenizer has {len(tokenizer)} "
            f"pieces; the checkpoint is not one of this pipeline"
        )
    if dtype != "as_saved":
        model = model.to({"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[dtype])
        keep_rotary_frequencies_fp32(model)  # as they are in the reloaded model
    model.config.use_cache = True  # load_model turns it off, for training
    generation_config, model.generation_config = model.generation_config, GenerationConfig()
    model.save_pretrained(directory, safe_serialization=True)
    # transformers refuses to save what many models came with (a temperature without sampling)
    generation_config.to_json_file(directory / GENERATION_CONFIG_NAME, use_diff=True)
    model.generation_config = generation_config
    tokenizer.save_pretrained(directory)
    return model_probe(model, told.input_ids, told.positions)


def prove(told: Probe, written: Probe, again: Probe, precision: str, dtype: str) -> Proof:
    """Compare what the trainer said (`told`), the model in memory (`written`) and what was read from disk (`again`).

    Raises RuntimeError if the files do not give what was written, UserError if the trainer's words are not repeated.
    """
    from colossal_llama.probe import are_identical, difference

    if not told.nats.isfinite().all():
        raise UserError("the trainer's own scores are no numbers: the run has diverged; export an older checkpoint")
    if not are_identical(written, again):
        raise RuntimeError(f"the reloaded model differs from what was written by {difference(written, again)}")
    tolerance = max(TOLERANCE[precision], TOLERANCE[dtype])
    proof = Proof(precision, dtype, difference(told, again), tolerance)
    if not proof.from_trainer.relative <= tolerance:  # so that NaN fails
        raise UserError(
            f"the exported model differs from the trainer by {proof.from_trainer}, more than the {tolerance:g} that "
            f"rounding in {precision} and {dtype} explains; try --dtype as_saved, and if that differs too, do not use "
            f"this checkpoint and report it"
        )
    return proof


def _dtype_of(directory: Path) -> str:
    return DTYPES[read_json(directory / "config.json", "the model's configuration")["torch_dtype"]]


def _manifest(checkpoint: Checkpoint, lineage: dict[str, Any], proof: Proof, directory: Path) -> dict[str, Any]:
    """Of the finished directory: its files, what they were made from, and how that was proved."""
    return {
        "version": MANIFEST_VERSION,
        "kind": "model",
        "tokenizer_fingerprint": fingerprint(load_tokenizer(directory)),
        "checkpoint": {
            "name": checkpoint.path.name,
            "step": checkpoint.progress.step,
            "manifest_sha256": sha256_of(checkpoint.path / "manifest.json"),
        },
        "proof": asdict(proof),
        **describe_files(directory, sorted(path.name for path in directory.iterdir())),
        "made_from": {"run": lineage},
    }


if __name__ == "__main__":
    sys.exit(main())
