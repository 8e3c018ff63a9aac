"""The flags of `prepare_pretrain_dataset`: a command line comes in, checked values go out."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from data_tools.cleaning import CleaningConfig
from data_tools.fields import ReadOptions
from data_tools.mixture import Mixture, as_json, read_mixture
from data_tools.refusals import most_refused
from tokenizer_tools.command import UserError

MIN_LENGTH = 8
MAX_BINS = 100_000  # bucket names have five digits


@dataclass
class PrepareConfig:
    """Turn text into packed training rows, divided into buckets that each hold a share of every category."""

    data_input_dirs: str
    """Directories of .jsonl, .json, .csv, .txt (also .gz and .zst) and .parquet files, separated by commas; folders
    below them are searched too. One document a line: {"source": "", "target": "...", "category": "..."}"""
    tokenizer_dir: Path
    """Tokenizer directory"""
    data_arrow_output_dir: Path
    """Output: part-00000, part-00001, ..., manifest.json, refused.jsonl, inputs.json and report.html"""
    data_jsonl_output_dir: Path | None = None
    """Output, optional: the same rows as readable .jsonl, one file a bucket"""
    data_cache_dir: Path | None = None
    """Where encoded parts lie (1 to 2 bytes a token); kept, so that another --max_length need not encode again.
    Default: beside the output, removed at the end"""
    max_length: int = 4096
    """Tokens in a row, at most"""
    num_spliced_dataset_bins: int = 10
    """Bins a category is divided into, which is the number of buckets"""
    long_documents: Literal["split", "truncate", "drop"] = "split"
    """What becomes of a document longer than a row: cut into rows, cut off, or left out; what is lost is counted"""
    mixture: Path | None = None
    """File of weights, caps and repeats: {"zh": {"weight": 4}, "en": {"weight": 1, "max_bytes": 5e7, "repeats": 3}}"""
    text_field: str = "target"
    """Name of the field that holds the text"""
    source_field: str = "source"
    """Name of the field that holds a prompt, which bears no loss"""
    category_field: str = "category"
    """Name of the field that holds the category"""
    txt_documents: Literal["file", "line", "blank_lines"] = "file"
    """What is a document in .txt files: the file, a line, or what stands between blank lines"""
    text_format: Literal["plain", "human_assistant"] = "plain"
    """human_assistant: texts spell <s>Human: ...</s><s>Assistant: ...</s>, loss on the assistant's turns only"""
    max_document_bytes: int = 2**26
    """A longer line is refused"""
    max_refused: str | None = None
    """Stop if more lines are refused: a count (100) or a share (0.01)"""
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    """Which documents to leave out"""
    seed: int = 42
    """Seed of the order of rows within a bucket"""
    backend: Literal["auto", "gigatoken", "sentencepiece", "tokenizers"] = "auto"
    """Library that encodes; auto: the fastest that gives the tokenizer's own ids on a sample of the text"""
    num_workers: int | None = None
    """Processes; the same bytes come out for any number. Default: one for every 64 MiB of files, at most all CPUs"""
    ray_address: str | None = None
    """Work on a Ray cluster (auto, or host:port); input, cache and output have to lie on a shared file system"""
    overwrite: bool = False
    """Replace existing output directories"""

    @property
    def input_dirs(self) -> list[Path]:
        """The directories of `data_input_dirs`."""
        return [Path(name.strip()) for name in self.data_input_dirs.split(",") if name.strip()]

    @property
    def output_dirs(self) -> list[Path]:
        """The one or two output directories."""
        return [path for path in (self.data_arrow_output_dir, self.data_jsonl_output_dir) if path is not None]

    @property
    def read_options(self) -> ReadOptions:
        """How files become records."""
        return ReadOptions(
            text_field=self.text_field,
            source_field=self.source_field,
            category_field=self.category_field,
            txt_documents=self.txt_documents,
            text_format=self.text_format,
            max_document_bytes=self.max_document_bytes,
        )

    @cached_property
    def wishes(self) -> Mixture:
        """What the mixture's file says. Raises UserError if it cannot be read."""
        return {} if self.mixture is None else read_mixture(self.mixture)

    @property
    def arrangement(self) -> dict[str, Any]:
        """The flags that decide what becomes of encoded documents, as the manifest and messages show them."""
        return {
            "max_length": self.max_length,
            "num_spliced_dataset_bins": self.num_spliced_dataset_bins,
            "long_documents": self.long_documents,
            "mixture": as_json(self.wishes) or None,
            "drop_exact_duplicates": self.cleaning.drop_exact_duplicates,
            "near_duplicate_similarity": self.cleaning.near_duplicate_similarity,
            "seed": self.seed,
        }


def check(config: PrepareConfig) -> None:
    """Raise UserError for the first flag that cannot be meant."""
    if config.max_length < MIN_LENGTH:
        raise UserError(f"--max_length {config.max_length}: a row holds at least {MIN_LENGTH} tokens; 4096 is usual")
    if not 1 <= config.num_spliced_dataset_bins <= MAX_BINS:
        raise UserError(f"--num_spliced_dataset_bins {config.num_spliced_dataset_bins}: choose 1 to {MAX_BINS}")
    for name in ("seed", "max_document_bytes", "num_workers"):
        least = 0 if name == "seed" else 1
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"--{name} {value}: choose {least} or more")
    most_refused(config.max_refused, 0)
    config.cleaning.check()
    _ = config.wishes
    if not config.input_dirs:
        raise UserError("--data_input_dirs names no directory; separate directories by commas")
    for path in config.input_dirs:
        if not path.is_dir():
            raise UserError(f"--data_input_dirs {path}: no such directory; name directories of text files")
    for output in config.output_dirs:
        _check_apart(output, config)
    if config.data_cache_dir is not None:
        _check_cache(config.data_cache_dir, config.input_dirs)


def _check_cache(cache: Path, input_dirs: list[Path]) -> None:
    for path in input_dirs:
        if cache.resolve().is_relative_to(path.resolve()):
            raise UserError(f"--data_cache_dir {cache}: lies in {path} and would be read as text; choose another place")


def _check_apart(output: Path, config: PrepareConfig) -> None:
    """An output that holds an input would replace it; one that lies in an input would be read as text next time."""
    others = [*config.input_dirs, *(path for path in config.output_dirs if path is not output)]
    if config.data_cache_dir is not None:
        others.append(config.data_cache_dir)
    for other in [*others, config.tokenizer_dir]:
        if other.resolve().is_relative_to(output.resolve()):
            raise UserError(f"{output}: this output directory would replace {other}; choose a directory of its own")
    for other in others:
        if output.resolve().is_relative_to(other.resolve()) and other is not config.data_cache_dir:
            raise UserError(f"{output}: this output directory lies in {other}; choose a directory outside of it")
