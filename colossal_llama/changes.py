"""What a run that goes on is asked to do otherwise: a checkpoint's flags and the present ones in, differences out.

Pure functions, no torch. Data, seed and tokenizer are compared by their content (`progress.py`), stages by the position
(`Progress.check_stage`), the base model by its hashes (`lineage.py`), so that a moved directory is no change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from colossal_llama.progress import START_ANEW

Verdict = Literal["takes effect", "refused"]

PLACES = ("save_dir", "load_checkpoint", "config_file", "tensorboard_dir")
BY_CONTENT = ("pretrained", "dataset", "seed")
ADAPTER = ("lora_rank", "lora_alpha", "lora_targets", "lora_modules_to_save")
"""What gives the adapters of a checkpoint their shapes and their scale."""


@dataclass(frozen=True)
class Change:
    """One flag, or a figure that follows from flags, that is not what it was."""

    flag: str
    old: Any
    new: Any
    verdict: Verdict

    def __str__(self) -> str:
        return f"{self.flag} {_readable(self.old)} -> {_readable(self.new)}"


def changed_flags(old: Mapping[str, Any], new: Mapping[str, Any], trained: str) -> list[Change]:
    """The flags of two `TrainConfig.as_json()` that differ, in the order of `new`.

    `trained`: what the checkpoint's last stage trained. A flag that only one of the two has is one of another version
    of train.py, and not compared.
    """
    left_out = {*PLACES, *BY_CONTENT, *(() if trained == "lora" else ADAPTER)}
    return [
        Change(f"--{name}", _meant(name, old), _meant(name, new), "refused" if name in ADAPTER else "takes effect")
        for name in new
        if name in old and name not in left_out and _meant(name, old) != _meant(name, new)
    ]


def refusal(changes: Sequence[Change]) -> str | None:
    """Why these changes cannot be, in one line for the user; None if they can."""
    refused = [change for change in changes if change.verdict == "refused"]
    if not refused:
        return None
    return (
        f"{', '.join(map(str, refused))}: the adapters of the checkpoint were made with the old value; "
        f"keep it to go on, {START_ANEW}"
    )


def changed_figures(names: Mapping[str, str], old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """The same of figures that follow from the flags. `names`: {key of `old` and `new`: how the log calls it}."""
    return [Change(words, old[key], new[key], "takes effect") for key, words in names.items() if old[key] != new[key]]


def _meant(name: str, config: Mapping[str, Any]) -> Any:
    """A flag's value as it will be used."""
    value = config[name]
    if name == "lora_alpha" and value is None:
        return 2.0 * config["lora_rank"]
    return sorted(value) if name in ADAPTER and isinstance(value, list) else value


def _readable(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
