"""A model grows to a new tokenizer: its directory comes in, config and weights of the new vocabulary go out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer_tools.command import UserError
from tokenizer_tools.growth import Figures, Rule, grow, one_thread
from tokenizer_tools.lineage import DIGITS, MANIFEST_VERSION, Record, fingerprints_behind, input_record, shortened
from tokenizer_tools.outputs import read_json, write_json
from tokenizer_tools.parts import new_pieces, parts_of_pieces
from tokenizer_tools.shards import Weights, check_space, make_plan, read_weights, write_weights
from tokenizer_tools.tokenizer import fingerprint, load_tokenizer
from tokenizer_tools.weight_files import FLOAT_TYPES, PickledFile, WeightFile

if TYPE_CHECKING:
    import torch
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

INPUT, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"  # a model with tied matrices needs no second one


def grow_model(
    source: Path, new: PreTrainedTokenizerFast, new_record: Record, target: Path, rules: Mapping[str, Rule]
) -> dict[str, Any]:
    """Write the model of `source`, grown to the tokenizer `new`, into the directory `target`; returns its manifest.

    `new_record` says where `new` comes from, `rules` for INPUT and OUTPUT how new rows start. Raises UserError if the
    old tokenizer is no prefix of the new one, or not the one that was expanded, or if the model does not fit it.
    """
    model_config = read_json(source / "config.json", "the config of the source model")
    old = load_tokenizer(source)
    pieces = new_pieces(old, new)
    weights = read_weights(source)
    is_tied = model_config.get("tie_word_embeddings", OUTPUT not in weights.file_of)
    check_matrices(weights, model_config, len(old), is_tied)
    if is_tied:
        rules = _one_rule(rules)
    plan = make_plan(weights, dict.fromkeys((INPUT, OUTPUT), len(new)), _twins(weights) if is_tied else ())
    check_space(plan, target.parent)
    old_mark = fingerprint(old)
    _refuse_other_source(source, old_mark, new_record)
    source_record = input_record(source, "model", old_mark)
    figures: dict[str, Figures] = {}

    def rows_of(name: str, file: WeightFile) -> Iterator[torch.Tensor]:
        parts = parting.result()
        log.info("%s: %d rows kept, %d new ones", name, len(old), len(parts))
        figures[name] = Figures()
        yield from grow(file.rows(name, len(old)), parts, rules[name], figures[name])

    with one_thread(), ThreadPoolExecutor(1) as pool:  # most of the time goes into copying, where nothing is computed
        parting = pool.submit(parts_of_pieces, old, new, pieces)
        write_weights(plan, target, rows_of, weights.index)
    write_json(target / "config.json", model_config | {"vocab_size": len(new)} | special_ids(model_config, new))
    if (source / "generation_config.json").is_file():
        generation = read_json(source / "generation_config.json", "the generation settings of the source model")
        write_json(target / "generation_config.json", generation | special_ids(generation, new))
    num_rows = weights.info(INPUT).shape[0]
    return base_manifest(len(old), len(new), new_record, rules[INPUT].initialiser) | {
        "noise": rules[INPUT].noise,
        "seed": rules[INPUT].seed,
        "source_tokenizer_fingerprint": old_mark,
        "identical_starting_rows": max(seen.identical_starting_rows for seen in figures.values()),
        "rows_of_source": num_rows,
        "matrices": {
            name: {"initialiser": rule.initialiser, "rows_dropped": num_rows - len(old)} | figures[name].report()
            for name, rule in rules.items()
            if name in figures
        },
        "made_from": {"tokenizer": new_record, "source_model": shortened(source_record)},
    }


def _refuse_other_source(source: Path, old_mark: str, new_record: Record) -> None:
    """Raise UserError if the new tokenizer says that it was expanded from another one than the model's."""
    behind = fingerprints_behind(new_record)
    if len(behind) > 1 and old_mark not in behind:
        expanded = new_record["source_tokenizer_fingerprint"]
        raise UserError(
            f"{source}: its tokenizer is {old_mark[:DIGITS]}, but the target tokenizer was expanded from "
            f"{expanded[:DIGITS]}; expand this model's own tokenizer with init_tokenizer"
        )


def check_matrices(weights: Weights, model_config: Mapping[str, Any], num_old: int, is_tied: bool) -> None:
    """Raise UserError if the embedding matrices do not fit each other, the config or the `num_old` old pieces."""
    source = weights.directory
    if INPUT not in weights.file_of:
        raise UserError(f"{source}: has no tensor {INPUT}; only LLaMA-style models can be grown, name one of them")
    if OUTPUT not in weights.file_of and not is_tied:
        raise UserError(
            f"{source}: has no tensor {OUTPUT}, and its config.json does not tie the output to the input matrix; "
            "fetch the model again"
        )
    for name in (INPUT, OUTPUT):
        if name in weights.file_of:
            _check_matrix(weights, name, model_config, num_old)
    shapes = {name: list(weights.info(name).shape) for name in (INPUT, OUTPUT) if name in weights.file_of}
    if shapes.get(OUTPUT, shapes[INPUT]) != shapes[INPUT]:
        raise UserError(
            f"{source}: {OUTPUT} has the shape {shapes[OUTPUT]}, but {INPUT} {shapes[INPUT]}; fetch the model again"
        )


def _check_matrix(weights: Weights, name: str, model_config: Mapping[str, Any], num_old: int) -> None:
    source, info = weights.directory, weights.info(name)
    if len(info.shape) != 2 or info.dtype not in FLOAT_TYPES:
        raise UserError(
            f"{source}: {name} is a {info.dtype} tensor of the shape {list(info.shape)}, no matrix of "
            f"{', '.join(FLOAT_TYPES)}; quantised and packed models cannot be grown, take the original"
        )
    for key, size in zip(("vocab_size", "hidden_size"), info.shape, strict=True):
        if model_config.get(key, size) != size:
            raise UserError(
                f"{source}: config.json says {key} {model_config[key]}, but {name} has the shape {list(info.shape)}; "
                "fetch both from the same model"
            )
    if info.shape[0] < num_old:
        raise UserError(
            f"{source}: {name} has {info.shape[0]} rows, but the tokenizer beside it has {num_old} pieces; "
            "put the tokenizer there that the model was trained with"
        )


def _one_rule(rules: Mapping[str, Rule]) -> dict[str, Rule]:
    """Tied matrices are one matrix: it starts as input rows do, wherever it is stored."""
    if rules[OUTPUT].initialiser != rules[INPUT].initialiser:
        raise UserError(
            f"--output_initialiser {rules[OUTPUT].initialiser}: this model's output matrix is its input matrix "
            "(tie_word_embeddings); leave the flag out"
        )
    return {INPUT: rules[INPUT], OUTPUT: rules[INPUT]}


def _twins(weights: Weights) -> list[str]:
    """A .bin holds a tied matrix under both names, safetensors as transformers writes them under one."""
    return [OUTPUT] if isinstance(weights.files[0], PickledFile) else []


def special_ids(settings: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """bos, eos and pad id as the tokenizer has them; a list of ids (several ends of a text) that holds the id stays."""
    ids: dict[str, Any] = {}
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        old, new = settings.get(name), getattr(tokenizer, name)
        ids[name] = old if isinstance(old, list) and new in old else new
    return ids


def base_manifest(num_old: int, num_new: int, tokenizer: Record, initialiser: str) -> dict[str, Any]:
    """What the manifest of every model says, grown or new, of `num_new` pieces of which `num_old` had a row before."""
    return {
        "version": MANIFEST_VERSION,
        "kind": "model",
        "tokenizer_fingerprint": tokenizer["tokenizer_fingerprint"],
        "vocab_size": {"before": num_old, "after": num_new},
        "initialiser": initialiser,
        "rows_initialised": num_new - num_old,
    }
