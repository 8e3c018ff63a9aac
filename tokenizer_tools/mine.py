"""BPE on runs of Han characters: texts come in, pieces go out, best first, with the number of times they are made."""

from __future__ import annotations

import io
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import sentencepiece

# CJK unified ideographs with extension A, the compatibility block, the planes of rare characters, and 々 〇.
HAN_RUN = re.compile("[\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]{1,4000}")
MAX_RUN_BYTES = 4000 * 4
MAX_PIECE_CHARACTERS = 16
UNKNOWN_CONTROLS = 3  # <unk>, <s>, </s> take a place each in the trainer's vocabulary


def count_runs(texts: Iterable[str]) -> Counter[str]:
    """How often each run of Han characters stands in `texts`."""
    runs: Counter[str] = Counter()
    for text in texts:
        runs.update(HAN_RUN.findall(text))
    return runs


def learn_model(runs: Mapping[str, int], num_merges: int, character_coverage: float) -> bytes:
    """A sentencepiece BPE model with up to `num_merges` merges over `runs`. Same runs, same bytes, in any order."""
    num_characters = len({character for run in runs for character in run})
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "runs.tsv"
        table.write_text("".join(f"{run}\t{runs[run]}\n" for run in sorted(runs)), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(table),
            input_format="tsv",
            model_writer=model,
            model_type="bpe",
            vocab_size=num_characters + num_merges + UNKNOWN_CONTROLS,
            hard_vocab_limit=False,  # a small corpus may hold fewer
            character_coverage=character_coverage,
            max_sentence_length=MAX_RUN_BYTES,
            max_sentencepiece_length=MAX_PIECE_CHARACTERS,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            split_by_unicode_script=False,
            minloglevel=2,
        )
    return model.getvalue()


def count_made(model: bytes, runs: Mapping[str, int]) -> dict[str, int]:
    """How often each piece is made when `runs` are encoded, as itself or on the way to a longer one; 0 is left out."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    ranks = {processor.id_to_piece(i): i for i in range(UNKNOWN_CONTROLS, processor.get_piece_size())}
    made: Counter[str] = Counter()
    texts = sorted(runs)
    for text, pieces in zip(texts, processor.encode(texts, out_type=str), strict=True):
        for piece in pieces:
            made[piece] += runs[text]
    for piece in sorted(ranks, key=ranks.__getitem__, reverse=True):
        if len(piece) > 1 and made[piece]:
            for part in last_merge(piece, ranks):
                made[part] += made[piece]
    return {piece: made[piece] for piece in ranks if made[piece]}


def best_first(made: Mapping[str, int]) -> list[str]:
    """The pieces by the number of tokens they save: a merge saves one each time, a character all its bytes but one.

    No step saves less than what it leads to, and of equals the shorter is first: any head of the list is closed.
    """

    def merit(piece: str) -> int:
        return made[piece] * (len(piece.encode()) - 1 if len(piece) == 1 else 1)

    return sorted(made, key=lambda piece: (-merit(piece), len(piece), piece))


def last_merge(piece: str, ranks: Mapping[str, int]) -> tuple[str, str]:
    """The two parts that BPE (lowest rank first, then leftmost) joins last to get `piece`.

    Raises ValueError if its merges do not lead to `piece`.
    """
    symbols = list(piece)
    while len(symbols) > 2:
        joined = [left + right for left, right in zip(symbols, symbols[1:], strict=False)]
        best = min(range(len(joined)), key=lambda k: ranks.get(joined[k], len(ranks) + len(piece)))
        if joined[best] not in ranks:
            raise ValueError(f"no merges lead to {piece!r}: {symbols}")
        symbols[best : best + 2] = [joined[best]]
    return symbols[0], symbols[1]
