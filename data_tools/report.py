"""The last word of the command: a manifest comes in, tables that a person reads go to stdout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from data_tools.manifest import CategoryEntry, Manifest
from data_tools.visible import terminal, visible_name

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

LONGEST_NAME = 48  # characters
NAMED_CATEGORIES = 3
NO_CATEGORY = "(category unknown)"
NOTHING = "-"
TRUNCATED = "truncated"  # the reason for which the ends of long documents are dropped


def print_report(manifest: Manifest, seconds: float) -> None:
    """Print what became of each category; what was refused, dropped, left out or repeated, if any; the rows and speed.

    `seconds` is the time the whole command took.
    """
    console = terminal()
    _print_tables(console, manifest)
    console.print(_last_line(manifest, seconds), soft_wrap=True)


def _print_tables(console: Console, manifest: Manifest) -> None:
    console.print(_category_table(manifest))
    refused = refused_by_category(manifest)
    dropped = {name: entry["tokens"]["dropped"] for name, entry in manifest["categories"].items()}
    if any(refused.values()):
        console.print(_reason_table("refused because", "records", manifest["records"]["refused"], refused))
    if any(dropped.values()):
        console.print(_reason_table("dropped because", "tokens", manifest["tokens"]["dropped"], dropped))
    if mixed := mixed_categories(manifest):
        console.print(_mixture_table(mixed))


def _last_line(manifest: Manifest, seconds: float) -> str:
    num_buckets, num_rows = manifest["num_buckets"], sum(bucket["rows"] for bucket in manifest["buckets"])
    return (
        f"{num_buckets} {'bucket' if num_buckets == 1 else 'buckets'}, {num_rows:,} rows of at most "
        f"{manifest['max_length']} tokens, {manifest['fill']:.2%} full; {seconds:.1f} s, "
        f"{manifest['tokens']['in'] / seconds:,.0f} tokens/s"
    )


def refused_by_category(manifest: Manifest) -> dict[str, dict[str, int]]:
    """Category -> {reason: records}, only what is not 0. NO_CATEGORY: records that do not tell theirs."""
    refused = {name: entry["records"]["refused"] for name, entry in manifest["categories"].items()}
    unknown = {
        reason: count - sum(reasons.get(reason, 0) for reasons in refused.values())
        for reason, count in manifest["records"]["refused"].items()
    }
    refused = {NO_CATEGORY: unknown, **refused}
    nonzero = {name: {reason: n for reason, n in reasons.items() if n} for name, reasons in refused.items()}
    return {name: reasons for name, reasons in nonzero.items() if reasons}


def mixed_categories(manifest: Manifest) -> dict[str, CategoryEntry]:
    """The categories of which not every kept document is in the bins, or some are more than once."""
    return {
        name: entry
        for name, entry in manifest["categories"].items()
        if entry["records"]["placed"] != entry["records"]["kept"] or entry["tokens"]["repeated"]
    }


def tokens_of_text(entry: CategoryEntry | Manifest) -> int:
    """The tokens of the text whose `characters` and `bytes` the manifest counts, that of whole documents.

    So the ends of truncated documents count too; they bear loss unless a source alone is longer than a row.
    """
    return entry["loss_tokens"] + entry["tokens"]["dropped"].get(TRUNCATED, 0)


def ratio(part: float, whole: float, form: str) -> str:
    """part / whole, written in `form` (".1%", ".3f"); "-" for a share of nothing."""
    return format(part / whole, form) if whole else NOTHING


def short_name(name: str) -> str:
    """The name on one line, of at most LONGEST_NAME characters: of a longer one the beginning and the end."""
    name = visible_name(name)
    half = LONGEST_NAME // 2
    return name if len(name) <= LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"


def most_first(reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    """The largest count first, equal ones by name."""
    return sorted(reasons.items(), key=lambda item: (-item[1], item[0]))


def named_shares(reason: str, by_category: Mapping[str, Mapping[str, int]]) -> tuple[list[tuple[str, int]], int]:
    """(category, count) of the few that have most of `reason`, and how many other categories have some."""
    counts = most_first({name: reasons[reason] for name, reasons in by_category.items() if reasons.get(reason)})
    return counts[:NAMED_CATEGORIES], len(counts[NAMED_CATEGORIES:])


def _table(*headings: str, title: str | None = None) -> Table:
    """A table whose first column is text that folds, and whose others are figures that do not."""
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=SIMPLE)
    for column, heading in enumerate(headings):
        is_figure = column > 0
        table.add_column(heading, justify="right" if is_figure else "left", no_wrap=is_figure, overflow="fold")
    return table


def _category_table(manifest: Manifest) -> Table:
    table = _table("category", "documents", "tokens", "share", "tokens/\nchar", "bytes/\ntoken", "refused")
    for name, entry in manifest["categories"].items():
        table.add_row(*_cells(name, entry, manifest))
    table.add_section()
    table.add_row(*_cells("all", manifest, manifest))
    return table


def _cells(name: str, entry: CategoryEntry | Manifest, manifest: Manifest) -> list[str | Text]:
    """`refused` of all is more than the sum of the categories where records do not tell theirs."""
    from rich.text import Text

    return [
        Text(short_name(name)),
        f"{entry['records']['placed']:,}",
        f"{entry['tokens']['in_bins']:,}",
        ratio(entry["tokens"]["in_bins"], manifest["tokens"]["in_bins"], ".1%"),
        ratio(tokens_of_text(entry), entry["characters"], ".3f"),
        ratio(entry["bytes"], tokens_of_text(entry), ".2f"),
        f"{sum(entry['records']['refused'].values()):,}",
    ]


def _reason_table(
    heading: str, unit: str, reasons: Mapping[str, int], by_category: Mapping[str, Mapping[str, int]]
) -> Table:
    from rich.text import Text

    table = _table(heading, unit)
    table.add_column("categories", overflow="fold")
    for reason, count in most_first(reasons):
        named, num_others = named_shares(reason, by_category)
        words = [f"{short_name(name)} {share:,}" for name, share in named]
        words += [f"{num_others} more"] if num_others else []
        table.add_row(Text(visible_name(reason)), f"{count:,}", Text(", ".join(words)))
    return table


def _mixture_table(mixed: Mapping[str, CategoryEntry]) -> Table:
    from rich.text import Text

    table = _table("left out or repeated", "kept", "in the bins", "repeated\ntokens", "of its\ntokens")
    for name, entry in mixed.items():
        records, tokens = entry["records"], entry["tokens"]
        repeated, share = tokens["repeated"], ratio(tokens["repeated"], tokens["in"], ".1%")
        table.add_row(Text(short_name(name)), f"{records['kept']:,}", f"{records['placed']:,}", f"{repeated:,}", share)
    return table
