"""inspect_rows: the very text that was put into rows, to the byte; what bears no loss and what is cut can be seen."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_tools import inspect_rows
from data_tools.bins import open_bins
from data_tools.token_text import bytes_of_letters
from tests.conftest import CHINESE
from tests.data_tools.test_report import make_bucket, make_category, make_manifest
from tests.tokenizer_tools.test_init_tokenizer import only_error
from tokenizer_tools.tokenizer import TextEncoder, fingerprint, load_tokenizer

Piece = tuple[str, list[int], int]  # category, ids, how many of the first bear no loss
TEXTS = [
    "Hello  world",
    " a\tb\n\nc ",
    CHINESE[0],
    "x </s> <s> y",
    "[bold]no[/bold] :smile: \\[",
    "🙂👩\u200d💻 naïve",
    "日\u3000本",
]


def write_bins(directory: Path, tokenizer_dir: Path, buckets: list[list[list[Piece]]], max_length: int = 64) -> Path:
    """A prepared dataset with just these rows, written without the code that prepares datasets."""
    categories = sorted({category for rows in buckets for row in rows for category, _, _ in row})
    entries = []
    for number, rows in enumerate(buckets):
        columns = {
            "input_ids": ([[i for _, ids, _ in row for i in ids] for row in rows], pa.uint16()),
            "labels": ([[v for _, ids, n in row for v in [-100] * n + ids[n:]] for row in rows], pa.int32()),
            "document_lengths": ([[len(ids) for _, ids, _ in row] for row in rows], pa.int32()),
            "document_categories": ([[categories.index(name) for name, _, _ in row] for row in rows], pa.int32()),
        }
        table = pa.table({name: pa.array(values, pa.list_(kind)) for name, (values, kind) in columns.items()})
        path = directory / f"part-{number:05d}"
        path.mkdir(parents=True)
        with pa.ipc.new_stream(str(path / "data-00000-of-00001.arrow"), table.schema) as writer:
            writer.write_table(table)
        entries.append(make_bucket(path.name, {}, rows=len(rows)))
    manifest = make_manifest({name: make_category(1, 1) for name in categories}, entries)
    manifest["tokenizer_fingerprint"] = fingerprint(load_tokenizer(tokenizer_dir))
    manifest["max_length"] = max_length
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return directory


def plain(encoder: TextEncoder, text: str) -> list[int]:
    """The ids of a whole document."""
    return encoder.prefix_ids + encoder.encode_batch([text])[0] + encoder.eos_ids


@pytest.fixture
def run(tmp_path: Path, tiny_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`run("--row", "1", dataset=..., tokenizer_dir=...)` -> the exit code."""
    for name in ("FORCE_COLOR", "NO_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)

    def inspect(*words: str, dataset: Path = tmp_path / "bins", tokenizer_dir: Path = tiny_tokenizer_dir) -> int:
        return inspect_rows.main(["--dataset", str(dataset), "--tokenizer_dir", str(tokenizer_dir), *words])

    return inspect


@pytest.fixture
def read(run: Any, capsys: pytest.CaptureFixture[str]) -> Any:
    """The same with --json, which is read."""

    def read_json(*words: str, **paths: Path) -> Any:
        capsys.readouterr()
        assert run(*words, "--json", **paths) == 0
        out = capsys.readouterr().out
        assert "\\u" not in out  # letters of every script can be read
        return json.loads(out)

    return read_json


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        ("base_tokenizer_dir", "<s>", "</s>"),
        ("tiny_tokenizer_dir", "<s>", "</s>"),
        ("byte_level_tokenizer_dir", "<|begin_of_text|>", "<|end_of_text|>"),
    ],
)
def test_texts_come_back_to_the_byte(
    kind: str, before: str, after: str, request: pytest.FixtureRequest, tmp_path: Path, read: Any
) -> None:
    tokenizer_dir = request.getfixturevalue(kind)
    encoder = TextEncoder(load_tokenizer(tokenizer_dir))
    row = [("zh", plain(encoder, text), 0) for text in TEXTS]
    texts = TEXTS
    if before == "<s>":  # sentencepiece puts a blank before a text that does not begin with one
        texts = [text if text.startswith(" ") else f" {text}" for text in TEXTS]
    write_bins(tmp_path / "bins", tokenizer_dir, [[row]], max_length=4096)
    found = read(tokenizer_dir=tokenizer_dir)
    assert found["bucket"] == "part-00000"
    (shown,) = found["rows"]
    assert shown["row"] == 0
    assert [document["text"] for document in shown["documents"]] == [before + text + after for text in texts]
    assert [document["tokens"] for document in shown["documents"]] == [len(ids) for _, ids, _ in row]
    for document in shown["documents"]:
        assert [part["is_control"] for part in document["parts"]] == [True, False, True]
        assert "".join(part["text"] for part in document["parts"]) == document["text"]


def test_masked_parts_and_control_tokens(tmp_path: Path, tiny_tokenizer_dir: Path, read: Any) -> None:
    encoder = TextEncoder(load_tokenizer(tiny_tokenizer_dir))
    source = encoder.encode_batch(["Why?"])[0]
    target = encoder.encode_batch(["So </s>."], continuation=True)[0]
    chat = [1, *source, 2, *target, 2]
    rows = [
        [("qa", [1, *source, *target, 2], 1 + len(source)), ("en", plain(encoder, "all"), 0), ("qa", chat, len(chat))]
    ]
    write_bins(tmp_path / "bins", tiny_tokenizer_dir, [rows])
    qa, en, masked = read()["rows"][0]["documents"]
    assert [(part["text"], part["has_loss"], part["is_control"]) for part in qa["parts"]] == [
        ("<s>", False, True),
        (" Why?", False, False),
        ("So </s>.", True, False),
        ("</s>", True, True),
    ]
    assert (qa["category"], qa["loss_tokens"], en["category"]) == ("qa", len(target) + 1, "en")
    assert {part["has_loss"] for part in en["parts"]} == {True}
    assert [(part["text"], part["has_loss"], part["is_control"]) for part in masked["parts"]] == [
        ("<s>", False, True),
        (" Why?", False, False),
        ("</s>", False, True),
        ("So </s>.", False, False),
        ("</s>", False, True),
    ]


@pytest.mark.parametrize("kind", ["tiny_tokenizer_dir", "byte_level_tokenizer_dir"])
def test_half_a_character_does_not_break_the_display(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, read: Any, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer_dir = request.getfixturevalue(kind)
    encoder = TextEncoder(load_tokenizer(tokenizer_dir))
    ids = encoder.encode_batch(["a龘"], continuation=True)[0]
    assert len(ids) == 4  # 龘 is the bytes e9 be 98
    write_bins(tmp_path / "bins", tokenizer_dir, [[[("zh", ids[:2], 0)], [("zh", ids[2:], 0)]]], max_length=2)
    found = read(tokenizer_dir=tokenizer_dir)
    assert [row["documents"][0]["text"] for row in found["rows"]] == ["a\\xe9", "\\xbe\\x98"]
    assert run(tokenizer_dir=tokenizer_dir) == 0
    assert "\na\\xe9\n" in capsys.readouterr().out


def test_added_tokens_are_shown_as_they_are_spelt(tmp_path: Path, tiny_tokenizer_dir: Path, read: Any) -> None:
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    tokenizer.add_tokens(["▁<0x41>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["▁end"]})
    tokenizer.save_pretrained(tmp_path / "added")
    write_bins(tmp_path / "bins", tmp_path / "added", [[[("en", [1, 512, 513], 0)]]])
    (document,) = read(tokenizer_dir=tmp_path / "added")["rows"][0]["documents"]
    parts = [(part["text"], part["is_control"]) for part in document["parts"]]
    assert parts == [("<s>", True), ("▁<0x41>", False), ("▁end", True)]


def test_letters_that_are_no_bytes_are_taken_as_they_are() -> None:
    from tokenizers.decoders import ByteLevel

    for piece in ("Ġa", "你", "ä½ł"):
        assert bytes_of_letters(piece).decode() == ByteLevel().decode([piece])


def beginnings_and_ends(read: Any, **paths: Path) -> list[tuple[bool | None, bool | None]]:
    rows = read("--num_rows", "99", **paths)["rows"]
    return [(document["begins"], document["ends"]) for row in rows for document in row["documents"]]


def test_cut_documents_are_told(tmp_path: Path, tiny_tokenizer_dir: Path, read: Any) -> None:
    ids = [1, *range(300, 318), 2]
    rows = [
        [("en", ids[:8], 0)],
        [("en", ids[8:16], 0)],
        [("en", ids[16:], 0), ("en", [1, 300, 2], 0)],
        [("en", [1, *range(300, 306), 2], 0)],  # it just fits
        [("en", [2, *range(300, 306), 2], 0)],  # a chat may begin with a control token of its own
        [("en", [1, *range(300, 306), 0], 0)],  # and end with one
        [("en", [2, 300, 301], 0)],  # or with text
    ]
    write_bins(tmp_path / "bins", tiny_tokenizer_dir, [rows], max_length=8)
    assert beginnings_and_ends(read) == [
        (True, False),
        (False, False),
        (False, True),
        (True, True),
        (True, True),
        (None, True),
        (True, None),
        (None, True),
    ]


def test_without_bos_a_beginning_cannot_be_told(tmp_path: Path, byte_level_tokenizer_dir: Path, read: Any) -> None:
    tokenizer_dir = shutil.copytree(byte_level_tokenizer_dir, tmp_path / "no_bos")
    layout = json.loads((tokenizer_dir / "tokenizer.json").read_text())
    layout["post_processor"] = None
    (tokenizer_dir / "tokenizer.json").write_text(json.dumps(layout))
    eos = load_tokenizer(tokenizer_dir).eos_token_id
    write_bins(
        tmp_path / "bins",
        tokenizer_dir,
        [[[("en", [300, 301, 302, eos], 0)], [("en", [300, 301, 302, 303], 0)]]],
        max_length=4,
    )
    assert beginnings_and_ends(read, tokenizer_dir=tokenizer_dir) == [(None, True), (None, False)]


@pytest.fixture
def two_rows(tmp_path: Path, tiny_tokenizer_dir: Path) -> Path:
    """One row with a masked source and a hostile text, one that a cut document fills."""
    encoder = TextEncoder(load_tokenizer(tiny_tokenizer_dir))
    source = [1, *encoder.encode_batch(["Why?"])[0]]
    target = [*encoder.encode_batch(["[b]so[/b]\x1b[31m :smile:"], continuation=True)[0], 2]
    long_ids = plain(encoder, "word " * 100)[:64]
    rows: list[list[Piece]] = [
        [("q\x1b[1ma", source + target, len(source)), ("en", plain(encoder, "fine\tday\n👩\u200d💻"), 0)],
        [("en", long_ids, 0)],
    ]
    return write_bins(tmp_path / "bins", tiny_tokenizer_dir, [rows])


def test_plain_text(two_rows: Path, run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run() == 0
    out = capsys.readouterr().out
    row = open_bins([two_rows]).bins[0].row(0)
    num_masked = int((row.labels == -100).sum())
    first, second = row.document_lengths.tolist()
    lines = out.splitlines()
    assert lines[:7] == [
        f"part-00000, row 0 of 2: {first + second} tokens, 2 documents",
        f"── document 1 · q\\x1b[1ma · {first} tokens · {num_masked} without loss ──",
        "⟦<s> Why?⟧[b]so[/b]\\x1b[31m :smile:</s>",
        f"── document 2 · en · {second} tokens ──",
        "<s> fine\tday",
        "👩\u200d💻</s>",
        "",
    ]
    assert lines[7:9] == [
        "part-00000, row 1 of 2: 64 tokens, 1 document",
        "── document 1 · en · 64 tokens · is cut at the end of the row ──",
    ]
    assert lines[9].startswith("<s> word word word ")
    assert len(lines[9]) > 100  # a line of the text is a line here
    assert "\x1b" not in out


def test_a_continuation_says_so(
    tmp_path: Path, tiny_tokenizer_dir: Path, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bins(tmp_path / "bins", tiny_tokenizer_dir, [[[("en", [300, 301, 2], 0)]]])
    assert run() == 0
    assert "── document 1 · en · 3 tokens · goes on from another row ──" in capsys.readouterr().out


def test_colours(two_rows: Path, run: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    assert run("--row", "0") == 0
    out = capsys.readouterr().out
    assert "\x1b[2;36m<s>\x1b[0m\x1b[2m Why?\x1b[0m[b]so[/b]\\x1b[31m :smile:\x1b[36m</s>\x1b[0m" in out
    assert "⟦" not in out
    assert run("--row", "1") == 0
    assert len(capsys.readouterr().out.splitlines()[2]) > 100  # a line of the text is a line here too
    monkeypatch.setenv("NO_COLOR", "1")
    assert run("--row", "0") == 0
    assert "⟦<s> Why?⟧[b]so[/b]" in capsys.readouterr().out


def test_rows_and_buckets_are_chosen(tmp_path: Path, tiny_tokenizer_dir: Path, read: Any) -> None:
    buckets: list[list[list[Piece]]] = [
        [[("en", [1, 300 + 10 * bucket + row, 2], 0)] for row in range(5)] for bucket in range(3)
    ]
    write_bins(tmp_path / "bins", tiny_tokenizer_dir, buckets)
    text_of = load_tokenizer(tiny_tokenizer_dir).convert_ids_to_tokens

    def expect(bucket: int, rows: list[int], found: Any) -> None:
        assert found["bucket"] == f"part-0000{bucket}"
        assert [row["row"] for row in found["rows"]] == rows
        for number, row in zip(rows, found["rows"], strict=True):
            piece = text_of(300 + 10 * bucket + number).replace("▁", " ")
            assert row["documents"][0]["text"] == f"<s>{piece}</s>"

    expect(0, [0, 1, 2], read())
    expect(2, [0, 1, 2, 3, 4], read("--bucket", "2", "--num_rows", "9"))
    expect(1, [4, 0], read("--bucket", "1", "--row", "4", "0"))
    expect(1, [3], read("--row", "3", dataset=tmp_path / "bins" / "part-00001"))


def test_rows_of_a_prepared_dataset(tiny_bins_dir: Path, tiny_tokenizer_dir: Path, read: Any) -> None:
    """What stage 3 wrote: questions are masked, answers are not, and documents that were cut add up."""
    documents = []
    for part in open_bins([tiny_bins_dir]).bins:
        rows = read("--num_rows", str(part.num_rows), dataset=part.path)["rows"]
        assert [row["row"] for row in rows] == list(range(part.num_rows))
        documents += [document for row in rows for document in row["documents"]]
    for document in documents:
        path, _, line = document["source"].rpartition(":")
        assert json.loads(Path(path).read_text().splitlines()[int(line) - 1])["category"] == document["category"]
    questions = [document for document in documents if document["category"] == "qa" and document["begins"]]
    assert len(questions) == 20
    for document in questions:
        assert document["parts"][1]["text"].startswith(" Question ")
        assert not document["parts"][1]["has_loss"]
    chinese = [document for document in documents if document["category"] == "zh"]
    assert (
        sum(document["begins"] for document in chinese) == sum(document["ends"] for document in chinese) == len(CHINESE)
    )
    assert sum(document["tokens"] for document in chinese) == sum(
        len(plain(TextEncoder(load_tokenizer(tiny_tokenizer_dir)), text)) for text in CHINESE
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--row", "0", "2"], "--row 2: part-00000 has 2 rows, counted from 0; choose 0 to 1"),
        (["--row", "-1"], "--row -1: part-00000 has 2 rows, counted from 0; choose 0 to 1"),
        (["--bucket", "2"], "--bucket 2: {bins} has 2 of them, counted from 0; choose 0 to 1"),
        (["--bucket", "-1"], "--bucket -1: {bins} has 2 of them, counted from 0; choose 0 to 1"),
        (["--bucket", "1"], "--bucket 1: part-00001 holds no row; choose another one"),
        (["--num_rows", "0"], "--num_rows 0: nothing would be shown; choose 1 or more"),
        (["--dataset", "{bins}/nix"], "nix: no such directory"),
        (["--tokenizer_dir", "{bins}"], "holds neither tokenizer.model nor tokenizer.json"),
    ],
)
def test_refusals(
    words: list[str],
    message: str,
    tmp_path: Path,
    tiny_tokenizer_dir: Path,
    run: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bins = write_bins(tmp_path / "bins", tiny_tokenizer_dir, [[[("en", [1, 300, 2], 0)]] * 2, []])
    assert run(*[word.format(bins=bins) for word in words]) == 2
    assert message.format(bins=bins) in only_error(capsys)


def test_another_tokenizer_is_refused(
    two_rows: Path, byte_level_tokenizer_dir: Path, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tokenizer_dir=byte_level_tokenizer_dir) == 2
    other = fingerprint(load_tokenizer(byte_level_tokenizer_dir))
    expected = json.loads((two_rows / "manifest.json").read_text())["tokenizer_fingerprint"]
    assert only_error(capsys) == (
        f"error: --tokenizer_dir {byte_level_tokenizer_dir}: tokenizer {other[:12]}, but {two_rows} was prepared with "
        f"tokenizer {expected[:12]}; name that one"
    )


def test_an_id_that_means_nothing_is_named(
    tmp_path: Path, tiny_tokenizer_dir: Path, run: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bins(tmp_path / "bins", tiny_tokenizer_dir, [[[("en", [1, 512, 2], 0)]]])
    assert run() == 2
    assert "part-00000: row 0 holds id 512, which its tokenizer does not have; the rows are" in only_error(capsys)


def test_help_of_the_script() -> None:
    command = [sys.executable, inspect_rows.__file__, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    for flag in ("--dataset", "--tokenizer_dir", "--bucket", "--row", "--num_rows", "--json"):
        assert flag in result.stdout


def test_a_reader_who_has_left_is_no_fault(two_rows: Path, tiny_tokenizer_dir: Path) -> None:
    command = [
        sys.executable,
        inspect_rows.__file__,
        "--dataset",
        str(two_rows),
        "--tokenizer_dir",
        str(tiny_tokenizer_dir),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 0
