"""Give a model the vocabulary of a tokenizer: an old model and a new tokenizer come in, a model directory goes out.

Old rows stay bit for bit; a new row is the mean of the old rows its text had so far. Nothing but the embedding matrices
is computed with, so the machine needs no GPU and memory for one shard. With `--from_config` the model starts at random.
torch is imported inside the functions: `--help` must not wait for it.
"""

from __future__ import annotations

import logging
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenizer_tools.command import UserError, command
from tokenizer_tools.mean_rows import count_repeats, grow, old_ids_of_pieces
from tokenizer_tools.outputs import read_json, refuse_existing, whole_directory, write_json
from tokenizer_tools.shards import holds_weights, is_weights, rewrite_shards, tensor_shapes
from tokenizer_tools.tokenizer import fingerprint, load_tokenizer
from tokenizer_tools.tokenizer_files import (
    MANIFEST,
    REPORT,
    SETTINGS_FILES,
    VOCABULARY_FILES,
    copy_files,
    refuse_overlap,
)

if TYPE_CHECKING:
    import torch
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

MANIFEST_VERSION = 1
EMBEDDING = "model.embed_tokens.weight"
MATRICES = (EMBEDDING, "lm_head.weight")  # a model with tied matrices has no second one


@dataclass
class InitModelConfig:
    """Grow a model to a new tokenizer's vocabulary, or start one from a config.json."""

    target_tokenizer_path: Path
    """the new tokenizer's directory (from init_tokenizer)"""
    target_model_path: Path
    """model directory to write; may be the tokenizer's own directory, which the model then joins"""
    source_model_and_tokenizer_path: Path | None = None
    """model to start from, in safetensors, with its own tokenizer beside it"""
    from_config: Path | None = None
    """instead of a source: the config.json of a new model with random weights"""
    seed: int | None = None
    """with --from_config: seed of the random weights"""
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
        if self.from_config is None and (self.seed is not None or self.dtype is not None):
            raise UserError("--seed and --dtype go with --from_config only: a grown model keeps its dtype")
        if self.from_config is not None and self.seed is None:
            raise UserError("--from_config needs --seed N, so that the model can be made again; add --seed 42")


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
    with whole_directory(target_dir, may_replace) as target:
        if source_dir is not None:
            manifest = grow_model(source_dir, tokenizer, target)
        else:
            manifest = _start_model(config, tokenizer, target)
        _add_tokenizer(tokenizer_dir, target, joins)
        write_json(target / MANIFEST, manifest | _tokenizer_manifest(tokenizer_dir))
    print(f"vocabulary: {manifest['vocab_size']['before']} -> {manifest['vocab_size']['after']}")
    print(f"new rows ({manifest['initialiser']}): {manifest['rows_initialised']}")
    print(f"new rows equal to an earlier new row: {manifest['identical_starting_rows']}")


def _add_tokenizer(tokenizer_dir: Path, target: Path, joins: bool) -> None:
    """Put the tokenizer's files beside the weights. In its own directory all else stays too, but for an old model."""
    if not joins:
        copy_files(tokenizer_dir, target, (*VOCABULARY_FILES, *SETTINGS_FILES, REPORT))
        return
    for path in tokenizer_dir.iterdir():
        if not (target / path.name).exists() and not is_weights(path):
            (shutil.copytree if path.is_dir() else shutil.copyfile)(path, target / path.name)


def _tokenizer_manifest(tokenizer_dir: Path) -> dict[str, Any]:
    """{"tokenizer": what init_tokenizer wrote there}, also when a model has joined it since; else {}."""
    if not (tokenizer_dir / MANIFEST).is_file():
        return {}
    manifest = read_json(tokenizer_dir / MANIFEST, "the manifest of init_tokenizer")
    if manifest.get("kind") != "tokenizer":
        manifest = manifest.get("tokenizer", {})
    return {"tokenizer": manifest} if manifest else {}


def grow_model(source: Path, new: PreTrainedTokenizerFast, target: Path) -> dict[str, Any]:
    """Write the model of `source`, grown to the tokenizer `new`, into the directory `target`; returns its manifest.

    Raises UserError if the old tokenizer is no prefix of the new one or the model does not fit the old one.
    """
    model_config = read_json(source / "config.json", "the config of the source model")
    old = load_tokenizer(source)
    pieces = new_pieces(old, new)
    num_old = len(old)
    shapes = tensor_shapes(source, MATRICES)
    _check_shapes(source, shapes, num_old)
    bags = old_ids_of_pieces(old, pieces)
    repeats: dict[str, int] = {}

    def change(name: str, rows: torch.Tensor) -> torch.Tensor:
        log.info("%s: %d rows kept, %d new ones", name, num_old, len(bags))
        grown = grow(rows, num_old, bags)
        repeats[name] = count_repeats(grown[num_old:])
        return grown

    rewrite_shards(source, target, tuple(shapes), change)
    write_json(target / "config.json", model_config | {"vocab_size": len(new)} | special_ids(model_config, new))
    if (source / "generation_config.json").is_file():
        generation = read_json(source / "generation_config.json", "the generation settings of the source model")
        write_json(target / "generation_config.json", generation | special_ids(generation, new))
    return _manifest(num_old, new, "mean", len(pieces)) | {
        "source_tokenizer_fingerprint": fingerprint(old),
        "identical_starting_rows": repeats[EMBEDDING],
        "rows_of_source": shapes[EMBEDDING][0],
    }


def new_pieces(old: PreTrainedTokenizerFast, new: PreTrainedTokenizerFast) -> list[str]:
    """The pieces that only `new` has, in the order of their ids. Raises UserError if an old piece has moved."""
    old_ids, new_ids = old.get_vocab(), new.get_vocab()
    moved = sorted((i, piece) for piece, i in old_ids.items() if new_ids.get(piece) != i)
    if moved:
        old_id, piece = moved[0]
        raise UserError(
            f"piece {piece!r} has id {old_id} beside the model, but {new_ids.get(piece)} in the target tokenizer; "
            "old ids must not move, expand this model's own tokenizer with init_tokenizer"
        )
    pieces = sorted(new_ids.keys() - old_ids.keys(), key=new_ids.__getitem__)
    expected = range(len(old_ids), len(new_ids))
    if [new_ids[piece] for piece in pieces] != list(expected):
        raise UserError(
            f"the target tokenizer's {len(pieces)} new pieces do not have the ids {expected.start} to "
            f"{expected.stop - 1}; expand this model's own tokenizer with init_tokenizer"
        )
    return pieces


def _check_shapes(source: Path, shapes: dict[str, tuple[int, ...]], num_old: int) -> None:
    if EMBEDDING not in shapes:
        raise UserError(f"{source}: has no tensor {EMBEDDING}; only LLaMA-style models can be grown, name one of them")
    for name, shape in shapes.items():
        if shape[0] < num_old:
            raise UserError(
                f"{source}: {name} has {shape[0]} rows, but the tokenizer beside it has {num_old} pieces; "
                "put the tokenizer there that the model was trained with"
            )


def special_ids(settings: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """bos, eos and pad id as the tokenizer has them; a list of ids (several ends of a text) that holds the id stays."""
    ids: dict[str, Any] = {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        old, new = settings.get(name), getattr(tokenizer, name)
        ids[name] = old if isinstance(old, list) and new in old else new
    return ids


def _start_model(config: InitModelConfig, tokenizer: PreTrainedTokenizerFast, target: Path) -> dict[str, Any]:
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
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{config.from_config}: gives no model ({error}); correct it") from error
    model.save_pretrained(target, safe_serialization=True)
    return _manifest(0, tokenizer, f"random, seed {config.seed}", len(tokenizer)) | {"identical_starting_rows": 0}


def _manifest(num_old: int, tokenizer: PreTrainedTokenizerFast, initialiser: str, num_rows: int) -> dict[str, Any]:
    return {
        "version": MANIFEST_VERSION,
        "kind": "model",
        "tokenizer_fingerprint": fingerprint(tokenizer),
        "vocab_size": {"before": num_old, "after": len(tokenizer)},
        "initialiser": initialiser,
        "rows_initialised": num_rows,
    }


if __name__ == "__main__":
    sys.exit(main())
