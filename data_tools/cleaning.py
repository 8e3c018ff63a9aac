"""Which documents to leave out: flags and texts come in, the reasons why texts are left out go out.

What a text tells alone is here, and what an evaluation set tells (`contamination.py`). Duplicates are told from all
documents at the end (`near_duplicates.py`) by hashes and sketches. REASONS names all of them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path

import numpy as np
import regex

from data_tools.characters import codes_of, look_up, table_of
from data_tools.contamination import MIN_UNITS, are_contaminated, ngrams_of_evaluation
from data_tools.evaluation_set import evaluation_texts
from data_tools.near_duplicates import SKETCH_KIND, sketches_of
from tokenizer_tools.command import UserError

REASONS = {
    "too_short": "fewer characters than --min_characters",
    "too_long": "more characters than --max_characters",
    "few_letters": "fewer letters among the characters than --min_letter_share",
    "other_script": "fewer letters of --only_scripts than --min_script_share",
    "repeated_lines": "more of the text in repeated lines than --max_repeated_line_share",
    "contaminated": "holds a run of words of --decontaminate",
    "exact_duplicate": "the same text as a document that is kept",
    "near_duplicate": "nearly the same text as a document that is kept",
}
FLAGS_OF_ONE_TEXT = (
    "min_characters",
    "max_characters",
    "min_letter_share",
    "only_scripts",
    "min_script_share",
    "max_repeated_line_share",
    "decontaminate_ngram",
)
BATCH_CHARACTERS = 2**17  # of n-grams at a time: 30 bytes of memory a character
MIN_SIMILARITY = 0.5
MIN_RUN, MAX_RUN = 5, 100  # words
LETTER = r"[\p{L}\p{M}]"  # marks too: vowels of Devanagari and Thai are marks
BLANK, NO_LETTER, LETTER_OF_ANY_SCRIPT, OF_ANOTHER_SCRIPT, OF_AN_ASKED_SCRIPT = range(5)  # kinds of characters


@dataclass(frozen=True)
class CleaningConfig:
    """Which documents to leave out. Off by default; what is left out is counted by reason."""

    min_characters: int = 0
    """Leave out documents of fewer characters"""
    max_characters: int | None = None
    """Leave out documents of more characters"""
    min_letter_share: float = 0.0
    """Leave out documents with fewer letters (of any script) among the characters that are not blank"""
    only_scripts: str = ""
    """Leave out documents in other scripts; Unicode's names, separated by commas: han,latin,cyrillic"""
    min_script_share: float = 0.5
    """Share of the letters that must be in --only_scripts"""
    max_repeated_line_share: float = 1.0
    """Leave out documents with more of their characters in lines that stand in them earlier too;
    0.2 is usual (Gopher, Rae et al. 2021)"""
    decontaminate: Path | None = None
    """Evaluation set, in any format of the input: leave out documents that share a run of words with it"""
    decontaminate_ngram: int = 13
    """Words in such a run; a character counts as a word in scripts without blanks (han, kana, thai, ...)"""
    drop_exact_duplicates: bool = False
    """Leave out documents that repeat another one to the letter"""
    near_duplicate_similarity: float | None = None
    """Leave out documents whose similarity to one that is kept is this or more; 0.8 is usual.
    Estimated share of common runs of five words"""

    @property
    def scripts(self) -> tuple[str, ...]:
        """The names in `only_scripts`."""
        return tuple(name.strip() for name in self.only_scripts.split(",") if name.strip())

    def check(self) -> None:
        """Raise UserError for the first flag that cannot be meant."""
        _check_characters(self)
        for name in ("min_letter_share", "min_script_share", "max_repeated_line_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name} {getattr(self, name)}: a share; choose 0 to 1")
        for script in self.scripts:
            _check_script(script)
        _check_companions(self)
        if not MIN_RUN <= self.decontaminate_ngram <= MAX_RUN:
            raise UserError(
                f"--decontaminate_ngram {self.decontaminate_ngram}: shorter runs occur everywhere, longer ones "
                f"nowhere; choose {MIN_RUN} to {MAX_RUN}; 13 is usual"
            )
        similarity = self.near_duplicate_similarity
        if similarity is not None and not MIN_SIMILARITY <= similarity <= 1:
            raise UserError(
                f"--near_duplicate_similarity {similarity}: choose {MIN_SIMILARITY} to 1; below, texts of one kind fall"
            )


def _check_characters(config: CleaningConfig) -> None:
    if config.min_characters < 0:
        raise UserError(f"--min_characters {config.min_characters}: a number of characters; choose 0 or more")
    if config.max_characters is not None and config.max_characters < max(config.min_characters, 1):
        raise UserError(
            f"--max_characters {config.max_characters}: would leave out every document; "
            f"choose {max(config.min_characters, 1)} or more"
        )


def _check_script(script: str) -> None:
    if script.replace("_", "").isalpha():
        with suppress(regex.error):
            regex.compile(_script_pattern(script))
            return
    raise UserError(
        f"--only_scripts {script}: no script of Unicode; name some of han, latin, cyrillic, arabic, hiragana, ..."
    )


def _check_companions(config: CleaningConfig) -> None:
    """A flag that has no effect is a misunderstanding."""
    defaults = {field.name: field.default for field in fields(config)}
    for name, companion in (("min_script_share", "only_scripts"), ("decontaminate_ngram", "decontaminate")):
        if getattr(config, name) != defaults[name] and not getattr(config, companion):
            raise UserError(f"--{name} {getattr(config, name)}: has no effect without --{companion}; add it")


class Cleaner:
    """What each worker does with its texts; nothing unless it `is_on`.

    Raises UserError if the evaluation set cannot be read.
    """

    def __init__(self, config: CleaningConfig) -> None:
        self._config = config
        self.is_on = config != CleaningConfig()
        self._evaluation = None
        if config.decontaminate is not None:
            self._evaluation = ngrams_of_evaluation(evaluation_texts(config.decontaminate), config.decontaminate_ngram)
            if not self._evaluation.sets:
                raise UserError(
                    f"--decontaminate {config.decontaminate}: no text of {MIN_UNITS} words or more; "
                    "shorter ones occur everywhere; name the files that hold the questions"
                )

    def faults(self, texts: Sequence[str]) -> list[str | None]:
        """[texts]: the reason (of REASONS) why a text is left out, None if it is to stay."""
        found = [fault(text, self._config) for text in texts]
        if self._evaluation is None:
            return found
        hits = [are_contaminated(batch, self._evaluation) for batch in _batches(texts)]
        return [
            reason or ("contaminated" if is_hit else None)
            for reason, is_hit in zip(found, chain.from_iterable(hits), strict=True)
        ]

    def sketches(self, texts: Sequence[str]) -> np.ndarray:
        """uint16 [texts, SKETCH_VALUES] for `near_duplicates`, [texts, 0] if near duplicates may stay."""
        if self._config.near_duplicate_similarity is None:
            return np.zeros((len(texts), 0), dtype=np.uint16)
        return np.concatenate([sketches_of(batch) for batch in _batches(texts)])

    def meaning(self) -> dict[str, object]:
        """All that decides what `faults` and `sketches` give, by the names users know it by."""
        config = self._config
        sets = self._evaluation.sets.values() if self._evaluation else ()
        return {
            **{name: getattr(config, name) for name in FLAGS_OF_ONE_TEXT},
            "decontaminate": [hashlib.sha256(known.hashes.tobytes()).hexdigest() for known in sets],
            "near_duplicate_similarity": None if config.near_duplicate_similarity is None else SKETCH_KIND,
        }


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """The same texts in lists of BATCH_CHARACTERS or little more; one empty list if there is no text."""
    first, size = 0, 0
    for place, text in enumerate(texts):
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield texts[first : place + 1]
            first, size = place + 1, 0
    if first < len(texts) or not texts:
        yield texts[first:]


def fault(text: str, config: CleaningConfig) -> str | None:
    """The reason (of REASONS) why a text is left out, the cheapest first; None if it is to stay."""
    if len(text) < config.min_characters:
        return "too_short"
    if config.max_characters is not None and len(text) > config.max_characters:
        return "too_long"
    if config.min_letter_share > 0 or config.only_scripts:
        kinds = look_up(_kinds(config.scripts), codes_of(text))
        counts = np.bincount(kinds, minlength=OF_AN_ASKED_SCRIPT + 1).tolist()
        if _share(counts, LETTER_OF_ANY_SCRIPT, NO_LETTER) < config.min_letter_share:
            return "few_letters"
        if config.only_scripts and _share(counts, OF_AN_ASKED_SCRIPT, OF_ANOTHER_SCRIPT) < config.min_script_share:
            return "other_script"
    if config.max_repeated_line_share < 1 and repeated_line_share(text) > config.max_repeated_line_share:
        return "repeated_lines"
    return None


def repeated_line_share(text: str) -> float:
    """The share of the characters that lie in lines which stand in the text earlier too; outer blanks do not count."""
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    num_once = sum(map(len, set(lines)))
    return 1 - num_once / sum(map(len, lines)) if lines else 0.0


def _share(counts: list[int], kind: int, whole: int) -> float:
    """Of the characters of kind `whole` and above, those of `kind` and above; 1 if there are none."""
    return sum(counts[kind:]) / sum(counts[whole:]) if any(counts[whole:]) else 1.0


@functools.cache
def _kinds(scripts: tuple[str, ...]) -> np.ndarray:
    """[TABLE_SIZE] uint8: the kind of each character."""
    is_letter = table_of(LETTER)
    kinds = table_of(r"\S").astype(np.uint8) * NO_LETTER
    kinds[is_letter] = LETTER_OF_ANY_SCRIPT
    kinds[is_letter & table_of(r"[^\p{Script=Common}\p{Script=Inherited}]")] = OF_ANOTHER_SCRIPT
    for script in scripts:
        kinds[is_letter & table_of(_script_pattern(script))] = OF_AN_ASKED_SCRIPT
    return kinds


def _script_pattern(script: str) -> str:
    return rf"\p{{Script={script}}}"
