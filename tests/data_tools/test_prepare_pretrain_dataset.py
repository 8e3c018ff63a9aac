"""The command as a user runs it: documents come back out of the rows, the same bytes each time, clear refusals."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pytest
import xxhash

from data_tools import bucket_writer, engine, parts, prepare_pretrain_dataset
from data_tools.bin_writer import ARROW_NAME
from data_tools.bins import open_bins
from data_tools.manifest import read_manifest
from data_tools.sources import SOURCES_NAME
from tests.data_tools.conftest import Documents, Prepare, make_documents, write_documents
from tokenizer_tools.tokenizer import TextEncoder, fingerprint, load_tokenizer

CHECKOUT = Path(prepare_pretrain_dataset.__file__).parent.parent


def files_of(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def expected_sequences(tokenizer_dir: Path, documents: Documents) -> Counter[tuple[Any, ...]]:
    """(category, ids, labels) of each document, by encoding one text at a time."""
    encoder = TextEncoder(load_tokenizer(tokenizer_dir))
    found: Counter[tuple[Any, ...]] = Counter()
    for document in documents:
        source = encoder.encode_batch([document["source"]])[0] if document["source"] else []
        target = encoder.encode_batch([document["target"]], continuation=bool(document["source"]))[0]
        ids = [1, *source, *target, 2]
        labels = [-100] * (1 + len(source)) + [*target, 2] if source else ids
        found[document["category"], tuple(ids), tuple(labels)] += 1
    return found


def written_sequences(directory: Path) -> Counter[tuple[Any, ...]]:
    """(category, ids, labels) of each document, put together from its pieces: full rows and one rest, in any order."""
    opened = open_bins([directory])
    found: Counter[tuple[Any, ...]] = Counter()
    for part in opened.bins:
        for index in range(part.num_rows):
            row, start = part.row(index), 0
            for length, category in zip(row.document_lengths, row.document_categories, strict=True):
                piece = slice(start, start + length)
                ids, labels = row.input_ids[piece].tolist(), row.labels[piece].tolist()
                found[opened.categories[category], tuple(ids), tuple(labels)] += 1
                start += length
            assert start == len(row.input_ids) <= opened.max_length
    return found


def cut(sequences: Counter[tuple[Any, ...]], max_length: int) -> Counter[tuple[Any, ...]]:
    """The pieces that long sequences are cut into."""
    pieces: Counter[tuple[Any, ...]] = Counter()
    for (category, ids, labels), count in sequences.items():
        for start in range(0, len(ids), max_length):
            pieces[category, ids[start : start + max_length], labels[start : start + max_length]] += count
    return pieces


@pytest.mark.parametrize(("max_length", "num_bins"), [(16384, 1), (128, 4), (32, 30)])
def test_every_document_is_in_the_rows_once(
    prepare: Prepare, documents: Documents, tiny_tokenizer_dir: Path, max_length: int, num_bins: int
) -> None:
    directory = prepare(max_length=max_length, num_spliced_dataset_bins=num_bins)
    expected = expected_sequences(tiny_tokenizer_dir, documents)
    assert written_sequences(directory) == cut(expected, max_length)
    manifest = read_manifest(directory)
    num_tokens = sum(len(ids) * count for (_, ids, _), count in expected.items())
    assert manifest["tokens"] == {"in": num_tokens, "in_bins": num_tokens, "dropped": {}, "repeated": 0}
    assert manifest["bytes"] == sum(len(document["target"].encode()) for document in documents)
    assert manifest["characters"] == sum(len(document["target"]) for document in documents)
    histogram = Counter(len(ids).bit_length() - 1 for (_, ids, _), count in expected.items() for _ in range(count))
    found = [entry["length_histogram"] for entry in manifest["categories"].values()]
    assert {i: sum(h[i] for h in found if i < len(h)) for i in histogram} == histogram
    assert manifest["loss_tokens"] == sum(
        sum(label != -100 for label in labels) * count for (_, _, labels), count in expected.items()
    )


def test_the_manifest_describes_the_buckets(prepare: Prepare, tiny_tokenizer_dir: Path, documents: Documents) -> None:
    directory = prepare()
    manifest = read_manifest(directory)
    assert manifest["version"] == 1
    assert manifest["max_length"] == 128
    assert manifest["num_buckets"] == 4
    assert manifest["seed"] == 42
    assert manifest["files"] == {"read": 2, "skipped": {}}
    assert manifest["records"] == {"read": 200, "kept": 200, "refused": {}, "placed": 200}
    assert manifest["settings"]["max_length"] == 128
    assert manifest["settings"]["text_field"] == "target"
    assert manifest["tokenizer_fingerprint"] == fingerprint(load_tokenizer(tiny_tokenizer_dir))
    assert manifest["category_names"] == list(manifest["categories"]) == ["en", "poetry", "zh"]
    for name, entry in manifest["categories"].items():
        assert entry["records"]["read"] == sum(document["category"] == name for document in documents)
    num_rows = 0
    for bucket in manifest["buckets"]:
        loaded = datasets.load_from_disk(str(directory / bucket["path"]))
        num_rows += bucket["rows"]
        assert bucket["rows"] == len(loaded)
        assert bucket["tokens"] == sum(map(len, loaded["input_ids"]))
        assert sum(bucket["fill_histogram"]) == bucket["rows"]
        assert bucket["loss_tokens"] == sum(label != -100 for labels in loaded["labels"] for label in labels)
        for key in ("documents", "tokens", "loss_tokens", "bytes"):
            assert bucket[key] == sum(entry[key] for entry in bucket["categories"].values())  # type: ignore[literal-required]
    assert manifest["fill"] == manifest["tokens"]["in"] / (num_rows * 128)


def test_same_bytes_for_any_names_order_and_split_of_the_input(
    prepare: Prepare, tmp_path: Path, corpus_dir: Path, documents: Documents
) -> None:
    shuffled = random.Random(1).sample(documents, len(documents))
    write_documents(tmp_path / "x" / "z.jsonl", shuffled[:50])
    write_documents(tmp_path / "x" / "a.jsonl", shuffled[50:120])
    write_documents(tmp_path / "y" / "a.jsonl", shuffled[120:])
    x, y = tmp_path / "x", tmp_path / "y"
    one = files_of(prepare("one"))
    assert len(one) == 4 + 4 * 4
    assert files_of(prepare("again")) == one
    xy, yx = files_of(prepare("xy", data_input_dirs=f"{x},{y}")), files_of(prepare("yx", data_input_dirs=f"{y},{x}"))
    assert xy == yx
    differing = {name for name in one if one[name] != xy[name]}
    sources = {f"part-{index:05d}/{SOURCES_NAME}" for index in range(4)}
    assert (
        differing == {"manifest.json", "inputs.json", "report.html"} | sources
    )  # which tell the files: 3 here, 2 there
    assert read_manifest(tmp_path / "one")["documents_sha256"] == read_manifest(tmp_path / "xy")["documents_sha256"]
    other_seed = files_of(prepare("other_seed", seed=7))
    assert all(other_seed[name] != one[name] for name in one if name.endswith(".arrow"))  # rows and their sources


def test_readable_rows_are_the_rows(prepare: Prepare, tmp_path: Path, documents: Documents) -> None:
    documents = [document for document in documents if len(document["target"]) < 100]
    write_documents(tmp_path / "short" / "x.jsonl", documents)
    flags = {"max_length": 512, "num_spliced_dataset_bins": 2, "data_jsonl_output_dir": tmp_path / "readable"}
    directory = prepare(data_input_dirs=tmp_path / "short", **flags)
    opened = open_bins([directory])
    texts = []
    for part in opened.bins:
        lines = (tmp_path / "readable" / f"{part.path.name}.jsonl").read_text().splitlines()
        assert len(lines) == part.num_rows > 1
        for index, line in enumerate(lines):
            readable, row = json.loads(line), part.row(index)
            assert readable["input_ids"] == row.input_ids.tolist()
            assert readable["labels"] == row.labels.tolist()
            assert [document["tokens"] for document in readable["documents"]] == row.document_lengths.tolist()
            texts += [(document["category"], document["text"]) for document in readable["documents"]]
    assert sorted(texts) == sorted((d["category"], f"<s> {d['source']}{d['target']}</s>") for d in documents)


def test_bad_lines_are_listed_and_everything_else_is_kept(
    prepare: Prepare, corpus_dir: Path, documents: Documents, capsys: pytest.CaptureFixture[str]
) -> None:
    good = json.dumps({"target": "good", "category": "late"}).encode()
    bad = b'{"target": ""}\n\n' + good + b'\n{"target": "x", "category": "empty", "source": 1}\n' + good[:-9]
    (corpus_dir / "bad.jsonl").write_bytes(bad)
    (corpus_dir / "more.pdf").touch()
    directory = prepare()
    refused = [json.loads(line) for line in (directory / "refused.jsonl").read_text().splitlines()]
    assert [(line["line_number"], line["reason"], line["category"]) for line in refused] == [
        (1, "empty_target", "default"),
        (4, "source_not_a_string", "empty"),
        (5, "invalid_json", None),
    ]
    assert all(line["file"] == str(corpus_dir / "bad.jsonl") for line in refused)
    assert [bad[line["byte_offset"] :].split(b"\n")[0] for line in refused] == [bad.split(b"\n")[i] for i in (0, 3, 4)]
    manifest = read_manifest(directory)
    reasons = {"empty_target": 1, "invalid_json": 1, "source_not_a_string": 1}
    assert manifest["records"] == {"read": 204, "kept": 201, "refused": reasons, "placed": 201}
    assert manifest["files"]["skipped"] == {".pdf": 1}
    assert manifest["category_names"] == ["default", "empty", "en", "late", "poetry", "zh"]
    empty = manifest["categories"]["empty"]
    assert empty["records"] == {"read": 1, "kept": 0, "refused": {"source_not_a_string": 1}, "placed": 0}
    assert empty["tokens"] == {"in": 0, "in_bins": 0, "dropped": {}, "repeated": 0}
    printed = capsys.readouterr()
    assert "201" in printed.out
    assert "empty" in printed.out


def test_fewer_documents_than_bins(prepare: Prepare, tmp_path: Path) -> None:
    write_documents(tmp_path / "few" / "x.jsonl", make_documents(3))
    directory = prepare(data_input_dirs=tmp_path / "few", num_spliced_dataset_bins=10, max_length=16384)
    assert [bucket["rows"] for bucket in read_manifest(directory)["buckets"]] == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    loaded = [datasets.load_from_disk(str(directory / f"part-{index:05d}")) for index in range(10)]
    assert len(datasets.concatenate_datasets(loaded)) == 3


def fails(capsys: pytest.CaptureFixture[str], tmp_path: Path, **flags: Any) -> str:
    """Run the command; it must end with code 2, one line, and leave nothing behind."""
    before = sorted(tmp_path.rglob("*"))
    words = [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]
    assert prepare_pretrain_dataset.main(words) == 2
    assert sorted(tmp_path.rglob("*")) == before
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line.startswith("error: ")
    return last_line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"max_length": 7}, "--max_length 7: a row holds at least 8 tokens"),
        ({"num_spliced_dataset_bins": 0}, "--num_spliced_dataset_bins 0: choose 1 to 100000"),
        ({"num_spliced_dataset_bins": 100001}, "--num_spliced_dataset_bins 100001: choose 1 to 100000"),
        ({"seed": -1}, "--seed -1: choose 0 or more"),
        ({"data_input_dirs": ","}, "--data_input_dirs names no directory"),
        ({"data_input_dirs": "CORPUS,absent"}, "--data_input_dirs absent: no such directory"),
        ({"data_input_dirs": "TMP/empty"}, "no input file (no file at all)"),
        ({"data_input_dirs": "TMP/packed"}, "no input file (only 1 .rar)"),
        ({"num_workers": 0}, "--num_workers 0: choose 1 or more"),
        ({"max_document_bytes": 0}, "--max_document_bytes 0: choose 1 or more"),
        ({"max_refused": "few"}, "--max_refused few: choose a count (100) or a share (0.01)"),
        ({"max_refused": "-1"}, "--max_refused -1: choose a count"),
        ({"max_refused": "nan"}, "--max_refused nan: choose a count"),
        ({"min_characters": -1}, "--min_characters -1: "),
        ({"backend": "fast"}, "invalid choice: 'fast'"),
        ({"long_documents": "cut"}, "invalid choice: 'cut'"),
        ({"mixture": "TMP/none.json"}, "--mixture TMP/none.json: No such file or directory"),
        ({"decontaminate": "TMP/none"}, "--decontaminate TMP/none: no such file or directory"),
        ({"text_field": "text"}, "if the text is in another field, name it with --text_field"),
        (
            {"data_input_dirs": "TMP/bad"},
            "no document is left: refused 2 invalid_json, the first at TMP/bad/x.jsonl:1",
        ),
        ({"data_input_dirs": "TMP/blank"}, "no document is left: every file is empty"),
        ({"data_arrow_output_dir": "CORPUS/out"}, "this output directory lies in CORPUS"),
        ({"data_arrow_output_dir": "TMP"}, "this output directory would replace CORPUS"),
        ({"data_arrow_output_dir": "TOKENIZER"}, "this output directory would replace TOKENIZER"),
        ({"data_arrow_output_dir": "TMP/link/out"}, "this output directory lies in CORPUS"),
        ({"data_cache_dir": "TMP/out/cache"}, "this output directory would replace TMP/out/cache"),
        ({"data_jsonl_output_dir": "TMP/out/jsonl"}, "would replace TMP/out/jsonl"),
        ({"data_arrow_output_dir": "TMP/packed"}, "exists and is not empty; add --overwrite"),
        ({"data_jsonl_output_dir": "TMP/packed"}, "exists and is not empty; add --overwrite"),
        ({"tokenizer_dir": "TMP/absent"}, "absent: no such directory; name a tokenizer directory"),
    ],
)
def test_each_fault_of_the_user_is_named_in_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    corpus_dir: Path,
    tiny_tokenizer_dir: Path,
    flags: dict[str, Any],
    message: str,
) -> None:
    for name, content in {"packed/x.rar": "x", "bad/x.jsonl": "no\njson\n", "blank/x.jsonl": "\n\n"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(content)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(corpus_dir)

    def real(text: Any) -> str:
        names = {"CORPUS": corpus_dir, "TMP": tmp_path, "TOKENIZER": tiny_tokenizer_dir}
        for name, path in names.items():
            text = str(text).replace(name, str(path))
        return str(text)

    defaults = {"data_input_dirs": "CORPUS", "tokenizer_dir": "TOKENIZER", "data_arrow_output_dir": "TMP/out"}
    assert real(message) in fails(capsys, tmp_path, **{name: real(v) for name, v in (defaults | flags).items()})


def test_flags_say_what_is_read(prepare: Prepare, tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    documents = [{"q": "which? ", "a": "the river", "kind": "en"}, {"a": "x" * 2000, "kind": "en"}]
    write_documents(tmp_path / "named" / "x.jsonl", documents)
    (tmp_path / "named" / "y.txt").write_text("one line\nanother line\n")
    flags = {"text_field": "a", "source_field": "q", "category_field": "kind", "txt_documents": "line"}
    input_dirs = f" {tmp_path / 'named'} ,"  # blanks around commas are no part of names
    directory = prepare(data_input_dirs=input_dirs, max_document_bytes=1000, **flags)
    expected = [{"source": "which? ", "target": "the river", "category": "en"}]
    expected += [{"source": "", "target": text, "category": "default"} for text in ("one line", "another line")]
    assert written_sequences(directory) == expected_sequences(tiny_tokenizer_dir, expected)
    assert read_manifest(directory)["records"]["refused"] == {"over_long": 1}


def test_an_output_may_lie_in_the_cache(prepare: Prepare, tmp_path: Path) -> None:
    directory = prepare("cache/bins", data_cache_dir=tmp_path / "cache")
    assert read_manifest(directory)["records"]["kept"] == 200


def test_a_row_may_hold_eight_tokens(prepare: Prepare) -> None:
    assert read_manifest(prepare(max_length=8))["max_length"] == 8


def test_files_of_no_known_format_are_named(
    prepare: Prepare, corpus_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (corpus_dir / "more.pdf").touch()
    (corpus_dir / "more.docx").touch()
    prepare()
    assert "not read, because their names tell no known format: 1 .docx, 1 .pdf" in caplog.text


def test_overwrite_replaces_the_output(prepare: Prepare, tmp_path: Path) -> None:
    directory = prepare(num_spliced_dataset_bins=3)
    prepare(num_spliced_dataset_bins=2, overwrite=True)
    assert len(read_manifest(directory)["buckets"]) == 2
    assert not (directory / "part-00002").exists()


def test_help_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from data_tools.prepare_pretrain_dataset import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pyarrow', 'colossalai', 'rich', 'tqdm'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "--num_spliced_dataset_bins" in result.stdout


def test_more_refused_lines_than_allowed_stop_the_run(
    prepare: Prepare, tmp_path: Path, corpus_dir: Path, tiny_tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (corpus_dir / "bad.jsonl").write_text('{"target": ""}\n' * 8)
    flags = {"data_input_dirs": corpus_dir, "tokenizer_dir": tiny_tokenizer_dir}
    words = [str(word) for flag, value in flags.items() for word in (f"--{flag}", value)]
    for limit, code in [("7", 2), ("8", 0), ("0.038", 2), ("0.039", 0), ("0", 2)]:
        output = tmp_path / f"limit-{limit}"
        words_of_output = ["--data_arrow_output_dir", str(output), "--max_refused", limit]
        assert prepare_pretrain_dataset.main([*words, *words_of_output]) == code
        assert output.exists() == (code == 0)
        said = capsys.readouterr().err.splitlines()
        if code:
            place = f"refused 8 empty_target, the first at {corpus_dir}/bad.jsonl:1 (target holds nothing but blanks)"
            assert f"{place}: 8 are more than --max_refused {limit} of 208 lines" in said[-1]


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_same_bytes_for_any_number_of_workers(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    one = files_of(prepare("one", num_workers=1))
    monkeypatch.setattr(parts, "PART_BYTES", 10_000)  # several parts, cut in the middle of files
    monkeypatch.setattr(bucket_writer, "SHARD_TOKENS", 4_000)  # several tasks of buckets
    several = files_of(prepare("several", num_workers=num_workers))
    assert several.keys() == one.keys()
    assert {name for name in one if one[name] != several[name]} <= {"inputs.json"}  # a digest over spans


def test_same_bytes_in_whatever_order_tasks_are_ready(
    prepare: Prepare, corpus_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for path in corpus_dir.rglob("*.jsonl"):
        path.write_text("no json\n" * 3 + path.read_text() + "no json\n")
    monkeypatch.setattr(parts, "PART_BYTES", 3_000)
    monkeypatch.setattr(bucket_writer, "SHARD_TOKENS", 4_000)
    one = files_of(prepare("one", num_workers=1))
    refused = [json.loads(line) for line in one["refused.jsonl"].splitlines()]
    assert [line["line_number"] for line in refused] == [1, 2, 3, 84, 1, 2, 3, 124]
    run_tasks = engine.run_tasks
    monkeypatch.setattr(engine, "run_tasks", lambda *args: reversed(list(run_tasks(*args))))
    assert files_of(prepare("backwards", num_workers=1)) == one
    caplog.set_level(logging.INFO)
    prepare("backwards", num_workers=1)
    assert "already made from this very text" in caplog.text


def test_a_bucket_larger_than_memory_is_written_shard_by_shard(
    prepare: Prepare, tiny_tokenizer_dir: Path, documents: Documents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_writer, "SHARD_TOKENS", 2_000)
    directory = prepare(num_spliced_dataset_bins=1)
    assert written_sequences(directory) == cut(expected_sequences(tiny_tokenizer_dir, documents), 128)
    assert read_manifest(directory)["fill"] > 0.95


@pytest.mark.parametrize("mode", ["truncate", "drop"])
def test_long_documents_are_treated_as_asked_and_counted(
    prepare: Prepare, tiny_tokenizer_dir: Path, documents: Documents, mode: str
) -> None:
    directory = prepare(long_documents=mode)
    expected: Counter[tuple[Any, ...]] = Counter()
    lost: Counter[str] = Counter()
    for (category, ids, labels), count in expected_sequences(tiny_tokenizer_dir, documents).items():
        if mode == "truncate" or len(ids) <= 128:
            expected[category, ids[:128], labels[:128]] += count
            lost[category] += count * max(0, len(ids) - 128)
        else:
            lost[category] += count * len(ids)
    assert written_sequences(directory) == expected
    manifest = read_manifest(directory)
    reason = {"truncate": "truncated", "drop": "long_document"}[mode]
    assert manifest["tokens"]["dropped"] == {reason: sum(lost.values())}
    for name, entry in manifest["categories"].items():
        assert entry["tokens"]["dropped"] == {reason: lost[name]}
    num_rows = sum(bucket["rows"] for bucket in manifest["buckets"])
    assert manifest["fill"] == sum(len(ids) * count for (_, ids, _), count in expected.items()) / (num_rows * 128)


def test_a_mixture_is_told_before_and_kept(
    prepare: Prepare,
    tmp_path: Path,
    tiny_tokenizer_dir: Path,
    documents: Documents,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "mixture.yaml").write_text("en: {repeats: 2}\npoetry: {repeats: 0}\n")
    monkeypatch.setattr(parts, "PART_BYTES", 10_000)  # several parts are surveyed
    directory = prepare(mixture=tmp_path / "mixture.yaml", max_length=16384)
    expected = expected_sequences(tiny_tokenizer_dir, documents)
    times = {"en": 2, "poetry": 0, "zh": 1}
    wanted = Counter({key: times[key[0]] * count for key, count in expected.items() if times[key[0]]})
    assert written_sequences(directory) == wanted
    manifest = read_manifest(directory)
    tokens = {name: sum(len(k[1]) * n for k, n in expected.items() if k[0] == name) for name in times}
    assert manifest["tokens"]["repeated"] == tokens["en"]
    assert manifest["tokens"]["dropped"] == {"mixture": tokens["poetry"]}
    assert manifest["tokens"]["in"] == 2 * tokens["en"] + tokens["zh"] + tokens["poetry"]
    said = capsys.readouterr().err
    assert "mixture, as planned" in said
    rows = [[cell.strip() for cell in line.split("│")[1:4]] for line in said.splitlines() if "x │" in line]
    texts = {name: [d["target"] for d in documents if d["category"] == name] for name in times}
    assert rows == [[name, f"{len(own):,}", f"{sum(map(len, map(str.encode, own))):,}"] for name, own in texts.items()]


def test_weights_are_the_shares_of_the_text(prepare: Prepare, tmp_path: Path) -> None:
    weights = {"en": 1, "poetry": 2, "zh": 1}
    mixture = {name: {"weight": weight, "repeats": 4} for name, weight in weights.items()}
    (tmp_path / "mixture.json").write_text(json.dumps(mixture))
    manifest = read_manifest(prepare(mixture=tmp_path / "mixture.json"))
    for name, weight in weights.items():
        share = manifest["categories"][name]["bytes"] / manifest["bytes"]
        assert share == pytest.approx(weight / 4, rel=0.05)


def test_an_unknown_category_of_the_mixture_is_named_before_anything_is_encoded(
    tmp_path: Path, corpus_dir: Path, tiny_tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mixture.json").write_text('{"fr": {"repeats": 2}}')
    flags = {"data_input_dirs": corpus_dir, "tokenizer_dir": tiny_tokenizer_dir, "mixture": tmp_path / "mixture.json"}
    assert "names 'fr', but the text has only en, poetry, zh" in fails(
        capsys, tmp_path, **flags, data_arrow_output_dir=tmp_path / "out"
    )


def test_equal_and_similar_documents_are_left_out_and_listed(
    prepare: Prepare, tmp_path: Path, documents: Documents
) -> None:
    text = " ".join(f"word{number}" for number in range(100))
    again = [{"target": text, "category": name} for name in ("b", "a", "a")]
    write_documents(tmp_path / "twice" / "x.jsonl", [*again, {"target": f"{text} end", "category": "a"}])
    write_documents(tmp_path / "twice" / "y.jsonl", [{"target": "quite another text"}, *again[:1]])
    flags = {"data_input_dirs": tmp_path / "twice", "max_length": 512, "num_spliced_dataset_bins": 1}
    exact = prepare("exact", **flags, drop_exact_duplicates=True)
    manifest = read_manifest(exact)
    assert manifest["records"] == {"read": 6, "kept": 3, "refused": {"exact_duplicate": 3}, "placed": 3}
    assert manifest["categories"]["a"]["records"]["kept"] == 2
    refused = [json.loads(line) for line in (exact / "refused.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in refused] == ["exact_duplicate"] * 3
    places = {(Path(line["file"]).name, line["line_number"], line["category"]) for line in refused}
    assert ("x.jsonl", 1, "b") in places
    assert ("y.jsonl", 2, "b") in places
    assert len(places & {("x.jsonl", 2, "a"), ("x.jsonl", 3, "a")}) == 1
    both = read_manifest(prepare("both", **flags, drop_exact_duplicates=True, near_duplicate_similarity=0.8))
    assert both["records"]["refused"] == {"exact_duplicate": 3, "near_duplicate": 1}


def test_the_hash_of_the_documents_is_over_those_that_are_kept(prepare: Prepare, tmp_path: Path) -> None:
    texts = [f"text {index}" for index in range(50)]
    write_documents(tmp_path / "twice" / "x.jsonl", [{"target": text} for text in texts + texts[:20]])
    directory = prepare(data_input_dirs=tmp_path / "twice", drop_exact_duplicates=True)
    hashes = sorted(xxhash.xxh3_64_digest(text.encode()) for text in texts)  # digests are big-endian
    assert read_manifest(directory)["documents_sha256"] == hashlib.sha256(b"".join(hashes)).hexdigest()


def test_contaminated_and_filtered_documents_are_left_out(prepare: Prepare, tmp_path: Path) -> None:
    question = "which river runs through the middle of the old city and under how many bridges"
    (tmp_path / "eval.json").write_text(json.dumps([{"question": question.upper() + "?"}]))
    texts = [f"Before. {question}, they asked.", "short", "a text that is long enough and about something else"]
    write_documents(tmp_path / "text" / "x.jsonl", [{"target": text} for text in texts])
    flags = {"data_input_dirs": tmp_path / "text", "decontaminate": tmp_path / "eval.json", "min_characters": 10}
    directory = prepare(**flags)
    assert read_manifest(directory)["records"]["refused"] == {"contaminated": 1, "too_short": 1}
    assert len(written_sequences(directory)) == 1


def test_conversations_bear_loss_on_the_assistants_turns(
    prepare: Prepare, tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    chat_dir = tmp_path / "chat-tokenizer"
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% else %}\n{% endif %}{% endfor %}"
    )
    tokenizer.save_pretrained(chat_dir)
    messages = [{"role": "user", "content": "which river?"}, {"role": "assistant", "content": "the </s> one"}]
    write_documents(tmp_path / "chat" / "x.jsonl", [{"messages": messages}])
    words = ["--data_input_dirs", tmp_path / "chat", "--tokenizer_dir", chat_dir, "--max_length", "512"]
    words += ["--data_arrow_output_dir", tmp_path / "out", "--num_spliced_dataset_bins", "1"]
    assert prepare_pretrain_dataset.main([str(word) for word in words]) == 0
    ((_, ids, labels),) = written_sequences(tmp_path / "out")
    with_loss = [token for token, label in zip(ids, labels, strict=True) if label != -100]
    assert [label for label in labels if label != -100] == with_loss
    assert tokenizer.decode(with_loss) == "the </s> one</s>"
    assert with_loss.count(tokenizer.eos_token_id) == 1
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False) + "assistant: "
    num_prompt = labels.index(with_loss[0])
    assert list(ids[:num_prompt]) == tokenizer(prompt, add_special_tokens=False)["input_ids"]


def test_turns_spelt_in_text_bear_loss_on_the_assistants_words(prepare: Prepare, tmp_path: Path) -> None:
    text = "<s>Human: which river?</s><s>Assistant: the long one</s>"
    write_documents(tmp_path / "turns" / "x.jsonl", [{"text": text}])
    flags = {"text_field": "text", "text_format": "human_assistant", "num_spliced_dataset_bins": 1}
    ((_, ids, labels),) = written_sequences(prepare(data_input_dirs=tmp_path / "turns", **flags))
    assert (ids.count(1), ids.count(2), ids[0], ids[-1]) == (2, 2, 1, 2)
    assert labels[-1] == 2
    num_masked = next(place for place, label in enumerate(labels) if label != -100)
    assert labels[num_masked:] == ids[num_masked:]
    assert ids[num_masked - 1] not in labels


def test_many_formats_in_one_directory_make_the_bins_of_one(
    prepare: Prepare, tmp_path: Path, documents: Documents
) -> None:
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    directory = tmp_path / "mixed"
    write_documents(directory / "a.jsonl", documents[:50])
    lines = "".join(json.dumps(document) + "\n" for document in documents[50:100]).encode()
    (directory / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (directory / "c.json").write_text(json.dumps(documents[100:150], indent=1))
    pq.write_table(pa.Table.from_pylist(documents[150:]), directory / "d.parquet")
    one, mixed = files_of(prepare("one")), files_of(prepare("mixed_bins", data_input_dirs=directory))
    arrow = [name for name in one if name.endswith(ARROW_NAME)]
    assert arrow
    assert all(one[name] == mixed[name] for name in arrow)
