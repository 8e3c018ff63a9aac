"""Mine new pieces: text and an old tokenizer come in, `{"piece": "...", "count": n}` lines go out, best first.

`count` is how often the text makes the piece (as itself or as a step to a longer one); the order is by tokens saved.
Whatever head of the file is used, init_tokenizer needs no intermediates for it.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from tokenizer_tools.command import UserError, command
from tokenizer_tools.mine import HAN_RUN, best_first, count_made, count_runs, learn_model
from tokenizer_tools.outputs import write_whole_file
from tokenizer_tools.texts import find_text_files, read_texts, split_paths
from tokenizer_tools.tokenizer import load_tokenizer

log = logging.getLogger(__name__)


@dataclass
class TrainPiecesConfig:
    """Mine the Chinese pieces that would save an old tokenizer the most tokens on some text."""

    data_input_dirs: str
    """directories (or files) of .jsonl records or .txt texts, separated by commas"""
    tokenizer_dir: Path
    """the old tokenizer: what it has already is not mined"""
    num_pieces: int
    """how many pieces to write"""
    output_file: Path
    """file to write, for --expand_tokens_file of init_tokenizer"""
    categories: str = ""
    """use only text of these categories, separated by commas (default: all)"""
    character_coverage: float = 0.9995
    """share of the text whose characters may become pieces: the rarest characters beyond it are left to bytes"""
    overwrite: bool = False
    """replace an existing output file"""

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        if self.num_pieces < 1:
            raise UserError(f"--num_pieces {self.num_pieces}: has to be at least 1; name how many pieces to write")
        if not 0.5 <= self.character_coverage <= 1:
            raise UserError(f"--character_coverage {self.character_coverage}: has to lie in 0.5 to 1; leave it out")
        if self.output_file.exists() and not self.overwrite:
            raise UserError(f"{self.output_file}: exists; add --overwrite to replace it or choose another name")


@command(TrainPiecesConfig)
def main(config: TrainPiecesConfig) -> None:
    """The command: see TrainPiecesConfig for its flags."""
    config.check()
    old = set(load_tokenizer(config.tokenizer_dir).get_vocab())
    files = find_text_files(split_paths(config.data_input_dirs))
    runs = count_runs(tqdm(_texts_of(files, config.categories), desc="reading", unit="doc", disable=None))
    if not runs:
        categories = f" in the categories {config.categories}" if config.categories else ""
        raise UserError(f"{config.data_input_dirs}: holds no Chinese text{categories}; name text to mine from")
    log.info("mining %d different runs of Han characters from %d files", len(runs), len(files))
    num_known = sum(len(piece) > 1 and HAN_RUN.fullmatch(piece) is not None for piece in old)
    made = count_made(learn_model(runs, config.num_pieces + num_known, config.character_coverage), runs)
    pieces = [piece for piece in best_first(made) if piece not in old][: config.num_pieces]
    lines = [json.dumps({"piece": piece, "count": made[piece]}, ensure_ascii=False) for piece in pieces]
    write_whole_file(config.output_file, "".join(line + "\n" for line in lines))
    if len(pieces) < config.num_pieces:
        log.warning("the text holds only %d new pieces, not %d; add text", len(pieces), config.num_pieces)
    num_characters = sum(len(piece) == 1 for piece in pieces)
    print(f"{config.output_file}: {len(pieces)} pieces, {num_characters} of them single characters")


def _texts_of(files: list[Path], categories: str) -> Iterator[str]:
    """The texts of the wanted categories. Raises UserError for a wanted category that no document has."""
    wanted = {name.strip() for name in categories.split(",") if name.strip()}
    seen = set()
    for category, text in read_texts(files):
        seen.add(category)
        if not wanted or category in wanted:
            yield text
    if wanted - seen:
        raise UserError(f"--categories: no text of {sorted(wanted - seen)}; there is {', '.join(sorted(seen))}")


if __name__ == "__main__":
    sys.exit(main())
