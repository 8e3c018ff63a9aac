"""The report as a page: a manifest comes in, one HTML file that needs nothing else goes out.

Same manifest, same bytes. Names are the user's: they are escaped, and what would act unseen in them is spelt.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest
from pathlib import Path

from data_tools.manifest import BucketEntry, Manifest
from data_tools.report import (
    mixed_categories,
    most_first,
    named_shares,
    ratio,
    refused_by_category,
    short_name,
    tokens_of_text,
)
from data_tools.report_template import TEMPLATE
from data_tools.visible import visible_name
from tokenizer_tools.outputs import write_whole_file

NUM_COLOURS = 10  # the last one, grey, is that of all categories beyond
COLUMN_WIDTH = 10.0  # of the drawing's units, the gap to the next column included
HEIGHT = 100.0
HAIRLINE = 0.5  # what is not nothing has a height that can be seen


@dataclass(frozen=True)
class Bar:
    """A rectangle: `y` (from the top) and `height` of HEIGHT, `colour` from 0 to NUM_COLOURS - 1."""

    x: float
    y: float
    height: float
    colour: int
    title: str


@dataclass(frozen=True)
class Drawing:
    """Bars over one figure of each bucket, and the `extent` of that figure in words ("9 to 12")."""

    extent: str
    bars: list[Bar]


@dataclass(frozen=True)
class Lengths:
    """How long the documents of a category are; the bars cover the same lengths for every category."""

    name: str
    num_documents: int
    median: str
    bars: list[Bar]


@dataclass(frozen=True)
class Reason:
    """How many records or tokens one reason cost, and in which categories most."""

    reason: str
    count: int
    categories: list[tuple[str, int]]
    num_other_categories: int


def write_report_page(path: Path, manifest: Manifest) -> None:
    """Write the page to `path`, whole or not at all."""
    write_whole_file(path, report_page(manifest))


def report_page(manifest: Manifest) -> str:
    """The page as text: figures, ledger, reasons, lengths, buckets, fill."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"count": "{:,}".format, "units": "{:.2f}".format}
    environment.filters |= {"name": visible_name, "shortened": short_name}
    environment.globals |= {
        "ratio": ratio,
        "tokens_of_text": tokens_of_text,
        "num_colours": NUM_COLOURS,
        "column_width": COLUMN_WIDTH,
    }
    categories, buckets = manifest["categories"], manifest["buckets"]
    ranked = ranked_categories(manifest)
    dropped = {name: entry["tokens"]["dropped"] for name, entry in categories.items()}
    first_length, last_length = length_bins(manifest)
    return environment.from_string(TEMPLATE).render(
        manifest=manifest,
        num_rows=sum(bucket["rows"] for bucket in buckets),
        num_unknown=manifest["records"]["read"] - sum(entry["records"]["read"] for entry in categories.values()),
        is_mixed=bool(mixed_categories(manifest)),
        ranked=ranked,
        colours=colours_of(ranked),
        refused=reasons(manifest["records"]["refused"], refused_by_category(manifest)),
        dropped=reasons(manifest["tokens"]["dropped"], dropped),
        lengths=lengths(manifest, ranked),
        shortest=2**first_length,
        longest=2 ** (last_length + 1) - 1,
        num_lengths=last_length + 1 - first_length,
        legend=legend(manifest, ranked),
        composition=composition(buckets, colours_of(ranked)),
        bucket_tokens=drawing(buckets, lambda bucket: bucket["tokens"], ",d"),
        bucket_room=drawing(buckets, lambda bucket: room(bucket, manifest["max_length"]), ".2%"),
        farthest=farthest_share(manifest),
        fill_steps=fill_steps(buckets),
    )


def ranked_categories(manifest: Manifest) -> list[str]:
    """All categories, the one with most tokens in the bins first."""
    return [name for name, _ in most_first({n: e["tokens"]["in_bins"] for n, e in manifest["categories"].items()})]


def colours_of(ranked: Sequence[str]) -> dict[str, int]:
    """A colour for each of the first categories, the last colour for all others."""
    return {name: min(rank, NUM_COLOURS - 1) for rank, name in enumerate(ranked)}


def reasons(counts: Mapping[str, int], by_category: Mapping[str, Mapping[str, int]]) -> list[Reason]:
    """The reasons that cost anything, the dearest first."""
    return [Reason(name, count, *named_shares(name, by_category)) for name, count in most_first(counts) if count]


# --- lengths ----------------------------------------------------------------------------------------------------------


def length_bins(manifest: Manifest) -> tuple[int, int]:
    """The first and the last bin (of 2**i up to 2**(i + 1) - 1 tokens) in which any category has a document."""
    used = [i for entry in manifest["categories"].values() for i, n in enumerate(entry["length_histogram"]) if n]
    return min(used, default=0), max(used, default=0)


def lengths(manifest: Manifest, ranked: Sequence[str]) -> list[Lengths]:
    """All documents together, then each category that has any. Documents that fill a row have the second colour."""
    first, last = length_bins(manifest)
    histograms = {name: manifest["categories"][name]["length_histogram"] for name in ranked}
    together = [sum(counts) for counts in zip_longest(*histograms.values(), fillvalue=0)]
    colours = [int(2**i >= manifest["max_length"]) for i in range(first, last + 1)]
    found: list[Lengths] = []
    for name, histogram in [("all", together), *histograms.items()]:
        counts = [*histogram, *[0] * (last + 1 - len(histogram))][first : last + 1]
        titles = [f"{_range_of(i)} tokens: {count:,} documents" for i, count in enumerate(counts, start=first)]
        if sum(counts):
            median = _range_of(first + median_place(counts))
            found.append(Lengths(name, sum(counts), median, bars(counts, titles, colours)))
    return found


def median_place(counts: Sequence[int]) -> int:
    """Where in a histogram the one in the middle lies; of an even number, the lower of the two."""
    up_to_here = list(accumulate(counts))
    return bisect_left(up_to_here, up_to_here[-1] / 2)


def _range_of(length_bin: int) -> str:
    shortest, longest = 2**length_bin, 2 ** (length_bin + 1) - 1
    return f"{shortest:,}–{longest:,}" if shortest < longest else f"{shortest}"


# --- buckets ----------------------------------------------------------------------------------------------------------


def bars(values: Sequence[float], titles: Sequence[str], colours: Sequence[int]) -> list[Bar]:
    """Bars beside one another, the highest of full HEIGHT; none for 0."""
    heights = [max(HAIRLINE, HEIGHT * value / max(values)) if value else 0.0 for value in values]
    return [
        Bar(COLUMN_WIDTH * place, HEIGHT - height, height, colour, title)
        for place, (height, title, colour) in enumerate(zip(heights, titles, colours, strict=True))
        if height
    ]


def drawing(buckets: Sequence[BucketEntry], figure: Callable[[BucketEntry], float], form: str) -> Drawing:
    """A bar a bucket for `figure`, which is written in `form`."""
    values = [figure(bucket) for bucket in buckets]
    titles = [f"{bucket['path']}: {value:{form}}" for bucket, value in zip(buckets, values, strict=True)]
    least, most = f"{min(values):{form}}", f"{max(values):{form}}"
    return Drawing(f"{least} to {most}" if least != most else most, bars(values, titles, [0] * len(values)))


def room(bucket: BucketEntry, max_length: int) -> float:
    """The share of the places in a bucket's rows that hold no token; 0 without rows."""
    places = bucket["rows"] * max_length
    return 1 - bucket["tokens"] / places if places else 0.0


def legend(manifest: Manifest, ranked: Sequence[str]) -> list[tuple[int, str, str]]:
    """(colour, category, its share of all tokens in the bins); the last colour may stand for several categories."""
    total = manifest["tokens"]["in_bins"]
    tokens = {name: manifest["categories"][name]["tokens"]["in_bins"] for name in ranked}
    entries: list[tuple[int, str, str]] = []
    for colour, names in _by_colour([name for name in ranked if tokens[name]], colours_of(ranked)).items():
        entries.append((colour, _label(names), ratio(sum(tokens[name] for name in names), total, ".1%")))
    return entries


def composition(buckets: Sequence[BucketEntry], colours: Mapping[str, int]) -> list[Bar]:
    """One stack of full HEIGHT a bucket: the share of its tokens that the categories of each colour have."""
    found: list[Bar] = []
    for place, bucket in enumerate(buckets):
        y = HEIGHT
        for colour, names in _by_colour(bucket["categories"], colours).items():
            tokens = sum(bucket["categories"][name]["tokens"] for name in names)
            share = tokens / bucket["tokens"]
            y -= HEIGHT * share
            title = f"{bucket['path']}, {_label(names)}: {share:.1%}, {tokens:,} tokens"
            found.append(Bar(COLUMN_WIDTH * place, y, HEIGHT * share, colour, title))
    return found


def _by_colour(names: Iterable[str], colours: Mapping[str, int]) -> dict[int, list[str]]:
    by_colour: dict[int, list[str]] = {}
    for name in sorted(names, key=colours.__getitem__):
        by_colour.setdefault(colours[name], []).append(name)
    return by_colour


def _label(names: Sequence[str]) -> str:
    return short_name(names[0]) if len(names) == 1 else f"{len(names)} other categories"


def farthest_share(manifest: Manifest) -> tuple[float, str, str]:
    """(distance, bucket, category) where a category's share of a bucket's tokens is farthest from its overall share."""
    farthest = (0.0, "", "")
    for bucket in manifest["buckets"]:
        for name, entry in manifest["categories"].items():
            if bucket["tokens"]:
                part = bucket["categories"][name]["tokens"] if name in bucket["categories"] else 0
                overall = entry["tokens"]["in_bins"] / manifest["tokens"]["in_bins"]
                distance = abs(part / bucket["tokens"] - overall)
                farthest = max(farthest, (distance, bucket["path"], name), key=lambda found: found[0])
    return farthest


def fill_steps(buckets: Sequence[BucketEntry]) -> list[tuple[str, int]]:
    """("95–100 %", rows) for each step of fill that has rows, the fullest first."""
    counts = [sum(rows) for rows in zip(*(bucket["fill_histogram"] for bucket in buckets), strict=True)]
    step = 100 // len(counts)
    return [(f"{place * step}–{(place + 1) * step} %", n) for place, n in enumerate(counts) if n][::-1]
