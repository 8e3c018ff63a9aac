"""What the text holds, before anything is encoded: parts come in, documents and bytes by category and a plan go out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TypedDict

from data_tools.intake import loss_text
from data_tools.mixture import Mixture, check_names, copies_of
from data_tools.parts import Part
from data_tools.readers import read_span
from data_tools.records import Record
from data_tools.tools import Settings, tools_of
from data_tools.visible import visible_name


class CategoryPlan(TypedDict):
    """What the mixture makes of one category; `bytes` are those of the text that bears loss."""

    documents: int
    bytes: int
    copies: float
    planned_bytes: int


def survey_part(task: tuple[Part, Settings]) -> tuple[Counter[str], Counter[str]]:
    """(documents, bytes) of each category in a part."""
    part, settings = task
    documents: Counter[str] = Counter()
    num_bytes: Counter[str] = Counter()
    for span in part.spans:
        for item in read_span(span, tools_of(settings).read_options):
            if isinstance(item, Record):
                documents[item.category] += 1
                num_bytes[item.category] += len(loss_text(item).encode())
    return documents, num_bytes


def plan_mixture(
    mixture: Mixture, documents: Mapping[str, int], num_bytes: Mapping[str, int]
) -> dict[str, CategoryPlan]:
    """How often each category will be read. Raises UserError if mixture and text name different categories."""
    check_names(mixture, sorted(num_bytes))
    copies = copies_of(mixture, dict(sorted(num_bytes.items())))
    return {
        name: {
            "documents": documents[name],
            "bytes": num_bytes[name],
            "copies": times,
            "planned_bytes": round(num_bytes[name] * times),
        }
        for name, times in copies.items()
    }


def print_plan(plan: Mapping[str, CategoryPlan]) -> None:
    """Print what the mixture makes of each category to stderr, so that it is seen before the work begins."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    total = sum(entry["planned_bytes"] for entry in plan.values())
    table = Table("category", title="mixture, as planned", title_justify="left")
    for heading in ("documents", "bytes", "read", "planned bytes", "share"):
        table.add_column(heading, justify="right")
    for name, entry in plan.items():
        table.add_row(
            Text(visible_name(name)),
            f"{entry['documents']:,}",
            f"{entry['bytes']:,}",
            f"{entry['copies']:.2f} x",
            f"{entry['planned_bytes']:,}",
            f"{entry['planned_bytes'] / total:.1%}" if total else "-",
        )
    Console(stderr=True, highlight=False).print(table)
