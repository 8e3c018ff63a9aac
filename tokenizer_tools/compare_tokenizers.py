"""Compare tokenizers on the same text: tokenizers and data come in, tables (or one JSON document, a file) go out."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from simple_parsing import field
from tqdm import tqdm

from tokenizer_tools.command import UserError, command
from tokenizer_tools.figures import open_tokenizer, tally
from tokenizer_tools.outputs import write_whole_file
from tokenizer_tools.result_files import check_plot_name, draw_bars, refuse_existing_files
from tokenizer_tools.texts import find_text_files, read_texts, split_paths

RATIOS = {  # heading of a table: name of the figure, its form
    "tokens/char": ("tokens_per_character", "{:.4f}"),
    "tokens/byte": ("tokens_per_byte", "{:.4f}"),
    "tokens/doc": ("tokens_per_document", "{:.1f}"),
}
GROUPS = {"language": "languages", "category": "categories"}
Rows = list[list[str]]


@dataclass
class CompareTokenizersConfig:
    """Vocabulary size, compression rate and average length of tokenizers on the same text, per category and language.

    The compression rate is tokens per character. The language is that of the script with the most letters.
    """

    tokenizers: list[Path] = field(positional=True)
    """tokenizer directories (Hugging Face, sentencepiece or byte-level) and sentencepiece files (.model)"""
    data: str = field()
    """.jsonl or .txt files or directories of them, separated by commas; a document is a sample"""
    json: bool = False
    """print one JSON document instead of tables"""
    markdown: Path | None = None
    """file to write the tables to as Markdown"""
    plot: Path | None = None
    """file to draw tokens per character to, per tokenizer, language and category (.png)"""
    overwrite: bool = False
    """replace existing files"""

    def check(self) -> None:
        """Raise UserError for values that cannot work."""
        if not self.tokenizers:
            raise UserError("no tokenizer given; name one or more directories or sentencepiece files")
        refuse_existing_files([self.markdown, self.plot], self.overwrite)
        check_plot_name(self.plot)


@command(CompareTokenizersConfig)
def main(config: CompareTokenizersConfig) -> None:
    """The command: see CompareTokenizersConfig for its flags."""
    config.check()
    files = find_text_files(split_paths(config.data))
    if not files:
        raise UserError("--data names no path; name .jsonl or .txt files or directories of them")
    opened = {str(path): open_tokenizer(path) for path in config.tokenizers}
    documents = tqdm(read_texts(files), desc="encoding", unit="doc", disable=None)
    tallies = tally({name: encoder for name, (_, encoder) in opened.items()}, documents)
    result = {name: {"vocab_size": opened[name][0], **tallies[name].figures()} for name in opened}
    if config.markdown is not None:
        write_whole_file(config.markdown, markdown_of(result))
    if config.plot is not None:
        draw_comparison(config.plot, result)
    if config.json:
        print(json.dumps({"tokenizers": result}, ensure_ascii=False, indent=2))
    else:
        print_tables(result)


def tables(result: dict[str, dict]) -> dict[str, Rows]:
    """{title: rows, the headings first}: the tokenizers side by side on all text, then by language and category."""
    overview = [["", "tokenizer", "pieces", "tokens", *RATIOS]]
    for number, (name, tokenizer) in enumerate(result.items(), start=1):
        overview.append([f"#{number}", name, f"{tokenizer['vocab_size']:,}", *_cells(tokenizer["total"])])
    by_title = {_title_of(next(iter(result.values()))["total"]): overview}
    for singular, plural in GROUPS.items():
        rows = [[singular, "documents", "", "tokens", *RATIOS]]
        for name, figures in next(iter(result.values()))[plural].items():
            for number, tokenizer in enumerate(result.values(), start=1):
                head = [name, f"{figures['documents']:,}"] if number == 1 else ["", ""]
                rows.append([*head, f"#{number}", *_cells(tokenizer[plural][name])])
        by_title[f"By {singular}"] = rows
    return by_title


def _title_of(total: dict[str, float]) -> str:
    return f"{total['documents']:,} documents, {total['characters']:,} characters, {total['bytes']:,} bytes"


def _cells(figures: dict[str, float]) -> list[str]:
    return [f"{figures['tokens']:,}", *(form.format(figures[key]) for key, form in RATIOS.values())]


def print_tables(result: dict[str, dict]) -> None:
    """The tables on stdout."""
    console = Console()
    for title, (headings, *rows) in tables(result).items():
        table = Table(title=title, title_justify="left", box=SIMPLE)
        for column, heading in enumerate(headings):
            left = column == 0 or heading == "tokenizer"
            table.add_column(heading, justify="left" if left else "right", no_wrap=not left, overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)


def markdown_of(result: dict[str, dict]) -> str:
    """The tables as a Markdown document."""
    lines = ["# Tokenizers compared", ""]
    for title, (headings, *rows) in tables(result).items():
        lines += [f"## {title}", ""]
        rule = [":---" if heading in ("", "tokenizer", *GROUPS) else "---:" for heading in headings]
        lines += ["| " + " | ".join(_escape(cell) for cell in row) + " |" for row in (headings, rule, *rows)] + [""]
    return "\n".join(lines)


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|")


def draw_comparison(path: Path, result: dict[str, dict]) -> None:
    """Tokens per character as bars: all text, then each language and each category."""
    some = next(iter(result.values()))
    places = [(group, name) for group in GROUPS.values() for name in some[group]]
    groups = ["all text", *(name for _, name in places)]
    bars = {
        f"{name} ({tokenizer['vocab_size']:,} pieces)": [
            figures["tokens_per_character"]
            for figures in (tokenizer["total"], *(tokenizer[group][name] for group, name in places))
        ]
        for name, tokenizer in result.items()
    }
    draw_bars(path, groups, bars, "tokens per character: less is better")


if __name__ == "__main__":
    sys.exit(main())
