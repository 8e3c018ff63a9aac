"""The tables at the end of the command: every figure of the manifest, readable whatever the names are."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.cells import cell_len

from data_tools.manifest import VERSION, Manifest
from data_tools.report import print_report

Tables = list[list[str]]


def make_category(documents: int, num_tokens: int, **changes: Any) -> dict[str, Any]:
    """The entry of a category of which everything is kept and in the bins once."""
    entry = {
        "records": {"read": documents, "kept": documents, "refused": {}, "placed": documents},
        "tokens": {"in": num_tokens, "in_bins": num_tokens, "dropped": {}, "repeated": 0},
        "characters": 3 * num_tokens,
        "bytes": 4 * num_tokens,
        "loss_tokens": num_tokens,
        "length_histogram": [0, 0, 0, documents] if documents else [],
    }
    for key, change in changes.items():
        entry[key] = entry[key] | change if isinstance(change, dict) else change
    return entry


def refusing(entry: dict[str, Any], **reasons: int) -> dict[str, Any]:
    """The entry with more records, which were all refused."""
    entry["records"]["refused"] = reasons
    entry["records"]["read"] += sum(reasons.values())
    return entry


def make_bucket(path: str, tokens: dict[str, int], rows: int = 2, **changes: Any) -> dict[str, Any]:
    """A bucket with these tokens of each category, all rows full."""
    categories = {name: {"documents": 1, "tokens": n, "loss_tokens": n, "bytes": 4 * n} for name, n in tokens.items()}
    sums = {
        key: sum(part[key] for part in categories.values()) for key in ("documents", "tokens", "loss_tokens", "bytes")
    }
    fill = [0] * 19 + [rows]
    return {
        "path": path,
        "rows": rows,
        **sums,
        "sha256": "5" * 64,
        "categories": categories,
        "fill_histogram": fill,
    } | changes


def add_up(counts: list[dict[str, Any]]) -> dict[str, Any]:
    """The sums of dictionaries of numbers and of dictionaries of numbers, key by key."""
    keys = dict.fromkeys(key for one in counts for key in one)
    found = {key: [one[key] for one in counts if key in one] for key in keys}
    return {key: add_up(values) if isinstance(values[0], dict) else sum(values) for key, values in found.items()}


def make_manifest(
    categories: dict[str, dict[str, Any]], buckets: list[dict[str, Any]] | None = None, **unknown: int
) -> Manifest:
    """A manifest of these categories; `unknown`: reasons of refused records that do not tell their category."""
    tokens = {name: entry["tokens"]["in_bins"] for name, entry in categories.items() if entry["tokens"]["in_bins"]}
    buckets = buckets or [make_bucket("part-00000", tokens)]
    nobody = {"records": {"read": sum(unknown.values()), "kept": 0, "refused": unknown, "placed": 0}}
    sums = add_up(
        [{k: v for k, v in entry.items() if k != "length_histogram"} for entry in [*categories.values(), nobody]]
    )
    return {  # type: ignore[return-value]
        **dict.fromkeys(Manifest.__annotations__),
        **sums,
        "version": VERSION,
        "tokenizer_fingerprint": "f" * 64,
        "max_length": 512,
        "num_buckets": len(buckets),
        "seed": 42,
        "fill": 0.98765,
        "files": {"read": 3, "skipped": {}},
        "category_names": sorted(categories),
        "categories": categories,
        "buckets": buckets,
    }


@pytest.fixture(autouse=True)
def hundred_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def printed(manifest: Manifest, capsys: pytest.CaptureFixture[str], seconds: float = 2.0) -> Tables:
    """The words of each line that has any."""
    print_report(manifest, seconds)
    out = capsys.readouterr().out
    assert max(cell_len(line.rstrip()) for line in out.splitlines()[:-1]) <= 100
    return [line.split() for line in out.splitlines() if line.strip()]


def test_a_row_a_category_and_one_for_all(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(
        make_manifest(
            {
                "en": make_category(1200, 30_000, loss_tokens=20_000, characters=80_000, bytes=90_000),
                "zh": refusing(make_category(7, 10_000, characters=8_000, bytes=24_000), empty_target=4),
            },
            invalid_json=5,
        ),
        capsys,
    )
    assert ["en", "1,200", "30,000", "75.0%", "0.250", "4.50", "0"] in lines
    assert ["zh", "7", "10,000", "25.0%", "1.250", "2.40", "4"] in lines
    assert ["all", "1,207", "40,000", "100.0%", "0.341", "3.80", "9"] in lines
    assert " ".join(lines[-1]) == "1 bucket, 2 rows of at most 512 tokens, 98.77% full; 2.0 s, 20,000 tokens/s"


def test_rows_of_all_buckets_count(capsys: pytest.CaptureFixture[str]) -> None:
    buckets = [make_bucket(f"part-0000{i}", {"zh": 500}, rows=1000 + i) for i in range(3)]
    lines = printed(make_manifest({"zh": make_category(9, 1500)}, buckets), capsys)
    assert lines[-1][:4] == ["3", "buckets,", "3,003", "rows"]


def test_documents_are_those_in_the_bins(capsys: pytest.CaptureFixture[str]) -> None:
    entry = make_category(10, 100, records={"placed": 25}, tokens={"repeated": 60})
    lines = printed(make_manifest({"zh": entry, "en": make_category(3, 30)}), capsys)
    assert next(line for line in lines if line[0] == "zh")[:3] == ["zh", "25", "100"]
    assert ["zh", "10", "25", "60", "60.0%"] in lines
    assert [line[0] for line in lines].count("en") == 1  # which is neither left out nor repeated


def test_as_many_documents_left_out_as_repeated_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(make_manifest({"zh": make_category(10, 100, tokens={"repeated": 5})}), capsys)
    assert ["zh", "10", "10", "5", "5.0%"] in lines


def test_documents_left_out_without_a_repeat_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(make_manifest({"zh": make_category(10, 100, records={"placed": 4})}), capsys)
    assert ["zh", "10", "4", "0", "0.0%"] in lines


def test_a_category_of_which_nothing_is_left_divides_nothing_by_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(make_manifest({"gone": refusing(make_category(0, 0), empty_target=2)}), capsys)
    assert ["gone", "0", "0", "-", "-", "-", "2"] in lines


def test_refusals_by_reason_name_the_categories_that_have_most(capsys: pytest.CaptureFixture[str]) -> None:
    categories = {f"c{i}": refusing(make_category(5, 50), too_short=10 + i, empty_target=1) for i in reversed(range(5))}
    categories["c0"]["records"]["refused"]["empty_target"] = 0
    lines = printed(make_manifest(categories, invalid_json=77, too_short=12, empty_target=0), capsys)
    at = next(i for i, line in enumerate(lines) if line[:2] == ["refused", "because"])
    assert [" ".join(line) for line in lines[at + 2 : at + 5]] == [
        "invalid_json 77 (category unknown) 77",
        "too_short 72 c4 14, c3 13, (category unknown) 12, 3 more",
        "empty_target 4 c1 1, c2 1, c3 1, 1 more",
    ]


def test_what_did_not_happen_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    words = {word for line in printed(make_manifest({"zh": make_category(5, 50)}), capsys) for word in line}
    assert not words & {"because", "left", "repeated"}


def test_dropped_tokens_by_reason(capsys: pytest.CaptureFixture[str]) -> None:
    entry = make_category(5, 50, tokens={"in": 1050, "dropped": {"truncated": 1000}})
    lines = printed(make_manifest({"zh": entry, "en": make_category(2, 9)}), capsys)
    assert ["truncated", "1,000", "zh", "1,000"] in lines
    assert not any(line[:2] == ["refused", "because"] for line in lines)
    assert lines[-1][-2:] == ["530", "tokens/s"]


@pytest.mark.parametrize("columns", [80, 100])
def test_many_long_names_leave_the_figures_whole(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    names = [f"{i:02d}{'龘' * 198}{i:02d}" for i in range(30)] + [f"{i:02d}{'x' * 198}{i:02d}" for i in range(30, 60)]
    categories = {name: make_category(1_000_000 + i, 1_234_567_000 + i) for i, name in enumerate(names)}
    print_report(make_manifest(categories), 1.0)
    out = capsys.readouterr().out
    lines = out.splitlines()[:-1]
    assert max(cell_len(line.rstrip()) for line in lines) <= columns
    assert sum(line.count("…") for line in lines) == 60  # one in the middle of each name, none in a figure
    for i in range(60):
        row = next(line.split() for line in lines if line.split()[:1] and line.split()[0].startswith(f"{i:02d}"))
        assert row[1:3] == [f"{1_000_000 + i:,}", f"{1_234_567_000 + i:,}"]


def test_names_are_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["[bold]b[/bold]", "a\x1b[31m", "two\nlines", ":smile:", "end\\"]
    manifest = make_manifest({name: refusing(make_category(1, 10), **{"[i]why": 1}) for name in names})
    print_report(manifest, 1.0)
    out = capsys.readouterr().out
    beginnings = [line.strip() + " " for line in out.splitlines()]
    for shown in ("[bold]b[/bold] ", "a\\x1b[31m ", "two\\nlines ", ":smile: ", "end\\ ", "[i]why "):
        assert any(line.startswith(shown) for line in beginnings)
    assert "\x1b" not in out


def test_the_ends_of_truncated_documents_count_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    dropped = {"in": 400, "dropped": {"truncated": 200, "mixture": 100}}
    entry = make_category(5, 100, tokens=dropped, characters=600, bytes=1200)
    assert ["zh", "5", "100", "100.0%", "0.500", "4.00", "0"] in printed(make_manifest({"zh": entry}), capsys)


class ClosedPipe(io.StringIO):
    """The stdout of `| head` after head has left."""

    def write(self, text: str) -> int:
        if text:
            raise BrokenPipeError
        return 0


def test_a_reader_who_has_left_is_no_fault_of_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command itself knows what to do then; rich would leave with exit code 1."""
    monkeypatch.setattr("sys.stdout", ClosedPipe())
    with pytest.raises(BrokenPipeError):
        print_report(make_manifest({"zh": make_category(5, 50)}), 1.0)
