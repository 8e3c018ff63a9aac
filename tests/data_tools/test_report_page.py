"""The page: well-formed, self-contained, the same bytes each time, and every figure is the manifest's."""

from __future__ import annotations

import copy
import json
import re
import statistics
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_tools import report_page as page
from data_tools.manifest import Manifest
from data_tools.report_page import report_page, write_report_page
from tests.data_tools.test_report import make_bucket, make_category, make_manifest, refusing

VOID = ("meta", "br", "img", "link", "input", "hr")
HOSTILE = [
    "<script>alert('x')</script>",
    "</title></style><img src=x onerror=alert(1)>",
    '"><b onmouseover="alert(1)">',
    "{{ 7 * 7 }}{% raw %}",
    "a & b &amp; c",
    "x" * 200,
    "عربي فارسي",
    "evil\u202egnp.exe",
    "two\nlines\x1b[31m\x00",
    "items",
    "all",
]


class Page(HTMLParser):
    """What a browser makes of it: tags with attributes, the text in each kind of tag, tables as rows of cells."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.tables: list[list[list[str]]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in VOID:
            return
        self._open.append(tag)
        self.texts.setdefault(tag, []).append("")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in set(self._open):
            self.texts[tag][-1] += data
        if {"td", "th"} & set(self._open):
            self.tables[-1][-1][-1] += data

    def rows(self, table: int = 0) -> list[list[str]]:
        """A table with each cell's blanks made one."""
        return [[" ".join(cell.split()) for cell in row] for row in self.tables[table]]

    @property
    def headings(self) -> list[str]:
        return self.texts["h2"]

    def table_under(self, heading: str) -> list[list[str]]:
        """The only table of a section (sections have one at most)."""
        with_table = [title for title in self.headings if title != "Length of documents"]
        return self.rows(with_table.index(heading))

    def drawings(self) -> dict[str, list[dict[str, Any]]]:
        """aria-label -> the rectangles of the last drawing of that name: x, y, height, colour."""
        found: dict[str, list[dict[str, Any]]] = {}
        label = ""
        for tag, attributes in self.tags:
            if tag == "svg":
                label = str(attributes["aria-label"])
                found[label] = []
            elif tag == "rect":
                numbers = {key: float(str(attributes[key])) for key in ("x", "y", "height")}
                found[label].append(numbers | {"colour": int(str(attributes["class"])[1:])})
        return found


@pytest.fixture
def manifest() -> Manifest:
    """Two buckets, three categories, something of everything that can happen."""
    categories = {
        "en": make_category(30, 3_000, length_histogram=[0, 0, 10, 15, 5, 0, 0, 0, 0, 0, 0, 0, 0]),
        "zh": refusing(
            make_category(
                20,
                1_000,
                tokens={"in": 1_500, "dropped": {"truncated": 500, "other": 0}, "repeated": 200},
                records={"placed": 24},
                length_histogram=[0, 2, 0, 0, 0, 0, 0, 0, 0, 17, 1],
            ),
            too_short=7,
            empty_target=1,
        ),
        "gone": refusing(make_category(0, 0), empty_target=3),
    }
    buckets = [
        make_bucket("part-00000", {"en": 2_000, "zh": 600}, rows=6, fill_histogram=[0] * 17 + [1, 0, 5]),
        make_bucket("part-00001", {"en": 1_000, "zh": 400}, rows=3, fill_histogram=[1] + [0] * 18 + [2]),
    ]
    return make_manifest(categories, buckets, invalid_json=4)


def big_manifest(num_buckets: int, names: list[str]) -> Manifest:
    buckets = [
        make_bucket(
            f"part-{b:05d}", {name: 1000 + 37 * (b * len(names) + i) % 501 for i, name in enumerate(names)}, rows=9
        )
        for b in range(num_buckets)
    ]
    totals = {name: sum(bucket["categories"][name]["tokens"] for bucket in buckets) for name in names}
    return make_manifest(
        {name: refusing(make_category(9, totals[name]), too_short=len(name)) for name in names}, buckets
    )


# --- as a document ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_buckets", [1, 10, 200])
@pytest.mark.parametrize("num_categories", [1, 10, 11, 60])
def test_any_number_of_buckets_and_categories(num_buckets: int, num_categories: int) -> None:
    names = [f"category_{i:02d}" for i in range(num_categories)]
    text = report_page(big_manifest(num_buckets, names))
    parsed = Page(text)
    assert {row[0] for row in parsed.table_under("Ledger")} >= set(names)
    assert len(parsed.drawings()["share of each category in each bucket"]) == num_buckets * min(num_categories, 10)
    assert len(parsed.texts["li"]) == min(num_categories, 10)
    assert len(text) < 1_000_000


def test_nothing_is_fetched_and_nothing_runs(manifest: Manifest) -> None:
    text = report_page(manifest)
    parsed = Page(text)
    assert not {tag for tag, _ in parsed.tags} & {"script", "link", "img", "iframe", "object", "base", "form"}
    assert not re.search(r"url\(|@import|https?:|//\w", text)
    attributes = {name for _, found in parsed.tags for name in found}
    assert not [name for name in attributes if name.startswith("on") or name in ("src", "href", "srcset")]
    policy = [
        a["content"] for tag, a in parsed.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'"]


def test_hostile_names_are_text_and_nothing_else() -> None:
    tame = report_page(big_manifest(3, [f"c{i}" for i in range(len(HOSTILE))]))
    manifest = big_manifest(3, HOSTILE)
    manifest["files"]["skipped"] = {"<i>.pdf": 2}
    text = report_page(manifest)
    parsed = Page(text)
    assert Counter(tag for tag, _ in parsed.tags) - Counter(tag for tag, _ in Page(tame).tags) == {
        "bdi": 1
    }  # the suffix
    names = [row[0] for row in parsed.table_under("Ledger")]
    for name in HOSTILE:
        shown = name.replace("\u202e", "\\u202e").replace("\n", "\\n").replace("\x1b", "\\x1b").replace("\0", "\\x00")
        assert shown in names
    shortened = parsed.texts["li"] + parsed.table_under("Refused records, by reason")[0][-1].split(", ")
    assert max(map(len, shortened)) < 70  # in the ledger names are whole, elsewhere short
    assert not set("\u202e\x1b\0") & set(text)
    assert "2 <i>.pdf." in " ".join(parsed.texts["footer"][0].split())


def test_same_manifest_same_bytes(manifest: Manifest, tmp_path: Path) -> None:
    write_report_page(tmp_path / "new" / "a.html", copy.deepcopy(manifest))
    expected = (tmp_path / "new" / "a.html").read_bytes()
    assert expected.decode("utf-8") == report_page(manifest)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.html"]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    script = (
        "import json, sys; from data_tools.report_page import report_page; "
        "sys.stdout.buffer.write(report_page(json.load(open(sys.argv[1]))).encode())"
    )
    for seed in ("1", "2"):
        command = [sys.executable, "-c", script, str(tmp_path / "manifest.json")]
        result = subprocess.run(
            command, capture_output=True, check=True, env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": seed}
        )
        assert result.stdout == expected


# --- its figures ------------------------------------------------------------------------------------------------------


def test_ledger(manifest: Manifest) -> None:
    rows = Page(report_page(manifest)).table_under("Ledger")
    assert rows[2:] == [  # by tokens in the bins
        ["en", "30", "0", "30", "30", "3,000", "0", "0", "3,000", "75.0%", "3,000", "0.333", "4.00"],
        ["zh", "28", "8", "20", "24", "1,500", "200", "500", "1,000", "25.0%", "1,000", "0.500", "2.67"],
        ["gone", "3", "3", "0", "0", "0", "0", "0", "0", "0.0%", "0", "-", "-"],
        ["records whose category cannot be read", "4", "4", "0", "0", ""],
        ["All", "65", "15", "50", "54", "4,500", "200", "500", "4,000", "100.0%", "4,000", "0.375", "3.56"],
    ]
    columns = ["Category", "read", "refused", "kept", "in bins", "in", "repeated", "dropped", "in bins", "share"]
    assert rows[1] == [*columns, "loss tokens", "tokens/char", "bytes/token"]


def test_without_a_mixture_its_columns_are_gone() -> None:
    rows = Page(report_page(make_manifest({"zh": make_category(5, 50)}))).table_under("Ledger")
    assert rows[2:] == [
        ["zh", "5", "0", "5", "50", "0", "50", "100.0%", "50", "0.333", "4.00"],
        ["All", "5", "0", "5", "50", "0", "50", "100.0%", "50", "0.333", "4.00"],
    ]
    assert len(rows[1]) == 11


def test_figures_at_the_top(manifest: Manifest) -> None:
    parsed = Page(report_page(manifest))
    assert dict(zip(parsed.texts["dt"], parsed.texts["dd"], strict=True)) == {
        "tokens in the bins": "4,000",
        "of them bear loss": "4,000",
        "rows": "9",
        "of their places filled": "98.77%",
        "tokens a character": "0.375",
        "bytes a token": "3.56",
        "records refused": "15",
        "tokens dropped": "500",
    }
    first = " ".join(parsed.texts["p"][0].split())
    assert first == "54 documents of 3 categories in 2 buckets of rows of at most 512 tokens."


def test_reasons(manifest: Manifest) -> None:
    parsed = Page(report_page(manifest))
    assert parsed.table_under("Refused records, by reason") == [
        ["too_short", "7", "10.77%", "", "zh 7"],
        ["empty_target", "4", "6.15%", "", "gone 3, zh 1"],
        ["invalid_json", "4", "6.15%", "", "(category unknown) 4"],
    ]
    assert parsed.table_under("Dropped tokens, by reason") == [["truncated", "500", "11.11%", "", "zh 500"]]
    clean = Page(report_page(make_manifest({"zh": make_category(5, 50)})))
    assert clean.headings == ["Ledger", "Length of documents", "Buckets", "Fill of rows"]


def test_lengths(manifest: Manifest) -> None:
    every, en, zh = page.lengths(manifest, ["en", "zh", "gone"])
    assert [(x.name, x.num_documents, x.median) for x in (every, en, zh)] == [
        ("all", 50, "8–15"),
        ("en", 30, "8–15"),
        ("zh", 20, "512–1,023"),
    ]
    assert page.length_bins(manifest) == (1, 10)
    assert [(bar.x, bar.colour, round(bar.height, 3)) for bar in zh.bars] == [
        (0.0, 0, round(200 / 17, 3)),
        (80.0, 1, 100.0),  # documents of 512 tokens and more fill a row
        (90.0, 1, round(100 / 17, 3)),
    ]
    assert [bar.title for bar in en.bars] == [
        "4–7 tokens: 10 documents",
        "8–15 tokens: 15 documents",
        "16–31 tokens: 5 documents",
    ]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=20).filter(any))
def test_median(counts: list[int]) -> None:
    everything = [place for place, count in enumerate(counts) for _ in range(count)]
    assert page.median_place(counts) == statistics.median_low(everything)


def test_a_document_of_one_token() -> None:
    (found, _) = page.lengths(make_manifest({"zh": make_category(5, 5, length_histogram=[5])}), ["zh"])
    assert (found.median, [bar.title for bar in found.bars]) == ("1", ["1 tokens: 5 documents"])


# --- its drawings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_categories", [1, 3, 10, 11, 25])
def test_stacks_show_the_shares(num_categories: int) -> None:
    names = [f"c{i:02d}" for i in range(num_categories)]
    manifest = big_manifest(4, names)
    ranked = page.ranked_categories(manifest)
    tokens = {name: manifest["categories"][name]["tokens"]["in_bins"] for name in names}
    assert ranked == sorted(names, key=lambda name: (-tokens[name], name))
    rects = Page(report_page(manifest)).drawings()["share of each category in each bucket"]
    stacks = [list(group) for _, group in groupby(rects, key=lambda rect: rect["x"])]
    assert [stack[0]["x"] for stack in stacks] == [0, 10, 20, 30]
    for stack, bucket in zip(stacks, manifest["buckets"], strict=True):
        assert [rect["colour"] for rect in stack] == list(range(min(num_categories, 10)))
        bottom = 100.0
        for rect in stack:
            of_colour = ranked[rect["colour"] :] if rect["colour"] == 9 else [ranked[rect["colour"]]]
            share = sum(bucket["categories"][name]["tokens"] for name in of_colour) / bucket["tokens"]
            assert rect["height"] == pytest.approx(100 * share, abs=0.01)
            bottom -= rect["height"]
            assert rect["y"] == pytest.approx(bottom, abs=0.1)
        assert bottom == pytest.approx(0, abs=0.1)


def test_legend_and_the_farthest_share() -> None:
    names = [f"c{i:02d}" for i in range(12)]
    manifest = big_manifest(5, names)
    parsed = Page(report_page(manifest))
    total = manifest["tokens"]["in_bins"]
    tokens = {name: manifest["categories"][name]["tokens"]["in_bins"] for name in names}
    ranked = page.ranked_categories(manifest)
    expected = [f"{name} {tokens[name] / total:.1%}" for name in ranked[:9]]
    expected.append(f"3 other categories {sum(tokens[name] for name in ranked[9:]) / total:.1%}")
    assert [" ".join(item.split()) for item in parsed.texts["li"]] == expected
    distances = {
        (bucket["path"], name): abs(bucket["categories"][name]["tokens"] / bucket["tokens"] - tokens[name] / total)
        for bucket in manifest["buckets"]
        for name in names
    }
    path, name = max(distances, key=lambda key: distances[key])
    said = " ".join(" ".join(parsed.texts["p"]).split())
    assert f"in {path}: {name}, by {100 * distances[path, name]:.2f} percentage points" in said


def test_the_legend_leaves_out_what_is_in_no_bucket(manifest: Manifest) -> None:
    items = [" ".join(item.split()) for item in Page(report_page(manifest)).texts["li"]]
    assert items == ["en 75.0%", "zh 25.0%"]


def test_a_category_that_a_bucket_lacks_is_far() -> None:
    buckets = [make_bucket("part-00000", {"en": 500, "zh": 400, "qa": 100}), make_bucket("part-00001", {"en": 500})]
    categories = {"en": make_category(9, 1000), "zh": make_category(1, 400), "qa": make_category(1, 100)}
    distance, path, name = page.farthest_share(make_manifest(categories, buckets))
    assert (distance, path, name) == (pytest.approx(1 - 1000 / 1500), "part-00001", "en")
    buckets[1] = make_bucket("part-00001", {"en": 400, "qa": 100})
    categories["en"], categories["qa"] = make_category(9, 900), make_category(1, 200)
    distance, path, name = page.farthest_share(make_manifest(categories, buckets))
    assert (distance, path, name) == (pytest.approx(400 / 1500), "part-00001", "zh")


def test_tokens_and_empty_places_of_buckets(manifest: Manifest) -> None:
    parsed = Page(report_page(manifest))
    drawn = parsed.drawings()
    assert [rect["height"] for rect in drawn["tokens of each bucket"]] == [
        100,
        pytest.approx(100 * 1400 / 2600, abs=0.01),
    ]
    empty = [1 - 2600 / (6 * 512), 1 - 1400 / (3 * 512)]
    heights = [rect["height"] for rect in drawn["empty places of each bucket"]]
    assert heights == [100, pytest.approx(100 * empty[1] / empty[0], abs=0.01)]
    assert "Tokens: 1,400 to 2,600" in parsed.texts["h3"]
    assert f"Empty places in rows: {empty[1]:.2%} to {empty[0]:.2%}" in parsed.texts["h3"]
    rows = parsed.table_under("Buckets")
    assert rows[1:] == [
        ["part-00000", "6", "2", "2,600", "2,600", f"{1 - empty[0]:.2%}", "5" * 12],
        ["part-00001", "3", "2", "1,400", "1,400", f"{1 - empty[1]:.2%}", "5" * 12],
    ]


def test_full_rows_and_buckets_without_rows() -> None:
    buckets = [make_bucket("part-00000", {"zh": 1024}, rows=2), make_bucket("part-00001", {}, rows=0)]
    parsed = Page(report_page(make_manifest({"zh": make_category(5, 1024)}, buckets)))
    assert parsed.drawings()["empty places of each bucket"] == []
    assert "Empty places in rows: 0.00%" in parsed.texts["h3"]
    assert parsed.table_under("Buckets")[2] == ["part-00001", "0", "0", "0", "0", "-", "5" * 12]


def test_fill(manifest: Manifest) -> None:
    assert Page(report_page(manifest)).table_under("Fill of rows") == [
        ["95–100 %", "7 rows", "77.78%", ""],
        ["85–90 %", "1 row", "11.11%", ""],
        ["0–5 %", "1 row", "11.11%", ""],
    ]
