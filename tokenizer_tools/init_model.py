"""Give a model the vocabulary of a tokenizer: an old model and a new tokenizer come in, a model directory goes out.

Old rows stay bit for bit; a new row starts from the old rows that spelled its piece, by a named rule. Everything but
the embedding matrices is copied, never held, so the machine needs no GPU and little memory. With `--from_config` the
model starts at random. torch is imported inside the functions: `--help` must not wait for it.
"""

from __future__ import annotations

import math
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenizer_tools.command import UserError, command
from tokenizer_tools.grow_model import INPUT, OUTPUT, base_manifest, grow_model, special_ids
from tokenizer_tools.growth import Rule
from tokenizer_tools.lineage import Record, describe_files, files_of, input_record
from tokenizer_tools.outputs import read_json, refuse_existing, whole_directory, write_json
from tokenizer_tools.tokenizer import fingerprint, load_tokenizer
from tokenizer_tools.tokenizer_files import (
    MANIFEST,
    REPORT,
    SETTINGS_FILES,
    VOCABULARY_FILES,
    copy_files,
    holds_weights,
    is_weights,
    refuse_overlap,
)

if TYPE_CHECKING:
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

Initialiser = Literal["mean", "position_mean", "normal", "zero", "copy"]
DEFAULT_INITIALISER: Initialiser = "mean"
DEFAULT_NOISE = 0.01


@dataclass
class InitModelConfig:
    """Grow a model to a new tokenizer's vocabulary, or start one from a config.json."""

    target_tokenizer_path: Path
    """the new tokenizer's directory (from init_tokenizer)"""
    target_model_path: Path
    """model directory to write; may be the tokenizer's own directory, which the model then joins"""
    source_model_and_tokenizer_path: Path | None = None
    """model to start from, in safetensors or .bin, with its own tokenizer beside it"""
    initialiser: Initialiser = DEFAULT_INITIALISER
    """where a new row starts: `mean` of the old rows that spell its piece; `position_mean` with most weight on the last
    of them; `normal`: a draw from the distribution of all old rows; `zero`; `copy` of the last of them"""
    output_initialiser: Initialiser | None = None
    """one of the same names for the output matrix, where `position_mean` and `copy` go by the first row instead of the
    last (default: as --initialiser)"""
    noise: float = DEFAULT_NOISE
    """noise on a new row that would repeat another row, in standard deviations of the old rows"""
    from_config: Path | None = None
    """instead of a source: the config.json of a new model with random weights"""
    seed: int | None = None
    """seed of the random weights with --from_config, of --noise and `normal` else (there by default 0)"""
    dtype: Literal["bfloat16", "float32"] | None = None
    """with --from_config: type of the weights (default: torch_dtype of the config, else float32)"""
    overwrite: bool = False
    """replace an existing target directory"""

    def check(self) -> None:
        """Raise UserError for flags that do not go together."""
        if (self.source_model_and_tokenizer_path is None) == (self.from_config is None):
            raise UserError(
                "give either --source_model_and_tokenizer_path (to grow a model) or --from_config (to start a new one)"
            )
        if self.from_config is None and self.dtype is not None:
            raise UserError("--dtype goes with --from_config only: a grown model keeps its dtype")
        if self.from_config is not None and self.seed is None:
            raise UserError("--from_config needs --seed N, so that the model can be made again; add --seed 42")
        rules = (self.initialiser, self.output_initialiser, self.noise)
        if self.from_config is not None and rules != (DEFAULT_INITIALISER, None, DEFAULT_NOISE):
            raise UserError(
                "--initialiser, --output_initialiser and --noise go with --source_model_and_tokenizer_path only: "
                "with --from_config every row is random"
            )
        if not 0 <= self.noise < math.inf:
            raise UserError(f"--noise {self.noise}: must be 0 or more standard deviations; try --noise {DEFAULT_NOISE}")


@command(InitModelConfig)
def main(config: InitModelConfig) -> None:
    """The command: see InitModelConfig for its flags."""
    config.check()
    tokenizer_dir, target_dir = config.target_tokenizer_path, config.target_model_path
    source_dir = config.source_model_and_tokenizer_path
    joins = tokenizer_dir.resolve() == target_dir.resolve()
    may_replace = config.overwrite or (joins and not holds_weights(target_dir))
    refuse_existing(target_dir, may_replace)
    for input_dir in (source_dir, None if joins else tokenizer_dir):
        if input_dir is not None:
            refuse_overlap(target_dir, input_dir)
    tokenizer = load_tokenizer(tokenizer_dir)
    tokenizer_record = input_record(tokenizer_dir, "tokenizer", fingerprint(tokenizer))
    with whole_directory(target_dir, may_replace) as target:
        if source_dir is not None:
            manifest = grow_model(source_dir, tokenizer, tokenizer_record, target, rules_of(config))
        else:
            manifest = _start_model(config, tokenizer, tokenizer_record, target)
        _add_tokenizer(tokenizer_dir, target, joins)
        write_json(target / MANIFEST, manifest | describe_files(target, files_of(target, "model")))
    print(report(manifest))


def _add_tokenizer(tokenizer_dir: Path, target: Path, joins: bool) -> None:
    """Put the tokenizer's files beside the weights. In its own directory all else stays too, but for an old model."""
    if not joins:
        copy_files(tokenizer_dir, target, (*VOCABULARY_FILES, *SETTINGS_FILES, REPORT))
        return
    for path in tokenizer_dir.iterdir():
        if not (target / path.name).exists() and not is_weights(path):
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, target / path.name)


def rules_of(config: InitModelConfig) -> dict[str, Rule]:
    """{matrix: how its new rows start}, from the flags; no flag for the output matrix means the same as for input."""
    output_initialiser, seed = config.output_initialiser or config.initialiser, config.seed or 0
    return {
        INPUT: Rule(config.initialiser, is_output=False, noise=config.noise, seed=seed),
        OUTPUT: Rule(output_initialiser, is_output=True, noise=config.noise, seed=seed),
    }


def report(manifest: dict[str, Any]) -> str:
    """The figures of the manifest for a reader."""
    lines = [
        f"vocabulary: {manifest['vocab_size']['before']} -> {manifest['vocab_size']['after']}",
        f"new rows ({manifest['initialiser']}): {manifest['rows_initialised']}",
        f"new rows equal to an earlier row: {manifest['identical_starting_rows']}",
    ]
    for name, matrix in manifest.get("matrices", {}).items():
        lines.append(
            f"{name} ({matrix['initialiser']}): {matrix['rows_dropped']} padding rows dropped, "
            f"{matrix['rows_with_noise']} new rows told apart by noise"
        )
        for figure in ("norm_of_old_rows", "norm_of_new_rows", "cosine_to_mean_of_parts"):
            values = "  ".join(f"{quantile} {value:.4f}" for quantile, value in matrix[figure].items())
            lines.append(f"  {figure.replace('_', ' ')}: {values or 'no rows'}")
    return "\n".join(lines)


def _start_model(
    config: InitModelConfig, tokenizer: PreTrainedTokenizerFast, tokenizer_record: Record, target: Path
) -> dict[str, Any]:
    """Write a model with random weights for `config.from_config` into `target`; returns its manifest."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    assert config.from_config is not None and config.seed is not None  # check() saw to it
    settings = read_json(config.from_config, "the config.json of the new model")
    if "model_type" not in settings:
        raise UserError(f'{config.from_config}: has no "model_type"; add "model_type": "llama"')
    settings |= {"vocab_size": len(tokenizer)} | special_ids(settings, tokenizer)
    settings["torch_dtype"] = config.dtype or settings.get("torch_dtype") or "float32"
    try:
        model_config = AutoConfig.for_model(**settings)
        torch.manual_seed(config.seed)
        model = AutoModelForCausalLM.from_config(model_config, torch_dtype=getattr(torch, settings["torch_dtype"]))
    except Exception as error:  # whatever a config of the wrong sizes and types leads to in a model's code
        raise UserError(f"{config.from_config}: gives no model ({error}); correct it") from error
    model.save_pretrained(target, safe_serialization=True)
    settings_record = {"kind": "config", **describe_files(config.from_config.parent, [config.from_config.name])}
    return base_manifest(0, len(tokenizer), tokenizer_record, f"random, seed {config.seed}") | {
        "identical_starting_rows": 0,
        "made_from": {"tokenizer": tokenizer_record, "config": settings_record},
    }


if __name__ == "__main__":
    sys.exit(main())
