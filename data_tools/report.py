"""The last word of the command: a manifest comes in, a table a person reads goes to stdout."""

from __future__ import annotations

from data_tools.manifest import Manifest


def print_report(manifest: Manifest, seconds: float) -> None:
    """Print documents, tokens and refused lines of each category, then rows, fill and speed."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("category")
    for heading in ("documents", "tokens", "share", "tokens/byte", "refused"):
        table.add_column(heading, justify="right")
    for name, entry in [*manifest["categories"].items(), ("all", manifest)]:
        records, tokens = entry["records"], entry["tokens"]["in_bins"]
        table.add_row(
            escape(name),
            f"{records['kept']:,}",
            f"{tokens:,}",
            f"{tokens / manifest['tokens']['in_bins']:.1%}",
            f"{entry['loss_tokens'] / entry['bytes']:.3f}" if entry["bytes"] else "-",
            f"{sum(records['refused'].values()):,}",
            end_section=entry is last,
        )
    num_rows = sum(bucket["rows"] for bucket in manifest["buckets"])
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    console.print(
        f"{manifest['num_buckets']} buckets, {num_rows:,} rows of at most {manifest['max_length']} tokens, "
        f"{manifest['fill']:.2%} full; {seconds:.1f} s, {manifest['tokens']['in'] / seconds:,.0f} tokens/s"
    )
