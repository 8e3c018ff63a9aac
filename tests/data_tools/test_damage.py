"""Every kind of damage: what is kept of a damaged file, and what is refused, where and why."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.input_files import STREAMED_SUFFIXES, find_files, spans_of
from data_tools.readers import ReadOptions, read_span
from data_tools.reasons import way_out
from data_tools.records import Refusal

Outcome = str | tuple[str, int, int | None]  # the text of a document, or reason, line and byte offset of a refusal

SHORT = ReadOptions(max_document_bytes=40)
LINES = ReadOptions(txt_documents="line")
PARAGRAPHS = ReadOptions(txt_documents="blank_lines")
MARK = b"\xef\xbb\xbf"
A, B = b'{"target": "a"}', b'{"target": "b"}'
NOISE = [f"{number * 2654435761 % 2**32:x}" for number in range(2000)]  # compresses to half, in several blocks
NOISE_LINES = b"".join(b'{"target": "%s"}\n' % text.encode() for text in NOISE)
WITH_CHECKSUM = {zstd.CompressionParameter.checksum_flag: 1}


def outcomes(path: Path, options: ReadOptions) -> list[Outcome]:
    found: list[Outcome] = []
    for span in spans_of(path, path.stat().st_size, 2**23, options.txt_documents):
        for item in read_span(span, options):
            assert item.file == str(path)
            if isinstance(item, Refusal):
                found.append((item.reason, item.line_number, item.byte_offset))
                assert way_out(item.reason, options)
            else:
                found.append("".join(segment.text for segment in item.segments))
    return found


def flipped(data: bytes, place: int) -> bytes:
    changed = bytearray(data)
    changed[place] ^= 0xFF
    return bytes(changed)


def parquet(columns: dict[str, pa.Array], **options: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, **options)
    return file.getvalue()


def with_long_window(content: bytes) -> bytes:
    """What `zstd --long=28` makes of a pipe, whose length it cannot know."""
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 28})
    return compressor.compress(content, compressor.FLUSH_BLOCK) + compressor.flush()


def binary_as_text(*values: bytes) -> pa.Array:
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


CASES: dict[str, tuple[str, bytes, Sequence[Outcome]]] = {
    # one bad line among good ones
    "half a line": (".jsonl", A + b'\n{"target": "half\n' + B, ["a", ("invalid_json", 2, 16), "b"]),
    "two objects in a line": (".jsonl", A + B + b"\n" + B, [("invalid_json", 1, 0), "b"]),
    "a comma at the end": (".jsonl", A + b",\n" + B, [("invalid_json", 1, 0), "b"]),
    "single quotes": (".jsonl", b"{'target': 'a'}\n" + B, [("invalid_json", 1, 0), "b"]),
    "a raw control character": (".jsonl", b'{"target": "a\x01"}\n' + B, [("invalid_json", 1, 0), "b"]),
    "an unknown escape": (".jsonl", b'{"target": "\\x61"}\n' + B, [("invalid_json", 1, 0), "b"]),
    "latin-1": (".jsonl", A + b'\n{"target": "caf\xe9"}\n' + B, ["a", ("invalid_utf8", 2, 16), "b"]),
    "half a character": (".jsonl", b'{"target": "\xe4\xbd"}\n' + B, [("invalid_utf8", 1, 0), "b"]),
    "a surrogate in bytes": (".jsonl", b'{"target": "\xed\xa0\x80"}\n' + B, [("invalid_utf8", 1, 0), "b"]),
    "an over-long NUL": (".jsonl", b'{"target": "\xc0\x80"}\n' + B, [("invalid_utf8", 1, 0), "b"]),
    "bad UTF-8 in a field of no interest": (
        ".jsonl",
        b'{"target": "a", "x": "\xff"}\n' + B,
        [("invalid_utf8", 1, 0), "b"],
    ),
    "half a pair": (".jsonl", b'{"target": "a\\ud800"}\n' + B, [("target_with_lone_surrogate", 1, 0), "b"]),
    "half a pair in a source": (
        ".jsonl",
        b'{"target": "a", "source": "\\udc00"}\n{"target": "a", "category": "\\udc00"}\n' + B,
        [("source_with_lone_surrogate", 1, 0), ("category_with_lone_surrogate", 2, 36), "b"],
    ),
    "half a pair in a field of no interest": (".jsonl", b'{"x": "\\ud800", "target": "a"}\n' + B, ["a", "b"]),
    "a whole pair": (".jsonl", b'{"target": "\\ud83d\\ude42"}', ["🙂"]),
    "an escaped NUL": (".jsonl", b'{"target": "a\\u0000"}\n' + B, [("target_with_nul", 1, 0), "b"]),
    "a raw NUL": (".jsonl", b'{"target": "a\0"}\n' + B, [("invalid_json", 1, 0), "b"]),
    "a block of NULs": (".jsonl", A + b"\n" + bytes(4096) + b"\n" + B, ["a", ("invalid_json", 2, 16), "b"]),
    "an array": (".jsonl", b'["target"]\n' + B, [("not_an_object", 1, 0), "b"]),
    "a string": (".jsonl", b'"target"\n' + B, [("not_an_object", 1, 0), "b"]),
    "null": (".jsonl", b"null\nNaN\n" + B, [("not_an_object", 1, 0), ("not_an_object", 2, 5), "b"]),
    "another field": (".jsonl", b'{"text": "a"}\n' + B, [("missing_target", 1, 0), "b"]),
    "a number for a text": (".jsonl", b'{"target": 5}\n' + B, [("target_not_a_string", 1, 0), "b"]),
    "a list for a source": (".jsonl", b'{"target": "a", "source": []}\n' + B, [("source_not_a_string", 1, 0), "b"]),
    "an empty text": (".jsonl", b'{"target": ""}\n' + B, [("empty_target", 1, 0), "b"]),
    "blanks only": (".jsonl", b'{"target": " \\n\\u3000"}\n' + B, [("empty_target", 1, 0), "b"]),
    "brackets": (".jsonl", b"[" * 100_000 + b"\n" + B, [("invalid_json", 1, 0), "b"]),
    "objects in objects": (".jsonl", b'{"target":' * 100_000 + b"\n" + B, [("invalid_json", 1, 0), "b"]),
    "a number of 5000 digits": (".jsonl", b'{"n": ' + b"9" * 5000 + b', "target": "a"}\n' + B, ["a", "b"]),
    "5000 digits for a text": (
        ".jsonl",
        b'{"target": ' + b"9" * 5000 + b"}\n" + B,
        [("target_not_a_string", 1, 0), "b"],
    ),
    "no number": (".jsonl", b'{"n": [NaN, -Infinity, 1e999], "target": "a"}\n' + B, ["a", "b"]),
    "a key given twice": (".jsonl", b'{"target": 1, "target": "a"}\n' + B, ["a", "b"]),
    # lines
    "a byte order mark": (".jsonl", MARK + A + b"\n" + B, ["a", "b"]),
    "a byte order mark inside": (".jsonl", A + b"\n" + MARK + B, ["a", ("invalid_json", 2, 16)]),
    "Windows line ends": (".jsonl", A + b"\r\n\r\n" + b"x\r\n" + B + b"\r\n", ["a", ("invalid_json", 3, 19), "b"]),
    "blank lines": (".jsonl", b"\n \t\n" + A + b"\n\n\n" + B + b"\n\n ", ["a", "b"]),
    "an empty file": (".jsonl", b"", []),
    "a mark alone": (".jsonl", MARK, []),
    "UTF-16": (".jsonl", A.decode().encode("utf-16"), [("utf16_file", 1, 0)]),
    "UTF-16 without a mark": (".jsonl", A.decode().encode("utf-16-be"), [("utf16_file", 1, 0)]),
    "UTF-32": (".json", A.decode().encode("utf-32"), [("utf16_file", 1, 0)]),
    # compressed files
    "gzip in members": (".jsonl.gz", gzip.compress(A + b"\n") + gzip.compress(B), ["a", "b"]),
    "a line across members": (".jsonl.gz", gzip.compress(A[:5]) + gzip.compress(A[5:] + b"\n" + B), ["a", "b"]),
    "zstd in frames": (".jsonl.zst", zstd.compress(A + b"\n") + zstd.compress(B), ["a", "b"]),
    "gzip padded with zeros": (".jsonl.gz", gzip.compress(A) + bytes(512), ["a"]),
    "gzip without its end": (".jsonl.gz", gzip.compress(A + b"\n" + B)[:-4], ["a", ("truncated_file", 2, 16)]),
    "zstd without its end": (
        ".jsonl.zst",
        zstd.compress(A + b"\n" + B, options=WITH_CHECKSUM)[:-2],
        ["a", ("truncated_file", 2, 16)],
    ),
    "a member without its end": (
        ".jsonl.gz",
        gzip.compress(A + b"\n") + gzip.compress(B + b"\n")[:12],
        ["a", ("truncated_file", 2, 16)],
    ),
    "the header of gzip alone": (".jsonl.gz", gzip.compress(A)[:6], [("truncated_file", 1, 0)]),
    "an empty .gz": (".jsonl.gz", b"", [("truncated_file", 1, 0)]),
    "an empty .zst": (".jsonl.zst", b"", [("truncated_file", 1, 0)]),
    "nothing, compressed": (".jsonl.gz", gzip.compress(b""), []),
    "zstd with a long window": (".jsonl.zst", with_long_window(A), ["a"]),
    "garbage after gzip": (".jsonl.gz", gzip.compress(A + b"\n" + B) + b"xyz", ["a", "b", ("data_after_end", 3, 31)]),
    "garbage after zstd": (
        ".jsonl.zst",
        zstd.compress(A + b"\n" + B) + b"xyzab",
        ["a", "b", ("data_after_end", 3, 31)],
    ),
    "a wrong checksum": (".jsonl.gz", flipped(gzip.compress(A + b"\n"), -6), ["a", ("damaged_file", 2, 16)]),
    "a wrong checksum of zstd": (
        ".jsonl.zst",
        flipped(zstd.compress(A + b"\n", options=WITH_CHECKSUM), -1),
        [("damaged_file", 1, 0)],
    ),
    "plain text named .gz": (".jsonl.gz", A + b"\n" + B, [("not_a_gz_file", 1, 0)]),
    "plain text named .zst": (".jsonl.zst", A + b"\n" + B, [("not_a_zst_file", 1, 0)]),
    "zstd named .gz": (".txt.gz", zstd.compress(A), [("not_a_gz_file", 1, 0)]),
    # arrays
    "an object for an array": (".json", A, [("not_an_array", 1, 0)]),
    "lines for an array": (".json", A + b"\n" + B, [("not_an_array", 1, 0)]),
    "no array at all": (".json", b" \n ", [("not_an_array", 2, 3)]),
    "an empty .json": (".json", b"", [("not_an_array", 1, 0)]),
    "an empty array": (".json", b" [ \n ]\n", []),
    "an array with a mark": (".json", MARK + b"[" + A + b"]", ["a"]),
    "an array of others": (
        ".json",
        b'[1, "a", null, [' + A + b"],\n" + B + b"]",
        [("not_an_object", 1, 1), ("not_an_object", 1, 4), ("not_an_object", 1, 9), ("not_an_object", 1, 15), "b"],
    ),
    "a bad element": (
        ".json",
        b"[\n" + A + b',\n{"target": "caf\xe9"},\n{"target": a},\n' + B + b"\n]\n",
        ["a", ("invalid_utf8", 3, 19), ("invalid_json", 4, 39), "b"],
    ),
    "commas too many": (".json", b"[, " + A + b",,]", ["a"]),
    "a comma missing": (".json", b"[" + A + A + b", " + B + b"]", [("invalid_json", 1, 1), "b"]),
    "an array without its end": (".json", b"[" + A + b",\n " + B, ["a", ("truncated_file", 2, 19)]),
    "an array cut in a text": (".json", b"[" + A + b', {"target": "b', ["a", ("truncated_file", 1, 18)]),
    "an array cut in an escape": (".json", b"[" + A + b', {"target": "b\\', ["a", ("truncated_file", 1, 18)]),
    "a gzip'ed array without its end": (
        ".json.gz",
        gzip.compress(b"[" + A + b"," + B + b"]")[:-12],
        ["a", ("truncated_file", 1, 17)],
    ),
    "plain text named .json.gz": (".json.gz", b"[" + A + b"]", [("not_a_gz_file", 1, 0)]),
    "garbage in a gzip'ed array": (
        ".json.gz",
        gzip.compress(b"[" + A + b",") + b"xy",
        ["a", ("data_after_end", 1, 17)],
    ),
    "two arrays": (".json", b"[" + A + b"]\n[" + B + b"]", ["a", ("data_after_end", 2, 18)]),
    "garbage after a gzip'ed array": (
        ".json.gz",
        gzip.compress(b"[" + A + b"]") + b"xy",
        ["a", ("data_after_end", 1, 17)],
    ),
    "borders spelt in a text": (".json", b'[{"target": "],[\\"}\\\\"},' + B + b"]", ['],["}\\', "b"]),
    # tables
    "a CSV": (".csv", b'category,target,source\nc,"a,""x""\n\nb",\n\n,b,s\n', ['a,"x"\n\nb', "sb"]),
    "a CSV with a mark and Windows line ends": (".csv", MARK + b"target\r\na\r\nb", ["a", "b"]),
    "a CSV without the column": (".csv", b"text\na\nb\n", [("missing_target", 1, 0)]),
    "an empty CSV": (".csv", b"", []),
    "rows too long and too short": (
        ".csv",
        b"target,source\na,\nb\nc,,d\n\ne,\n",
        ["a", ("ragged_row", 3, 17), ("ragged_row", 4, 19), "e"],
    ),
    "an open quote": (".csv", b'target\na\n"b\nc\n', ["a", ("invalid_csv", 3, 9)]),
    "text behind a quote": (".csv", b'target\n"a"b\nc\n', [("invalid_csv", 2, 7), "c"]),
    "NUL in a CSV": (".csv", b"target\na\0\nb\n", [("target_with_nul", 2, 7), "b"]),
    "latin-1 in a CSV": (".csv", b"target\ncaf\xe9\nb\n", [("invalid_utf8", 2, 7), "b"]),
    "an empty cell": (".csv", b'target,x\n"",1\nb,2\n', [("empty_target", 2, 9), "b"]),
    "a gzip'ed CSV without its end": (
        ".csv.gz",
        gzip.compress(b'target\na\n"b\nc')[:-3],
        ["a", ("truncated_file", 4, 12)],
    ),
    "garbage after a gzip'ed CSV": (".csv.gz", gzip.compress(b"target\na") + b"xy", ["a", ("data_after_end", 3, 8)]),
    "a Parquet file": (".parquet", parquet({"x": pa.array([1, 2]), "target": pa.array(["a", "b"])}), ["a", "b"]),
    "plain text named .parquet": (".parquet", A * 9, [("not_a_parquet_file", 1, None)]),
    "an empty .parquet": (".parquet", b"", [("truncated_file", 1, None)]),
    "a Parquet file without its end": (
        ".parquet",
        parquet({"target": pa.array(["a"])})[:-9],
        [("truncated_file", 1, None)],
    ),
    "a Parquet file without the column": (
        ".parquet",
        parquet({"text": pa.array(["a", "b"])}),
        [("missing_target", 1, None)],
    ),
    "a Parquet column of numbers": (
        ".parquet",
        parquet({"target": pa.array([1, None])}),
        [("target_not_a_string", 1, None), ("missing_target", 2, None)],
    ),
    "latin-1 in Parquet": (
        ".parquet",
        parquet({"target": binary_as_text(b"a", b"caf\xe9", b"b")}),
        ["a", ("invalid_utf8", 2, None), "b"],
    ),
    "NUL in Parquet": (".parquet", parquet({"target": pa.array(["a\0", "b"])}), [("target_with_nul", 1, None), "b"]),
    # plain text
    "a text": (".txt", MARK + b"\r\na\r\n\r\nb\n", ["a\n\nb"]),
    "a blank text": (".txt", b" \n\n", []),
    "latin-1 text": (".txt", b"caf\xe9\n", [("invalid_utf8", 1, 0)]),
    "text with NUL": (".txt", b"a\0b", [("target_with_nul", 1, 0)]),
    "a gzip'ed text without its end": (".txt.gz", gzip.compress(b"a\nb\n")[:-3], [("truncated_file", 1, 0)]),
    "garbage after a gzip'ed text": (".txt.gz", gzip.compress(b"a\n") + b"xy", ["a", ("data_after_end", 1, 0)]),
    "UTF-16 text": (".txt", "a\nb".encode("utf-16"), [("utf16_file", 1, 0)]),
}

CASES_WITH_OPTIONS: dict[str, tuple[str, bytes, Sequence[Outcome], ReadOptions]] = {
    "an over-long line": (
        ".jsonl",
        A + b'\n{"target": "' + b"x" * 40 + b'"}\n' + B,
        ["a", ("over_long", 2, 16), "b"],
        SHORT,
    ),
    "an over-long last line": (".jsonl", A + b"\n" + b"x" * 41, ["a", ("over_long", 2, 16)], SHORT),
    "a line just short enough": (".jsonl", b'{"target": "' + b"x" * 26 + b'"}\n', ["x" * 26], SHORT),
    "an over-long line, compressed": (
        ".jsonl.zst",
        zstd.compress(b"x" * 3_000_000 + b"\n" + B),
        [("over_long", 1, 0), "b"],
        SHORT,
    ),
    "an over-long element": (
        ".json",
        b"[" + A + b', {"target": "' + b"x" * 500_000 + b'"},\n' + B + b"]",
        ["a", ("over_long", 1, 18), "b"],
        SHORT,
    ),
    "an over-long row": (".csv", b"target\n" + b"x" * 41 + b"\nb\n", [("over_long", 2, 7), "b"], SHORT),
    "a long element in a small file": (
        ".json",
        b'[{"target": "' + b"x" * 27 + b'"},{"target": "' + b"y" * 26 + b'"}]',
        [("over_long", 1, 1), "y" * 26],
        SHORT,
    ),
    "a quote that is never closed": (".csv", b'target\n"a\n' + b"b\n" * 30, [("over_long", 2, 7), *"b" * 10], SHORT),
    "an over-long Parquet cell": (
        ".parquet",
        parquet({"target": pa.array(["x" * 41, "b"])}),
        [("over_long", 1, None), "b"],
        SHORT,
    ),
    "an over-long text": (".txt", b"x" * 41, [("over_long", 1, 0)], SHORT),
    "lines of text": (".txt", b" a\r\n\n\xe9\nb", [" a", ("invalid_utf8", 3, 5), "b"], LINES),
    "lines of a text without its end": (
        ".txt.gz",
        gzip.compress(b"a\nb\nc")[:-3],
        ["a", "b", ("truncated_file", 3, 4)],
        LINES,
    ),
    "paragraphs": (".txt", b"\na\r\nb\n \nc\n\n\nd\xe9\n\ne", ["a\nb", "c", ("invalid_utf8", 8, 12), "e"], PARAGRAPHS),
    "paragraphs of a text without its end": (
        ".txt.gz",
        gzip.compress(b"a\n\nb\nc\n")[:-3],
        ["a", ("truncated_file", 5, 7)],
        PARAGRAPHS,
    ),
    "garbage after paragraphs": (
        ".txt.gz",
        gzip.compress(b"a\n\nb\nc") + b"xy",
        ["a", "b\nc", ("data_after_end", 5, 6)],
        PARAGRAPHS,
    ),
    "an over-long paragraph": (
        ".txt",
        b"a\n\n" + b"x\n" * 21 + b"\n" + b"y" * 41 + b"\nz\n\nb",
        ["a", ("over_long", 3, 3), ("over_long", 25, 46), "b"],
        ReadOptions(txt_documents="blank_lines", max_document_bytes=40),
    ),
}


@pytest.mark.parametrize("case", [*CASES, *CASES_WITH_OPTIONS])
def test_damage_is_refused_and_all_else_is_kept(case: str, tmp_path: Path) -> None:
    suffix, content, expected, options = CASES_WITH_OPTIONS.get(case) or (*CASES[case], ReadOptions())
    path = tmp_path / f"f{suffix}"
    path.write_bytes(content)
    assert outcomes(path, options) == list(expected)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_documents_before_a_cut_are_kept(suffix: str, share: float, tmp_path: Path) -> None:
    whole = gzip.compress(NOISE_LINES) if suffix.endswith("gz") else zstd.compress(NOISE_LINES)
    cut = whole[: int(len(whole) * share)]
    path = tmp_path / f"f{suffix}"
    path.write_bytes(cut)
    reference = _inflate(cut, suffix).count(b"\n")
    *kept, last = outcomes(path, ReadOptions())
    assert kept == NOISE[:reference]
    assert last == ("truncated_file", reference + 1, len(b"".join(NOISE_LINES.splitlines(True)[:reference])))


def _inflate(cut: bytes, suffix: str) -> bytes:
    """What the bare decompressor gives for the bytes that are there."""
    import zlib

    return zlib.decompressobj(31).decompress(cut) if suffix.endswith("gz") else zstd.ZstdDecompressor().decompress(cut)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl.zst"])
def test_a_flipped_byte_costs_no_document_that_was_read_before(suffix: str, tmp_path: Path) -> None:
    whole = gzip.compress(NOISE_LINES) if suffix.endswith("gz") else zstd.compress(NOISE_LINES, options=WITH_CHECKSUM)
    path = tmp_path / f"f{suffix}"
    for place in range(len(whole) // 3, len(whole), len(whole) // 7):
        path.write_bytes(flipped(whole, place))
        found = outcomes(path, ReadOptions())
        assert any(isinstance(outcome, tuple) for outcome in found)


def test_a_damaged_parquet_page_leaves_the_groups_before(tmp_path: Path) -> None:
    whole = parquet({"target": pa.array(NOISE)}, row_group_size=500, compression="zstd", use_dictionary=False)
    path = tmp_path / "f.parquet"
    path.write_bytes(whole)
    group = pq.ParquetFile(path).metadata.row_group(2).column(0)
    begin, size = group.data_page_offset, group.total_compressed_size
    path.write_bytes(whole[:begin] + bytes(size) + whole[begin + size :])
    *kept, last = outcomes(path, ReadOptions())
    assert last == ("damaged_file", len(kept) + 1, None)
    assert kept == NOISE[: len(kept)]
    assert len(kept) >= 500


def test_one_damaged_file_does_not_stop_the_others(tmp_path: Path) -> None:
    for number, (suffix, content, _) in enumerate(CASES.values()):
        (tmp_path / f"{number:03}{suffix}").write_bytes(content)
    (tmp_path / "x.jsonl").mkdir()
    (tmp_path / "x.jsonl" / "z.jsonl").write_bytes(B)
    files, _ = find_files([tmp_path])
    found = [outcome for path in files for outcome in outcomes(path, ReadOptions())]
    assert found == [outcome for _, _, expected in CASES.values() for outcome in expected] + ["b"]


COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress}
ANY_BYTES = st.binary() | st.lists(
    st.sampled_from([A, B, b"\n", b",", b"[", b"]", b'"', b"\\", b"\0", b"\xff", b"target", MARK]), max_size=12
).map(b"".join)


@given(ANY_BYTES, st.sampled_from(STREAMED_SUFFIXES), st.sampled_from(["", ".gz", ".zst"]), st.booleans())
@settings(deadline=None)
def test_no_bytes_make_a_reader_stumble(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str, compression: str, is_cut: bool
) -> None:
    data = COMPRESS[compression](content)
    path = tmp_path_factory.getbasetemp() / f"any{suffix}{compression}"
    path.write_bytes(data[:-5] if is_cut else data)
    for options in (ReadOptions(), SHORT, LINES, PARAGRAPHS):
        outcomes(path, options)


@given(st.lists(st.sampled_from([A, B, b"{}", b'{"target": "x\\"}]"}', b'"],["', b"[1, [2]]", b"{1: 2}"]), max_size=9))
def test_an_array_gives_what_its_elements_give_as_lines(
    tmp_path_factory: pytest.TempPathFactory, elements: list[bytes]
) -> None:
    directory = tmp_path_factory.getbasetemp()
    (directory / "any.json").write_bytes(b"[" + b",\n".join(elements) + b"]")
    (directory / "any.jsonl").write_bytes(b" " + b" \n".join(elements))
    as_array, as_lines = (outcomes(directory / name, ReadOptions()) for name in ("any.json", "any.jsonl"))
    assert [_without_offset(outcome) for outcome in as_array] == [_without_offset(outcome) for outcome in as_lines]


def _without_offset(outcome: Outcome) -> object:
    return outcome if isinstance(outcome, str) else outcome[:2]


def test_there_are_enough_kinds() -> None:
    refused = {outcome[0] for *_, expected in CASES.values() for outcome in expected if isinstance(outcome, tuple)}
    assert len(CASES) + len(CASES_WITH_OPTIONS) > 30
    assert len(refused) > 15
    assert json.loads(A) == {"target": "a"}
