"""The last word of the command: a manifest comes in, a table a person reads goes to stdout."""

from __future__ import annotations

from data_tools.manifest import CategoryEntry, Manifest


def print_report(manifest: Manifest, seconds: float) -> None:
    """Print documents, tokens and refused lines of each category, then rows, fill and speed."""
    from rich.console import Console
    from rich.table import Table

    table = Table("category")
    for heading in ("documents", "tokens", "share", "tokens/byte", "refused"):
        table.add_column(heading, justify="right")
    for name, entry in manifest["categories"].items():
        table.add_row(*_cells(name, entry, manifest))
    table.add_section()
    table.add_row(*_cells("all", manifest, manifest))
    num_rows = sum(bucket["rows"] for bucket in manifest["buckets"])
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"{manifest['num_buckets']} buckets, {num_rows:,} rows of at most {manifest['max_length']} tokens, "
        f"{manifest['fill']:.2%} full; {seconds:.1f} s, {manifest['tokens']['in'] / seconds:,.0f} tokens/s",
        soft_wrap=True,
    )


def _cells(name: str, entry: CategoryEntry | Manifest, manifest: Manifest) -> list[str]:
    from rich.markup import escape

    tokens = entry["tokens"]["in_bins"]
    return [
        escape(name),
        f"{entry['records']['kept']:,}",
        f"{tokens:,}",
        f"{tokens / manifest['tokens']['in_bins']:.1%}",
        f"{entry['loss_tokens'] / entry['bytes']:.3f}" if entry["bytes"] else "-",
        f"{sum(entry['records']['refused'].values()):,}",
    ]
