"""Command: directories of documents and a tokenizer come in, Arrow bins and `manifest.json` go out.

Pass 1 encodes the text part by part into a cache, pass 2 divides the documents into buckets on their lengths alone,
pass 3 packs and writes bucket after bucket. Memory does not grow with the text, only by some bytes a document.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from data_tools.input_files import INPUT_SUFFIXES, find_files
from data_tools.inputs import changed_files, changed_settings, read_inputs
from data_tools.manifest import MANIFEST_NAME, read_manifest
from data_tools.parts import plan_parts
from data_tools.prepare_config import PrepareConfig, check
from data_tools.work import discard_work
from tokenizer_tools.command import UserError, command
from tokenizer_tools.freed_memory import keep_freed_memory
from tokenizer_tools.outputs import refuse_existing

if TYPE_CHECKING:
    from data_tools.engine import Engine

FREED_AHEAD_BYTES = 2**26

logger = logging.getLogger("data_tools.prepare_pretrain_dataset")  # also where this file is run as a script


@command(PrepareConfig)
def main(config: PrepareConfig) -> None:
    """Prepare a dataset."""
    check(config)
    _settle_process()
    from data_tools.engine import Engine  # it loads libraries that --help must not wait for
    from data_tools.report import print_report

    started = time.monotonic()
    files, skipped = _find(config)
    engine = Engine(config, plan_parts(files, config.read_options), files, skipped)
    if _is_done(config, engine):
        discard_work(config.data_arrow_output_dir)
        logger.info("%s: already made from this very text with these flags", config.data_arrow_output_dir)
    else:
        for output in config.output_dirs:
            refuse_existing(output, config.overwrite)
        print_report(engine.run(), time.monotonic() - started)
    engine.write_readable()


def _settle_process() -> None:
    """transformers would import torch, two seconds, for the tokenizer alone; its threads would not survive a fork."""
    keep_freed_memory(FREED_AHEAD_BYTES)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "transformers" not in sys.modules and "torch" not in sys.modules:
        os.environ.setdefault("USE_TORCH", "0")
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def _find(config: PrepareConfig) -> tuple[list[Path], Counter[str]]:
    """The input files, and the number of others by suffix. Raises UserError if there is no input file."""
    files, skipped = find_files(config.input_dirs)
    others = ", ".join(f"{count} {suffix}" for suffix, count in sorted(skipped.items()))
    if not files:
        found = f"only {others}" if others else "no file at all"
        raise UserError(
            f"{config.data_input_dirs}: no input file ({found}); unpack or convert the text to one of "
            f"{', '.join(INPUT_SUFFIXES)}"
        )
    if skipped:
        logger.warning("warning: not read, because their names tell no known format: %s", others)
    return files, skipped


def _is_done(config: PrepareConfig, engine: Engine) -> bool:
    """Whether the output is there and whole, made from the same bytes with the same flags.

    Raises UserError if it was made otherwise or is damaged.
    """
    output = config.data_arrow_output_dir
    if config.overwrite or not (output / MANIFEST_NAME).is_file():
        return False
    manifest = read_manifest(output)
    new = json.loads(json.dumps(engine.meaning, default=str))
    changes = changed_settings(manifest["settings"], new) + changed_files(read_inputs(output), engine.input_digests())
    if changes:
        raise UserError(
            f"{output}: exists, but was made otherwise ({'; '.join(changes)}); add --overwrite to replace it or choose "
            "another name"
        )
    damaged = engine.damaged_bucket(manifest)
    if damaged is not None:
        raise UserError(f"{output / damaged}: missing or damaged; add --overwrite to make the dataset again")
    return True


if __name__ == "__main__":
    sys.exit(main())
