"""Command: directories of .jsonl documents and a tokenizer come in, Arrow bins and `manifest.json` go out.

Pass 1 reads and encodes every document into one scratch file, pass 2 divides them into buckets and packs rows on their
lengths alone, pass 3 writes bucket after bucket. Memory does not grow with the text, only by some bytes a document.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from data_tools.bucket_writer import write_buckets
from data_tools.intake import Intake
from data_tools.manifest import build_manifest, write_manifest
from data_tools.records import SUFFIX, find_files
from data_tools.report import print_report
from data_tools.spool import Spool, smallest_dtype
from tokenizer_tools.command import UserError, command
from tokenizer_tools.outputs import whole_directory
from tokenizer_tools.tokenizer import TextEncoder, fingerprint, load_tokenizer

if TYPE_CHECKING:
    from transformers.tokenization_utils_fast import PreTrainedTokenizerFast

REFUSED_NAME = "refused.jsonl"
MIN_LENGTH = 8
MAX_BINS = 100_000  # bucket names have five digits

logger = logging.getLogger(__name__)


@dataclass
class Config:
    """Turn text into packed training rows, divided into buckets that each hold a share of every category."""

    data_input_dirs: str
    """Directories of .jsonl files, separated by commas; folders below them are searched too.
    One document a line: {"source": "", "target": "...", "category": "..."}"""
    tokenizer_dir: Path
    """Tokenizer directory"""
    data_arrow_output_dir: Path
    """Output: part-00000, part-00001, ..., manifest.json and refused.jsonl"""
    data_jsonl_output_dir: Path | None = None
    """Output, optional: the same rows as readable .jsonl, one file a bucket"""
    data_cache_dir: Path | None = None
    """Where the scratch file lies while this runs (2 or 4 bytes a token); default: beside the output"""
    max_length: int = 4096
    """Tokens in a row, at most"""
    num_spliced_dataset_bins: int = 10
    """Bins a category is divided into, which is the number of buckets"""
    seed: int = 42
    """Seed of the order of rows within a bucket"""
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


def check(config: Config) -> None:
    """Raise UserError for the first flag that cannot be meant."""
    if config.max_length < MIN_LENGTH:
        raise UserError(f"--max_length {config.max_length}: a row holds at least {MIN_LENGTH} tokens; 4096 is usual")
    if not 1 <= config.num_spliced_dataset_bins <= MAX_BINS:
        raise UserError(f"--num_spliced_dataset_bins {config.num_spliced_dataset_bins}: choose 1 to {MAX_BINS}")
    if config.seed < 0:
        raise UserError(f"--seed {config.seed}: a seed is not negative; choose 0 or more")
    if not config.input_dirs:
        raise UserError("--data_input_dirs names no directory; separate directories by commas")
    for path in config.input_dirs:
        if not path.is_dir():
            raise UserError(f"--data_input_dirs {path}: no such directory; name directories of {SUFFIX} files")
    for output in config.output_dirs:
        _check_apart(output, config)


def _check_apart(output: Path, config: Config) -> None:
    """An output that holds an input would replace it; one that lies in an input would be read as text next time."""
    others = [*config.input_dirs, *(path for path in config.output_dirs if path is not output)]
    for other in [*others, config.tokenizer_dir]:
        if other.resolve().is_relative_to(output.resolve()):
            raise UserError(f"{output}: this output directory would replace {other}; choose a directory of its own")
    for other in others:
        if output.resolve().is_relative_to(other.resolve()):
            raise UserError(f"{output}: this output directory lies in {other}; choose a directory outside of it")


@command(Config)
def main(config: Config) -> None:
    """Prepare a dataset."""
    check(config)
    started = time.monotonic()
    with ExitStack() as stack:
        arrow_dir = stack.enter_context(whole_directory(config.data_arrow_output_dir, config.overwrite))
        jsonl_dir = None
        if config.data_jsonl_output_dir is not None:
            jsonl_dir = stack.enter_context(whole_directory(config.data_jsonl_output_dir, config.overwrite))
        files, skipped = _find(config)
        tokenizer = load_tokenizer(config.tokenizer_dir)
        spool = Spool(
            stack.enter_context(_scratch_file(config)), smallest_dtype(max(tokenizer.get_vocab().values()) + 1)
        )
        intake = _read_all(files, tokenizer, spool, arrow_dir)
        documents = spool.documents(intake.counts.category_names)
        buckets = write_buckets(
            documents,
            arrow_dir,
            jsonl_dir,
            num_buckets=config.num_spliced_dataset_bins,
            max_length=config.max_length,
            seed=config.seed,
            decode=tokenizer.decode,
        )
        manifest = build_manifest(
            tokenizer_fingerprint=fingerprint(tokenizer),
            max_length=config.max_length,
            seed=config.seed,
            files={"read": len(files), "skipped": skipped},
            counts=intake.counts,
            documents=documents,
            buckets=buckets,
        )
        write_manifest(arrow_dir, manifest)
    print_report(manifest, time.monotonic() - started)


def _find(config: Config) -> tuple[list[Path], dict[str, int]]:
    """The input files, and the number of others by suffix. Raises UserError if there is no input file."""
    files, skipped = find_files(config.input_dirs)
    others = ", ".join(f"{count} {suffix}" for suffix, count in sorted(skipped.items()))
    if not files:
        found = f"only {others}" if others else "no file at all"
        raise UserError(f"{config.data_input_dirs}: no {SUFFIX} file ({found}); unpack or convert the text to {SUFFIX}")
    if skipped:
        logger.warning("warning: not read, because only %s files are: %s", SUFFIX, others)
    return files, dict(sorted(skipped.items()))


def _scratch_file(config: Config) -> BinaryIO:
    """A file without a name: the system takes it back even if this process is killed."""
    directory = config.data_cache_dir or config.data_arrow_output_dir.absolute().parent
    directory.mkdir(parents=True, exist_ok=True)
    return cast(BinaryIO, tempfile.TemporaryFile(dir=directory))


def _read_all(files: list[Path], tokenizer: PreTrainedTokenizerFast, spool: Spool, arrow_dir: Path) -> Intake:
    """Pass 1. Raises UserError if no document is left."""
    from tqdm import tqdm

    num_bytes = sum(path.stat().st_size for path in files)
    with (
        (arrow_dir / REFUSED_NAME).open("w", encoding="utf-8") as refused_file,
        tqdm(total=num_bytes, desc="encode", unit="B", unit_scale=True, disable=None) as bar,
    ):
        intake = Intake(TextEncoder(tokenizer), spool, refused_file)
        intake.read(files, bar.update)
    refused = _refused(intake)
    if not len(spool):
        reason = f"{len(files)} files, {refused or 'all empty'}"
        raise UserError(f'{files[0].parent}: no document ({reason}); write one {{"target": "..."}} a line')
    if refused:
        logger.warning("warning: %s; all are listed in %s of the output", refused, REFUSED_NAME)
    return intake


def _refused(intake: Intake) -> str:
    """ "refused 3 invalid_json, 1 empty_target, the first at a.jsonl:7", or nothing."""
    first = intake.first_refusal
    if first is None:
        return ""
    reasons = ", ".join(f"{count} {reason}" for reason, count in intake.counts.ledger()["refused"].items())
    return f"refused {reasons}, the first at {first.file}:{first.line_number}"


if __name__ == "__main__":
    sys.exit(main())
