"""How often each category is read: a file of weights, caps and repeats and the bytes of each category come in, how many
copies are made goes out. Pure but for the reading of the file.

    {"zh": {"weight": 4}, "en": {"weight": 1, "max_bytes": 50000000, "repeats": 3}}

`repeats` is the number of times a category may be read (default 1), `max_bytes` the most that is taken of it, repeats
included. Without weights all of that is taken; with weights as much as is possible while the categories' shares of the
bytes are as their weights. A weight of 0 leaves a category out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.buckets import groups
from tokenizer_tools.command import CONFIG_FILE_SUFFIXES, UserError, read_mapping

MAX_REPEATS = 1000.0
KEYS = ("weight", "max_bytes", "repeats")
NEXT_COPY = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: copies of a document lie far apart, runs stay runs


@dataclass(frozen=True)
class Wish:
    """What the file says of one category."""

    weight: float | None = None
    max_bytes: float = math.inf
    repeats: float = 1.0


Mixture = Mapping[str, Wish]


def read_mixture(path: Path) -> dict[str, Wish]:
    """The wishes of a .json or .yaml file. Raises UserError with the file, the category and the value at fault."""
    values = _load(path)
    wishes = {name: _wish(path, name, value) for name, value in values.items()}
    unweighted = [name for name, wish in wishes.items() if wish.weight is None]
    if unweighted and len(unweighted) < len(wishes):
        raise UserError(f"{path}: {unweighted[0]} has no weight, but others have; give every category one, or none")
    if unweighted != list(wishes) and not any(wish.weight for wish in wishes.values()):
        raise UserError(f"{path}: every weight is 0, nothing would be left; give one category a weight above 0")
    return wishes


def _load(path: Path) -> dict[str, Any]:
    if path.suffix not in CONFIG_FILE_SUFFIXES:
        raise UserError(f"--mixture {path}: not a {', '.join(CONFIG_FILE_SUFFIXES)} file; name one")
    try:
        values = read_mapping(path, "categories")
    except UserError as error:
        raise UserError(f"--mixture {error}") from None
    if not values:
        raise UserError(f'--mixture {path}: names no category; write {{"zh": {{"weight": 4}}, ...}}')
    for name in values:
        if name is None or isinstance(name, bool):  # what YAML makes of a bare `no`
            raise UserError(f"--mixture {path}: the category {name!r} is no text; put it in quotes")
    return {str(name): value for name, value in values.items()}


def _wish(path: Path, category: str, value: Any) -> Wish:
    if not isinstance(value, dict):
        raise UserError(f"--mixture {path}: {category}: {value!r} is no mapping; write {category}: {{repeats: 2}}")
    for key, number in value.items():
        if key not in KEYS:
            raise UserError(f"--mixture {path}: {category}: unknown key {key!r}; choose from {', '.join(KEYS)}")
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number) or number < 0:
            raise UserError(f"--mixture {path}: {category}: {key} {number!r}; give a number of 0 or more")
    if value.get("repeats", 1) > MAX_REPEATS:
        raise UserError(f"--mixture {path}: {category}: repeats {value['repeats']}; at most {MAX_REPEATS:g}")
    return Wish(**value)


def as_json(mixture: Mixture) -> dict[str, dict[str, float]]:
    """What the file has said, without what it has left open."""
    return {
        name: {key: value for key, value in asdict(wish).items() if value is not None and math.isfinite(value)}
        for name, wish in mixture.items()
    }


def check_names(mixture: Mixture, categories: list[str]) -> None:
    """Raise UserError if the mixture names a category that is not there, or weighs some and is silent on another."""
    for name in mixture:
        if name not in categories:
            raise UserError(
                f"--mixture names {name!r}, but the text has only {', '.join(categories)}; correct the name"
            )
    for name in categories:
        if name not in mixture and any(wish.weight is not None for wish in mixture.values()):
            raise UserError(f"--mixture gives no weight to {name!r}, which the text has; give one, 0 leaves it out")


def copies_of(mixture: Mixture, num_bytes: Mapping[str, int]) -> dict[str, float]:
    """How often each category is read on average (2.5: all of it twice, half of it a third time), from its bytes.

    A category of which there is nothing, with all that cleaning has left out, takes no part in the shares.
    """
    wishes = {name: mixture.get(name, Wish()) for name in num_bytes}
    available = {name: min(num_bytes[name] * wish.repeats, wish.max_bytes) for name, wish in wishes.items()}
    weights = {name: wish.weight for name, wish in wishes.items() if wish.weight and available[name]}
    taken = available
    if any(wish.weight is not None for wish in wishes.values()):
        scale = min((available[name] / weight for name, weight in weights.items()), default=0.0)
        taken = {name: scale * weights.get(name, 0.0) for name in wishes}
    return {name: taken[name] / num_bytes[name] if num_bytes[name] else 0.0 for name in num_bytes}


def choose_copies(
    category: np.ndarray, text_bytes: np.ndarray, key: np.ndarray, copies: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(document [entries] int64, key [entries] uint64): every document as often as it is read.

    From [documents] arrays and `copies` [categories] float. Of a category read 2.5 times the documents with the
    smallest keys, up to half of its bytes, come a third time. A further copy has a key of its own, far from the first.
    """
    documents, keys = [], []
    for members, times in zip(groups(category, len(copies)), copies.tolist(), strict=True):
        members = members[np.argsort(key[members], kind="stable")]
        ends = np.cumsum(text_bytes[members])
        whole, part = math.floor(times), times - math.floor(times)
        num_once_more = int(np.searchsorted(ends, part * ends[-1] * (1 + 1e-12), side="right")) if len(ends) else 0
        for copy in range(whole + 1):
            chosen = members if copy < whole else members[:num_once_more]
            documents.append(chosen)
            keys.append(key[chosen] + np.array([copy], np.uint64) * NEXT_COPY)  # of an array it may overflow
    return np.concatenate(documents), np.concatenate(keys)
