"""Cleaning as a part needs it: flags come in, a fault or None for each text and the sketches of the kept ones go out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property

import numpy as np

from data_tools.cleaning import CleaningConfig, fault
from data_tools.contamination import EvaluationNgrams, are_contaminated, ngrams_of_evaluation
from data_tools.evaluation_set import evaluation_texts
from data_tools.near_duplicates import sketches_of


class Cleaner:
    """The filters that are switched on. Raises UserError for an evaluation set that cannot be read."""

    def __init__(self, config: CleaningConfig) -> None:
        self._config = config
        self._evaluation_texts = [] if config.decontaminate is None else evaluation_texts(config.decontaminate)

    @cached_property
    def _evaluation(self) -> EvaluationNgrams:
        return ngrams_of_evaluation(self._evaluation_texts, self._config.decontaminate_ngram)

    def meaning(self) -> dict[str, object]:
        """The flags, and a digest of the evaluation set in place of its path."""
        flags: dict[str, object] = asdict(self._config)
        if self._config.decontaminate is not None:
            flags["decontaminate"] = hashlib.sha256(json.dumps(self._evaluation_texts).encode()).hexdigest()
        return flags

    def faults(self, texts: Sequence[str]) -> list[str | None]:
        """Why each text is left out, or None."""
        found = [fault(text, self._config) for text in texts]
        if self._evaluation_texts:
            contaminated = are_contaminated(texts, self._evaluation).tolist()
            found = [
                reason or ("contaminated" if bad else None) for reason, bad in zip(found, contaminated, strict=True)
            ]
        return found

    def sketches(self, texts: Sequence[str]) -> np.ndarray:
        """uint16 [texts, values]; no values if near duplicates are not asked for."""
        if self._config.near_duplicate_similarity is None:
            return np.zeros((len(texts), 0), np.uint16)
        return sketches_of(texts)
